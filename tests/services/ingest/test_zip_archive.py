"""Archives as people send them, and as attackers do."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import zipfile
from pathlib import Path

import pytest

from imaging.errors import InputError, InputTooLarge, StorageFull
from services.ingest import zip_archive
from services.ingest.upload import unpack_zip
from services.store.disk_room import no_room

MIB = 1024**2


def archive_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def unpack(archive: Path, *, max_bytes: int = MIB, max_files: int = 100) -> list[bytes]:
    into = archive.parent / "unpacked"
    into.mkdir()
    files = unpack_zip(archive, into, max_bytes=max_bytes, max_files=max_files)
    assert sorted(files) == sorted(into.iterdir())
    return [file.read_bytes() for file in files]


def test_files_come_out_whole_and_in_order(tmp_path: Path) -> None:
    contents = [os.urandom(3000), b"", os.urandom(10)]
    archive = archive_of(tmp_path / "a.zip", {f"study/{i}/IM{i}": content for i, content in enumerate(contents)})
    assert unpack(archive) == contents


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_unpacked_side_by_side_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int
) -> None:
    contents = [bytes([number]) * (1 + number % 7 * 50_000) for number in range(100)]
    archive = archive_of(tmp_path / "a.zip", {f"IM{i}": content for i, content in enumerate(contents)}, method)
    monkeypatch.setattr(zip_archive, "_THREADS", 4)
    together = threading.Barrier(4)  # one member by itself would wait in vain
    (into := tmp_path / "unpacked").mkdir()

    def wait_for_others(_: int) -> None:
        together.wait(timeout=20)

    files = unpack_zip(archive, into, max_bytes=100 * MIB, max_files=100, check_room=wait_for_others)
    assert [file.read_bytes() for file in files] == contents


def test_no_member_is_begun_after_one_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path / "a.zip", {f"IM{i}": b"x" for i in range(100)})
    monkeypatch.setattr(zip_archive, "_THREADS", 2)
    (into := tmp_path / "unpacked").mkdir()
    with pytest.raises(StorageFull):
        unpack_zip(archive, into, max_bytes=MIB, max_files=100, check_room=_full)
    assert len(list(into.iterdir())) <= 2


def _full(_: int) -> None:
    raise no_room()


def test_what_is_no_image_file_is_left_out(tmp_path: Path) -> None:
    archive = archive_of(
        tmp_path / "a.zip",
        {
            "DICOMDIR": b"x", "dir/": b"", "__MACOSX/._IM1": b"x", ".DS_Store": b"x", "inner.zip": b"PK\x03\x04",
            "study/IM1": b"kept",
        },
    )  # fmt: skip
    assert unpack(archive) == [b"kept"]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", "..\\outside", "C:\\outside"])
def test_a_name_that_leads_out_of_the_folder_writes_nothing_there(tmp_path: Path, name: str) -> None:
    nested = tmp_path / "deep" / "er"
    nested.mkdir(parents=True)
    archive = archive_of(nested / "a.zip", {name: b"evil", "IM1": b"kept"})
    assert unpack(archive) == [b"kept"]
    assert not list(tmp_path.rglob("outside"))
    assert not Path("/outside").exists()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("IM0")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("IM1", b"kept")
    assert unpack(path) == [b"kept"]


@pytest.mark.parametrize("members", [{}, {"dir/": b""}, {"DICOMDIR": b"x"}, {"../a": b"x"}])
def test_an_archive_with_nothing_to_read_is_called_empty(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(InputError) as raised:
        unpack(archive_of(tmp_path / "a.zip", members))
    assert raised.value.code == "input.empty_archive"


def test_a_claim_of_100_gigabytes_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"IM1": b"x" * 100})
    into = tmp_path / "unpacked"
    into.mkdir()
    path.write_bytes(_with_claimed_size(path.read_bytes(), 0xFFFFFFF0))  # 4 GiB, the most without zip64
    with pytest.raises(InputTooLarge):
        unpack_zip(path, into, max_bytes=100 * MIB, max_files=10)
    assert not list(into.iterdir())

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(25):
            archive.writestr(f"IM{number}", b"x")
    path.write_bytes(_with_claimed_size(path.read_bytes(), 0xFFFFFFF0))  # 25 x 4 GiB = 100 GiB
    with pytest.raises(InputTooLarge, match="at most"):
        unpack_zip(path, into, max_bytes=8 * 1024 * MIB, max_files=100)
    assert not list(into.iterdir())


def test_a_bomb_that_claims_little_is_stopped_at_the_limit(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"IM1": bytes(50 * MIB)})
    path.write_bytes(_with_claimed_size(path.read_bytes(), 10))
    into = tmp_path / "unpacked"
    into.mkdir()
    with pytest.raises(InputError):  # zipfile stops at the size claimed and misses the checksum, or we stop at ours
        unpack_zip(path, into, max_bytes=2 * MIB, max_files=10)
    assert sum(file.stat().st_size for file in into.iterdir()) <= 2 * MIB


def test_members_together_may_not_pass_the_limit(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {f"IM{i}": bytes(MIB) for i in range(4)})
    into = tmp_path / "unpacked"
    into.mkdir()
    with pytest.raises(InputTooLarge):
        unpack_zip(path, into, max_bytes=3 * MIB, max_files=10)
    unpack_zip(path, into, max_bytes=4 * MIB, max_files=10)


def test_a_member_shared_by_overlapping_entries_counts_every_time(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"IM0": bytes(MIB)})
    raw = path.read_bytes()
    at = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    entry = raw[at:end]
    record = bytearray(raw[end:])
    struct.pack_into("<HHI", record, 8, 50, 50, 50 * len(entry))
    path.write_bytes(raw[:at] + entry * 50 + bytes(record))
    into = tmp_path / "unpacked"
    into.mkdir()
    with pytest.raises(InputError):
        unpack_zip(path, into, max_bytes=10 * MIB, max_files=100)
    assert sum(file.stat().st_size for file in into.iterdir()) <= 10 * MIB


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {f"IM{i}": b"x" for i in range(11)})
    with pytest.raises(InputTooLarge):
        unpack(archive, max_files=10)


def test_a_directory_of_a_million_names_is_refused_unread(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", {f"IM{i:05d}": b"" for i in range(2000)}, zipfile.ZIP_STORED)
    with pytest.raises(InputTooLarge, match="far more"):
        unpack(archive, max_files=10)


def test_a_damaged_archive_is_an_input_error(tmp_path: Path) -> None:
    whole = archive_of(tmp_path / "whole.zip", {"IM1": os.urandom(5000)}).read_bytes()
    flipped = bytearray(whole)
    flipped[2000] ^= 0xFF
    for number, raw in enumerate([whole[:2500], bytes(flipped), b"PK\x03\x04", b"%PDF-1.4", whole[1000:]]):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "a.zip").write_bytes(raw)
        with pytest.raises(InputError) as raised:
            unpack(directory / "a.zip")
        assert raised.value.code == "input.damaged_archive", number


def test_an_encrypted_archive_says_so(tmp_path: Path) -> None:
    raw = bytearray(archive_of(tmp_path / "a.zip", {"IM1": b"content"}).read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(raw))
    with pytest.raises(InputError) as raised:
        unpack(tmp_path / "a.zip")
    assert raised.value.code == "input.encrypted_archive"


def test_methods_that_need_memory_without_bound_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compression method"):
        unpack(archive_of(tmp_path / "a.zip", {"IM1": b"content"}, zipfile.ZIP_LZMA))


def test_an_archive_written_as_a_stream_with_zip64_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("IM1", "w", force_zip64=True) as f:
        f.write(b"content")
    (tmp_path / "a.zip").write_bytes(buffer.getvalue())
    assert unpack(tmp_path / "a.zip") == [b"content"]


def _with_claimed_size(raw: bytes, size: int) -> bytes:
    """Every member's uncompressed size replaced, in its local header and in the central directory."""
    patched = bytearray(raw)
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = -1
        while (at := raw.find(signature, at + 1)) >= 0:
            struct.pack_into("<I", patched, at + offset, size)
    return bytes(patched)
