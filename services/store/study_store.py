"""Where the files lie, and how a file comes to lie under its final name.

    received/<study>/<series>/<sop>.dcm   what came by C-STORE or STOW-RS
    jobs/<job>/input/                     what came by upload
    jobs/<job>/inputs.json                which files the job reads
    jobs/<job>/result/                    findings.json, mask.nii.gz, artery.nii.gz, preview.png, *.dcm
    arriving/                             files being written; never read

One file system, so that a rename is atomic.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from imaging.errors import InputError, NotFound, StorageFull

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


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


def put_in_place(written: Path, final_path: Path) -> None:
    """Rename a complete file of the same file system."""
    try:
        os.replace(written, final_path)
    except FileNotFoundError:
        final_path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, final_path)


class StudyStore:
    """The files below one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self._arriving = self.data_dir / "arriving"
        self._arriving.mkdir(parents=True, exist_ok=True)

    def series_directory(self, study_instance_uid: str, series_instance_uid: str) -> Path:
        return self.data_dir / "received" / checked_uid(study_instance_uid) / checked_uid(series_instance_uid)

    def instance_path(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> Path:
        return self.series_directory(study_instance_uid, series_instance_uid) / f"{checked_uid(sop_instance_uid)}.dcm"

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
            put_in_place(temporary, final_path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("no room left in the data directory", remedy="free disk space") from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

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
        with self.arriving_file(self.job_directory(job_id) / "inputs.json") as file:
            file.write(json.dumps(sorted(map(self.relative, files))).encode())
        return self.inputs_digest(files)

    def inputs_digest(self, files: Sequence[Path]) -> str:
        """SHA-256 of names and sizes, whatever the order."""
        digest = hashlib.sha256()
        for name in sorted(map(self.relative, files)):
            digest.update(f"{Path(name).name}:{(self.data_dir / name).stat().st_size}\n".encode())
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
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            old = self._arriving / uuid.uuid4().hex
            os.replace(final, old)
            os.replace(filled, final)
            shutil.rmtree(old)
        else:
            os.replace(filled, final)

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
