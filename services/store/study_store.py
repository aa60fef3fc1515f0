"""Where the files lie, and how a file comes to lie under its final name.

    received/<study>/<series>/<sop>.dcm   what came by C-STORE or STOW-RS
    tenants/<tenant>/received/...         the same, of another tenant than `default`: a series that two of them
                                          send is there twice, and neither learns of the other's
    jobs/<job>/input/                     what came by upload
    jobs/<job>/inputs.json                which files the job reads
    jobs/<job>/result/                    findings.json, mask.nii.gz, artery.nii.gz, preview.png, *.dcm
    arriving/                             files being written; never read

One file system, so that a rename is atomic.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Self

from imaging.errors import InputError, NotFound, Purged
from services.settings import Settings
from services.store.disk_room import FULL_ERRNOS, DiskRoom, no_room
from services.store.durability import Durability, sync, sync_to_mount_point, sync_tree, sync_way
from services.store.rows import DEFAULT_TENANT

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def checked_uid(uid: str) -> str:
    """The UID, if it is one (PS3.5 section 9.1): safe as a file name."""
    if not is_uid(uid):
        raise InputError(f"not a DICOM UID: {uid!r}", code="input.invalid_uid")
    return uid


def is_uid(uid: str) -> bool:
    return len(uid) <= 64 and _UID.fullmatch(uid) is not None


def relative_result_path(job_id: str, name: str) -> str:
    """A result file's path below the data directory, before it is there."""
    return f"jobs/{job_id}/result/{name}"


def purged(what: str, when: datetime | None = None) -> Purged:
    """Of files that were here."""
    return Purged(
        f"{what} was purged{f' on {when:%Y-%m-%d}' if when else ''}", remedy="it is where it was sent from, or to"
    )


class StudyStore:
    """The files below one data directory."""

    def __init__(self, data_dir: Path, *, durability: Durability = Durability.PROCESS, reserve_bytes: int = 0) -> None:
        """`reserve_bytes` is what must stay free of the disk when something is taken in."""
        self.data_dir = data_dir.resolve()
        self._is_written_through = durability is Durability.POWER
        self._reserve_bytes = reserve_bytes
        self._arriving = self.data_dir / "arriving"
        self._arriving.mkdir(parents=True, exist_ok=True)
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count()
        if self._is_written_through:
            sync_to_mount_point(self._arriving)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.data_dir, durability=settings.durability, reserve_bytes=settings.disk_reserve_bytes)

    def room(self) -> DiskRoom:
        return DiskRoom.of(self.data_dir, self._reserve_bytes)

    def check_room(self, wanted_bytes: int = 0) -> None:
        """Before something new is taken in. Raises StorageFull where it would use what is reserved."""
        if not self.room().has_for_intake(wanted_bytes):
            raise no_room()

    def series_directory(
        self, study_instance_uid: str, series_instance_uid: str, *, tenant: str = DEFAULT_TENANT
    ) -> Path:
        """`tenant` is one that `services.accounts.principal.checked_tenant` has seen."""
        root = self.data_dir if tenant == DEFAULT_TENANT else self.data_dir / "tenants" / tenant
        return _series_directory(root, study_instance_uid, series_instance_uid)

    def received_directories(self) -> Iterator[tuple[str, Path]]:
        """Of each tenant that was ever sent something, with its name: <study>/<series>/<sop>.dcm lie below."""
        yield DEFAULT_TENANT, self.data_dir / "received"
        for directory in (self.data_dir / "tenants").glob("*/received"):
            yield directory.parent.name, directory

    def instance_path(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        *,
        tenant: str = DEFAULT_TENANT,
    ) -> Path:
        directory = self.series_directory(study_instance_uid, series_instance_uid, tenant=tenant)
        return directory / f"{checked_uid(sop_instance_uid)}.dcm"

    def job_directory(self, job_id: str) -> Path:
        try:
            return self.data_dir / "jobs" / str(uuid.UUID(job_id))
        except ValueError:
            raise NotFound(f"no job {job_id!r}") from None

    def upload_directory(self, job_id: str) -> Path:
        return self.job_directory(job_id) / "input"

    def result_directory(self, job_id: str) -> Path:
        return self.job_directory(job_id) / "result"

    @contextmanager
    def arriving_file(self, final_path: Path) -> Iterator[BinaryIO]:
        """A file to write; on leaving without an exception it lies complete under `final_path`, else nowhere.

        Raises:
            StorageFull: the disk has no room.
        """
        temporary = self._arriving / uuid.uuid4().hex
        try:
            with temporary.open("wb") as file:
                yield file
            self.put_in_place(temporary, final_path)
        except OSError as error:
            if error.errno in FULL_ERRNOS:
                raise no_room() from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, final_path: Path, pieces: Sequence[bytes | memoryview]) -> None:
        """A file of these pieces, complete under `final_path` or nowhere; in one system call where the disk has room.

        Raises:
            StorageFull: the disk has no room.
        """
        self.put_arrived(self.write_arriving(pieces), final_path)

    def write_arriving(self, pieces: Sequence[bytes | memoryview], directory: str | None = None) -> str:
        """The path of a complete file of these pieces, for `put_arrived`.

        Args:
            directory: below `arriving_path`, of the caller alone: processes that make files in the same one wait for
                each other.

        Raises:
            StorageFull: the disk has no room.
        """
        temporary = f"{directory or self._arriving}/{self._name}-{os.getpid()}-{next(self._numbers)}"
        with _nothing_left(temporary):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _write_whole(descriptor, pieces)
            finally:
                os.close(descriptor)
        return temporary

    def put_arrived(self, written: str, final_path: Path) -> None:
        """Rename it; nothing is left of it where that fails.

        Raises:
            StorageFull: the disk has no room.
        """
        with _nothing_left(written):
            self.put_in_place(written, final_path)

    def put_in_place(self, written: Path | str, final_path: Path) -> None:
        """Rename a complete file of the same file system."""
        if self._is_written_through:
            sync(Path(written))
        try:
            os.replace(written, final_path)
        except FileNotFoundError:
            final_path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(written, final_path)
        if self._is_written_through:
            sync_way(final_path.parent, self.data_dir)

    def write_through(self, path: Path) -> None:
        """Before a file that lies here already is acknowledged once more: who put it here may have died in between."""
        if self._is_written_through:
            sync(path)
            sync_way(path.parent, self.data_dir)

    def remove_stale_arrivals(self, *, older_than_s: float) -> int:
        """Take away what a process that died was writing; returns how many files and directories."""
        oldest = time.time() - older_than_s
        removed = 0
        for path in self._arriving.iterdir():
            with suppress(FileNotFoundError):  # somebody else was faster
                if path.stat().st_mtime < oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed += 1
        return removed

    @property
    def arriving_path(self) -> Path:
        """Where files are written that nobody reads yet."""
        return self._arriving

    def arriving_directory(self) -> Path:
        """A fresh directory on the same file system, to fill and then rename into place."""
        path = self._arriving / uuid.uuid4().hex
        path.mkdir()
        return path

    def write_inputs(self, job_id: str, files: Sequence[Path]) -> str:
        """Record which files the job reads; returns their digest."""
        names = self._relative_names(files)
        with self.arriving_file(self.job_directory(job_id) / "inputs.json") as file:
            file.write(json.dumps(names).encode())
        return self._digest_of(names)

    def inputs_digest(self, files: Sequence[Path]) -> str:
        """SHA-256 of names and sizes, whatever the order."""
        return self._digest_of(self._relative_names(files))

    def _relative_names(self, files: Sequence[Path]) -> list[str]:
        directories = {directory: self.relative(directory) for directory in {file.parent for file in files}}
        return sorted(os.path.join(directories[file.parent], file.name) for file in files)

    def _digest_of(self, names: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for name in names:
            size = os.stat(os.path.join(self.data_dir, name)).st_size
            digest.update(f"{os.path.basename(name)}:{size}\n".encode())
        return digest.hexdigest()

    def read_inputs(self, job_id: str) -> list[Path]:
        try:
            names = json.loads((self.job_directory(job_id) / "inputs.json").read_text())
        except FileNotFoundError:
            raise NotFound(f"job {job_id} has no recorded inputs") from None
        return [self.data_dir / name for name in names]

    def relative(self, path: Path) -> str:
        return str(path.resolve().relative_to(self.data_dir))

    def replace_directory(self, filled: Path, final: Path) -> None:
        """Put a filled directory under its final name; one that lay there is taken away first."""
        if self._is_written_through:
            sync_tree(filled)
        final.parent.mkdir(parents=True, exist_ok=True)
        old = None
        if final.exists():
            old = self._arriving / uuid.uuid4().hex
            os.replace(final, old)
        os.replace(filled, final)
        if self._is_written_through:
            sync_way(final.parent, self.data_dir)
        if old is not None:
            shutil.rmtree(old)

    def take_away(self, directory: Path) -> Path:
        """Rename a directory to where nothing is read any more; returns where it lies now. Raises FileNotFoundError."""
        taken = self._arriving / uuid.uuid4().hex
        os.replace(directory, taken)
        with suppress(OSError):  # others lie in it
            directory.parent.rmdir()
        return taken

    @staticmethod
    def remove(taken: Path) -> None:
        shutil.rmtree(taken, ignore_errors=True)

    @contextmanager
    def reading(self, places: Iterable[str]) -> Iterator[None]:
        """While this lasts, no directory among these (relative to the data directory) is taken away.

        Raises:
            Purged: one is gone, or is just being taken away.
        """
        with ExitStack() as opened:
            for place in places:
                try:
                    descriptor = os.open(self.data_dir / place, os.O_RDONLY)
                    opened.callback(os.close, descriptor)
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except (FileNotFoundError, BlockingIOError):
                    raise purged("what was asked for") from None
            yield

    def result_file(self, job_id: str, name: str) -> Path:
        path = self.result_directory(job_id) / name
        if not path.is_file():
            raise NotFound(f"job {job_id} has no {name}")
        return path

    def old_jobs(self, *, older_than_s: float) -> dict[str, datetime]:
        """Ids of the job directories that nothing was put into for so long, with the time of the last change."""
        newest = time.time() - older_than_s
        found = {}
        for path in (self.data_dir / "jobs").glob("*-*-*-*-*"):
            with suppress(FileNotFoundError):  # somebody else was faster
                if (modified_at := path.stat().st_mtime) < newest:
                    found[path.name] = datetime.fromtimestamp(modified_at, UTC)
        return found

    def remove_job(self, job_id: str) -> None:
        shutil.rmtree(self.job_directory(job_id), ignore_errors=True)


@lru_cache(maxsize=64)
def _series_directory(root: Path, study_instance_uid: str, series_instance_uid: str) -> Path:
    """Of those that are arriving each is asked for with every instance."""
    return root.joinpath("received", checked_uid(study_instance_uid), checked_uid(series_instance_uid))


@contextmanager
def _nothing_left(path: str) -> Iterator[None]:
    """Of a file where an error goes through; that of a full disk is StorageFull."""
    try:
        yield
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(path)
        if isinstance(error, OSError) and error.errno in FULL_ERRNOS:
            raise no_room() from error
        raise


def _write_whole(descriptor: int, pieces: Sequence[bytes | memoryview]) -> None:
    written = os.writev(descriptor, pieces)
    if written == sum(map(len, pieces)):
        return
    rest = memoryview(b"".join(pieces))[written:]  # the disk is nearly full, or somebody sent a signal
    while rest:
        rest = rest[os.write(descriptor, rest) :]
