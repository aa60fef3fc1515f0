"""Unpacking a zip that somebody sent: what it really holds counts, not what it says it holds."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from imaging.errors import InputError, InputTooLarge
from services.store.disk_room import means_full, no_room

_CHUNK_BYTES = 1024**2
_THREADS = min(4, os.cpu_count() or 1)
# zipfile reads the central directory as a whole: entries of this size times the allowed number of files are plenty.
_DIRECTORY_BYTES_PER_FILE = 1024
_NESTED_SUFFIXES = (".zip", ".7z", ".rar", ".tar", ".tgz")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, IndexError, NotImplementedError)


CheckRoom = Callable[[int], None]


def any_room(_: int) -> None:
    """For a disk on which nothing is reserved."""


def unpack_zip(
    archive: Path, into: Path, *, max_bytes: int, max_files: int, check_room: CheckRoom = any_room
) -> list[Path]:
    """Write the archive's files to `into` as 000001, 000002, ... in the archive's order and return them.

    Names from the archive are not used: they may lead out of `into`, and may name the patient. Left out are folders,
    links, nested archives, DICOMDIR, what macOS adds, and every member whose name is absolute or holds "..".
    Where this raises, what was already written lies in `into`; the caller removes it.

    Raises:
        InputTooLarge: more than `max_files`, or more than `max_bytes` unpacked; nothing beyond the limit is written.
        InputError: `input.empty_archive`, `input.damaged_archive`, `input.encrypted_archive`.
        StorageFull: the disk has no room, or `check_room` says so of the next bytes.
    """
    _refuse_huge_directory(archive, max_files)
    with _damage_reported(archive), zipfile.ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if _is_wanted(member)]
        if not members:
            raise InputError("the archive holds no file to read", code="input.empty_archive")
        if len(members) > max_files:
            raise InputTooLarge(f"the archive holds {len(members)} files, at most {max_files} are taken")
        if (claimed := sum(member.file_size for member in members)) > max_bytes:
            raise _unpacks_to_too_much(max_bytes, f"says it unpacks to {claimed:,} bytes")
        files = [into / f"{number:06d}" for number in range(1, len(members) + 1)]
        unpacking = _Unpacking(opened, max_bytes, check_room)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="unpack") as pool:
            list(pool.map(unpacking.write, members, files))  # raises what the first of those that failed raised
        return files


class _Unpacking:
    """Of one archive, by several threads: making and writing files takes longer than receiving them did."""

    def __init__(self, opened: zipfile.ZipFile, max_bytes: int, check_room: CheckRoom) -> None:
        self._opened = opened
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._check_room = check_room
        self._has_failed = False
        self._lock = threading.Lock()  # of what is left, and of zipfile's count of readers

    def write(self, member: zipfile.ZipInfo, path: Path) -> None:
        """One member; nothing more once another one has failed."""
        if self._has_failed:
            return
        try:
            self._write(member, path)
        except BaseException:
            self._has_failed = True
            raise

    def _write(self, member: zipfile.ZipInfo, path: Path) -> None:
        """A member that holds more than what is left for all is an error, whatever its header says."""
        if member.flag_bits & 0x1:
            raise InputError(
                "the archive is encrypted", code="input.encrypted_archive", remedy="send it without password"
            )
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # LZMA and bzip2 may ask for memory without bound before the first byte comes out.
            raise InputError(
                f"compression method {member.compress_type} is not read",
                code="input.damaged_archive",
                remedy="use the ordinary method, deflate",
            )
        with self._lock:
            source = self._opened.open(member)
        try:
            with path.open("wb") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    self._take(len(chunk))
                    target.write(chunk)
        finally:
            with self._lock:
                source.close()

    def _take(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise _unpacks_to_too_much(self._max_bytes, "unpacks to more")
        self._check_room(count)


def _is_wanted(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    kind = stat.S_IFMT(member.external_attr >> 16)
    return not (
        member.is_dir()
        or kind not in (0, stat.S_IFREG)
        or path.is_absolute()
        or ".." in path.parts
        or ":" in path.parts[0]
        or "__MACOSX" in path.parts
        or path.name.startswith(".")
        or path.name.upper() == "DICOMDIR"
        or path.suffix.lower() in _NESTED_SUFFIXES
    )


def _refuse_huge_directory(archive: Path, max_files: int) -> None:
    """Look at the size of the central directory (APPNOTE 4.3.14, 4.3.16) before zipfile reads it into memory."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - (1 << 16) - 128))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 16:
        raise _damaged("it has no end record")
    (directory_bytes,) = struct.unpack_from("<I", tail, at + 12)
    zip64_at = tail.rfind(b"PK\x06\x06", 0, at)
    if zip64_at >= 0 and len(tail) >= zip64_at + 48:
        directory_bytes = max(directory_bytes % 0xFFFFFFFF, struct.unpack_from("<Q", tail, zip64_at + 40)[0])
    if directory_bytes > max(1, max_files) * _DIRECTORY_BYTES_PER_FILE:
        raise InputTooLarge(f"the archive lists far more than {max_files} files")


@contextmanager
def _damage_reported(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(type(error).__name__) from error
    except OSError as error:
        if means_full(error):
            raise no_room() from error
        if error.errno == errno.EINVAL:  # an offset in the archive that points nowhere
            raise _damaged("a member lies outside the file") from error
        raise


def _damaged(what: str) -> InputError:
    return InputError(f"the archive is damaged or no zip: {what}", code="input.damaged_archive", remedy="zip it again")


def _unpacks_to_too_much(max_bytes: int, how: str) -> InputTooLarge:
    return InputTooLarge(
        f"the archive {how}; at most {max_bytes:,} bytes are unpacked", remedy="send one series at a time"
    )
