"""Which study and which patient something was about, as the files say it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imaging.errors import InputError, NotFound
from services.audit.events import Subject
from services.dicom.headers import read_header, text
from services.store.study_store import StudyStore

_KEYWORDS = ("SOPClassUID", "PatientID", "StudyInstanceUID")


def subject_in(path: Path) -> Subject | None:
    """None where the file cannot be read as DICOM."""
    try:
        header = read_header(path, keywords=_KEYWORDS)
    except InputError:
        return None
    return Subject(text(header, "StudyInstanceUID"), text(header, "PatientID"))


def subject_of_job(store: StudyStore, job_id: str) -> Subject:
    """Of a job without a DICOM file, the job alone."""
    for path in _files_of(store, job_id):
        if (found := subject_in(path)) is not None:
            return Subject(found.study_instance_uid, found.patient_id, job_id=job_id)
    return Subject("", job_id=job_id)


def _files_of(store: StudyStore, job_id: str) -> Iterator[Path]:
    with suppress(NotFound, OSError):
        yield from store.read_inputs(job_id)[:1]
    with suppress(NotFound):
        yield from sorted(store.result_directory(job_id).glob("*.dcm"))[:1]
