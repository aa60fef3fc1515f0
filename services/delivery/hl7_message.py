"""A job's result as HL7 v2.5.1: an unsolicited observation message (ORU^R01)."""

from __future__ import annotations

import re

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import PersonName

from imaging.findings import RESEARCH_USE_ONLY
from services.delivery.fhir_bundle import DIAGNOSTIC_IMAGING_STUDY, PRESENCE
from services.delivery.reported_result import ReportedResult
from services.dicom.headers import text
from services.dicom.result_wording import headline, reason_line

SENDING_APPLICATION = "EMBOLENS"
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"})
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # would end a segment, or the message
_PRELIMINARY, _CANNOT_BE_OBTAINED = "P", "X"  # HL7 table 0085
_EMBOLUS_COUNT = Code("embolus_count", "99EMBOLENS", "Number of emboli")
_STUDY_INSTANCE_UID = Code("110180", "DCM", "Study Instance UID")


def control_id(message_id: str) -> str:
    """MSH-10, of which HL7 2.5.1 takes 20 characters."""
    return message_id.replace("-", "")[:20]


def oru_message(
    result: ReportedResult, study: Dataset, *, message_id: str, receiving_application: str, receiving_facility: str
) -> str:
    """MSH, PID, OBR, NTE and OBX, in UTF-8, each ended by a carriage return.

    That nobody could look is no negative: the finding then has no value, and the status "cannot be obtained".
    """
    at = result.at.strftime("%Y%m%d%H%M%S%z")
    segments = [
        "MSH|^~\\&|"
        + "|".join(
            [
                SENDING_APPLICATION,
                "",
                _escaped(receiving_application),
                _escaped(receiving_facility),
                at,
                "",
                "ORU^R01^ORU_R01",
                control_id(message_id),
                "P",
                "2.5.1",
                *[""] * 5,
                "UNICODE UTF-8",
            ]
        ),
        _segment("PID", {1: "1", 3: _patient_id(study), 5: _name(study), 7: _dicom(study, "PatientBirthDate"),
                         8: _dicom(study, "PatientSex")}),
        _segment("OBR", {1: "1", 3: _dicom(study, "AccessionNumber") or result.job.id,
                         4: _code(DIAGNOSTIC_IMAGING_STUDY), 7: _dicom(study, "StudyDate") or at, 22: at, 24: "CT",
                         25: _PRELIMINARY}),
        _segment("NTE", {1: "1", 2: "L", 3: _escaped(RESEARCH_USE_ONLY)}),
    ]  # fmt: skip
    for number, (value_type, code, value, units, status) in enumerate(_observations(result, study), 1):
        segments.append(
            _segment("OBX", {1: str(number), 2: value_type, 3: _code(code), 5: value, 6: units, 11: status, 14: at})
        )
    return "".join(segment + "\r" for segment in segments)


def _observations(result: ReportedResult, study: Dataset) -> list[tuple[str, Code, str, str, str]]:
    """Value type, what is observed, value, units, status."""
    findings = result.findings
    finding = codes.SCT.PulmonaryEmbolism
    if not findings.analysed:
        found = [("CWE", finding, "", "", _CANNOT_BE_OBTAINED)]
    else:
        volume = Code(codes.SCT.Volume.value, "SCT", "Volume of all emboli")
        found = [
            ("CWE", finding, _code(PRESENCE[findings.outcome]), "", _PRELIMINARY),
            ("NM", _EMBOLUS_COUNT, str(len(findings.reported)), "", _PRELIMINARY),
            ("NM", volume, f"{findings.clot_burden_ml:.4f}", "mL^milliliter^UCUM", _PRELIMINARY),
        ]
    said = [headline(findings), *map(reason_line, findings.reasons), RESEARCH_USE_ONLY]
    return [
        *found,
        ("ST", _STUDY_INSTANCE_UID, _dicom(study, "StudyInstanceUID"), "", _PRELIMINARY),
        *(("TX", DIAGNOSTIC_IMAGING_STUDY, _escaped(line), "", _PRELIMINARY) for line in said),
    ]


def _patient_id(study: Dataset) -> str:
    return f"{_dicom(study, 'PatientID')}^^^{_dicom(study, 'IssuerOfPatientID')}".rstrip("^")


def _name(study: Dataset) -> str:
    """XPN has the suffix before the prefix, DICOM after it (PS3.5 section 6.2.1)."""
    name = PersonName(str(study.get("PatientName") or ""))
    parts = [name.family_name, name.given_name, name.middle_name, name.name_suffix, name.name_prefix]
    return "^".join(map(_escaped, parts)).rstrip("^")


def _dicom(study: Dataset, keyword: str) -> str:
    return _escaped(text(study, keyword))


def _code(code: Code) -> str:
    return "^".join(map(_escaped, (code.value, code.meaning, code.scheme_designator)))


def _escaped(value: str) -> str:
    return _CONTROLS.sub(" ", value).translate(_ESCAPES)


def _segment(name: str, fields: dict[int, str]) -> str:
    return "|".join([name, *(fields.get(number, "") for number in range(1, max(fields) + 1))])
