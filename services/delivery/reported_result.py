"""What notifications speak of: a job's result while everything about it is at hand."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self

from pydicom import dcmread
from pydicom.dataset import Dataset

from imaging.findings import Findings
from services.dicom.result_kind import ResultKind
from services.store.jobs import utc_now
from services.store.rows import JobRow

if TYPE_CHECKING:
    from services.dicom.result_files import ResultFiles
    from services.dicom.result_object import SopInstance

_STUDY_KEYWORDS = [
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "AccessionNumber",
]


@dataclass(frozen=True, slots=True)
class ReportedResult:
    """One job's result.

    Attributes:
        study: patient and study as the result's objects have them; None where there is no object, because the images
            were not DICOM or not those of one study.
        objects: the DICOM objects of the result by their kind.
        at: when it was reported.
    """

    job: JobRow
    findings: Findings
    study: Dataset | None
    objects: Mapping[ResultKind, tuple[SopInstance, ...]]
    at: datetime

    @classmethod
    def of(cls, job: JobRow, written: ResultFiles) -> Self:
        first = next((one.path for of_kind in written.objects.values() for one in of_kind), None)
        study = None
        if first is not None:
            study = dcmread(first, specific_tags=_STUDY_KEYWORDS, stop_before_pixels=True)
        return cls(job, written.findings, study, written.objects, utc_now().replace(microsecond=0))


def message_id(job: JobRow, findings: Findings, *addressed: str) -> str:
    """The same for the same result of a job and the same addressee; another one when the job's retry says otherwise."""
    said = json.dumps(findings.to_dict(), sort_keys=True)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\n".join([job.id, *addressed, said])))
