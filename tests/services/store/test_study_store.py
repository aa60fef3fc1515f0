"""Files under their final names, complete or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imaging.errors import InputError, NotFound, StorageFull
from services.delivery.destinations import Folder
from services.delivery.folder import copy_to_folder
from services.store.durability import Durability
from services.store.study_store import StudyStore, checked_uid, relative_result_path

JOB = "6f9619ff-8b86-4d01-b42d-00c04fc964ff"


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return StudyStore(tmp_path / "data")


def arrive(store: StudyStore, *uids: str, content: bytes = b"content") -> Path:
    path = store.instance_path(*uids)
    with store.arriving_file(path) as file:
        file.write(content)
    return path


def test_a_file_appears_when_it_is_complete(store: StudyStore) -> None:
    path = store.instance_path("1.2", "1.2.3", "1.2.3.4")
    with store.arriving_file(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert not list((store.data_dir / "arriving").iterdir())


def test_a_file_whose_writing_failed_leaves_nothing(store: StudyStore) -> None:
    path = store.instance_path("1.2", "1.2.3", "1.2.3.4")
    with pytest.raises(TypeError), store.arriving_file(path) as file:
        file.writelines([b"content", "no bytes"])  # type: ignore[list-item]
    assert not path.exists()
    assert not list((store.data_dir / "arriving").iterdir())


def test_a_full_disk_is_its_own_error(store: StudyStore) -> None:
    with pytest.raises(StorageFull), store.arriving_file(store.data_dir / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), store.arriving_file(store.data_dir / "x"):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize("uid", ["", "..", "../../etc/passwd", "1.2/3", "1.2.3\n", "a.b", "1." * 40 + "1", ".1", "1."])
def test_what_is_no_uid_becomes_no_path(store: StudyStore, uid: str) -> None:
    with pytest.raises(InputError):
        checked_uid(uid)
    with pytest.raises(InputError):
        store.instance_path("1.2", "1.2.3", uid)


@pytest.mark.parametrize("job_id", ["..", "../x", "", "1234"])
def test_what_is_no_job_id_becomes_no_path(store: StudyStore, job_id: str) -> None:
    with pytest.raises(NotFound):
        store.job_directory(job_id)


def test_inputs_are_remembered_in_any_order_with_one_digest(store: StudyStore) -> None:
    files = [arrive(store, "1.2", "1.2.3", f"1.2.3.{k}") for k in range(4)]
    digest = store.write_inputs(JOB, files)
    assert store.write_inputs(JOB, files[::-1]) == digest
    assert store.read_inputs(JOB) == files
    assert store.write_inputs(JOB, files[:3]) != digest
    arrive(store, "1.2", "1.2.3", "1.2.3.0", content=b"longer content")
    assert store.write_inputs(JOB, files) != digest


def test_a_job_without_inputs_or_results_says_so(store: StudyStore) -> None:
    with pytest.raises(NotFound):
        store.read_inputs(JOB)
    with pytest.raises(NotFound):
        store.result_file(JOB, "seg.dcm")


def test_a_directory_replaces_the_one_before_it_whole(store: StudyStore) -> None:
    for names in (("a", "b"), ("b", "c")):
        filled = store.arriving_directory()
        for name in names:
            (filled / name).write_text(name)
        store.replace_directory(filled, store.result_directory(JOB))
        assert sorted(path.name for path in store.result_directory(JOB).iterdir()) == list(names)
    assert store.result_file(JOB, "c").read_text() == "c"
    assert store.relative(store.result_file(JOB, "c")) == relative_result_path(JOB, "c")
    assert not list((store.data_dir / "arriving").iterdir())


def test_a_removed_job_leaves_nothing(store: StudyStore) -> None:
    store.result_directory(JOB).mkdir(parents=True)
    store.remove_job(JOB)
    store.remove_job(JOB)
    assert not store.job_directory(JOB).exists()


def test_with_power_durability_a_result_is_written_through_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StudyStore(tmp_path / "data", durability=Durability.POWER)
    filled, final = store.arriving_directory(), store.result_directory(JOB)
    (filled / "below").mkdir()
    for name in ("findings.json", "below/seg.dcm"):
        (filled / name).write_bytes(b"x")
    calls = recorded_calls(monkeypatch)
    store.replace_directory(filled, final)
    moved = calls.index(f"rename {final}")
    written = [f"fsync {filled / name}" for name in ("findings.json", "below/seg.dcm", "below", "")]
    assert all(call.rstrip("/") in calls[:moved] for call in written)
    assert calls[moved + 1 :] == [f"fsync {path}" for path in (final.parent, final.parent.parent, store.data_dir)]


def test_with_power_durability_a_folder_has_its_copy_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.dcm").write_bytes(b"x")
    folder = Folder(name="out", path=tmp_path / "out")
    folder.path.mkdir()
    calls = recorded_calls(monkeypatch)
    assert copy_to_folder(folder, tmp_path / "one.dcm", "1.2", Durability.POWER).error is None
    assert calls == [
        f"fsync {folder.path / '.1.2.arriving'}",
        f"rename {folder.path / '1.2.dcm'}",
        f"fsync {folder.path}",
    ]
    calls.clear()
    copy_to_folder(folder, tmp_path / "one.dcm", "1.2", Durability.PROCESS)
    assert calls == [f"rename {folder.path / '1.2.dcm'}"]


def recorded_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done from now on, in its order."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(f"rename {target}")
        replace(source, target)

    monkeypatch.setattr("os.fsync", recorded_fsync)
    monkeypatch.setattr("os.replace", recorded_replace)
    return calls
