"""A job's result as FHIR R4: a transaction of a DiagnosticReport and the ImagingStudy that it reports on."""

from __future__ import annotations

import html
import json
import uuid
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DA

from imaging.errors import Reason
from imaging.findings import RESEARCH_USE_ONLY, Findings, Outcome
from services.delivery.reported_result import ReportedResult
from services.dicom.headers import text
from services.dicom.result_kind import ResultKind
from services.dicom.result_wording import headline, reason_line

_JOB_IDENTIFIERS = "urn:embolens:job"
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
}
_MODALITIES = {ResultKind.SEG: "SEG", ResultKind.SR: "SR", ResultKind.KEY_IMAGES: "OT", ResultKind.REPORT: "DOC"}
DIAGNOSTIC_IMAGING_STUDY = Code("18748-4", "LN", "Diagnostic imaging study")
PRESENCE = {Outcome.EMBOLUS_FOUND: codes.cid240.Present, Outcome.NO_EMBOLUS: codes.cid240.Absent}


def fhir_bundle(result: ReportedResult, study: Dataset) -> str:
    """The Bundle as JSON.

    Posted again, or after a retry of the job, it updates the report instead of adding one. An ImagingStudy of this
    study that the server has already is left as it is.
    """
    study_url, report_url = (uuid.uuid5(uuid.UUID(result.job.id), name).urn for name in ("study", "report"))
    study_identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{text(study, 'StudyInstanceUID')}"}
    report_identifier = {"system": _JOB_IDENTIFIERS, "value": result.job.id}
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "timestamp": result.at.isoformat(),
        "entry": [
            {
                "fullUrl": study_url,
                "resource": _imaging_study(result, study, study_identifier),
                "request": {"method": "POST", "url": "ImagingStudy", "ifNoneExist": _search(study_identifier)},
            },
            {
                "fullUrl": report_url,
                "resource": _report(result, study, report_identifier, study_url),
                "request": {"method": "PUT", "url": f"DiagnosticReport?{_search(report_identifier)}"},
            },
        ],
    }
    return json.dumps(bundle, ensure_ascii=False)


def _imaging_study(result: ReportedResult, study: Dataset, identifier: dict[str, str]) -> dict[str, Any]:
    series = []
    if result.job.series_instance_uid:
        series.append(
            {
                "uid": result.job.series_instance_uid,
                "modality": _coding(Code("CT", "DCM", "Computed Tomography")),
                "numberOfInstances": result.job.instance_count,
            }
        )
    for kind, objects in result.objects.items():
        if objects:
            modality = _MODALITIES[kind]
            series.append(
                {
                    "uid": objects[0].series_instance_uid,
                    "modality": {"system": _SYSTEMS["DCM"], "code": modality},
                    "numberOfInstances": len(objects),
                    "instance": [
                        {
                            "uid": one.sop_instance_uid,
                            "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{one.sop_class_uid}"},
                        }
                        for one in objects
                    ],
                }
            )
    return {
        "resourceType": "ImagingStudy",
        "identifier": [identifier, *_accession(study)],
        "status": "available",
        "subject": _subject(study),
        **_when("started", study),
        "series": series,
    }


def _report(result: ReportedResult, study: Dataset, identifier: dict[str, str], study_url: str) -> dict[str, Any]:
    findings = result.findings
    lines = [headline(findings), *map(reason_line, findings.reasons), RESEARCH_USE_ONLY]
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    found = findings.outcome is Outcome.EMBOLUS_FOUND
    return {
        "resourceType": "DiagnosticReport",
        "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{paragraphs}</div>'},
        "contained": [_observation(findings, study)],
        "identifier": [identifier],
        "status": "preliminary",
        "category": [_concept(Code("LP29684-5", "LN", "Radiology"))],
        "code": _concept(DIAGNOSTIC_IMAGING_STUDY),
        "subject": _subject(study),
        **_when("effectiveDateTime", study),
        "issued": result.at.isoformat(),
        "result": [{"reference": "#pulmonary-embolism"}],
        "imagingStudy": [{"reference": study_url}],
        "conclusion": "\n".join(lines),
        **({"conclusionCode": [_concept(codes.SCT.PulmonaryEmbolism)]} if found else {}),
    }


def _observation(findings: Findings, study: Dataset) -> dict[str, Any]:
    """Whether there is an embolus; that nobody could look is no value but its absence, with the reasons."""
    observation: dict[str, Any] = {
        "resourceType": "Observation",
        "id": "pulmonary-embolism",
        "status": "preliminary",
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "imaging"}]}
        ],
        "code": _concept(codes.SCT.PulmonaryEmbolism),
        "subject": _subject(study),
    }
    if not findings.analysed:
        failed = findings.outcome is Outcome.FAILED
        return observation | {
            "dataAbsentReason": {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/data-absent-reason",
                        "code": "error" if failed else "not-performed",
                    }
                ],
                "text": "; ".join(map(reason_line, findings.reasons)),
            }
        }
    return observation | {
        "valueCodeableConcept": _concept(PRESENCE[findings.outcome]),
        "component": [
            {"code": {"text": "Number of emboli"}, "valueInteger": len(findings.reported)},
            {
                "code": _concept(codes.SCT.Volume) | {"text": "Volume of all emboli"},
                "valueQuantity": {
                    "value": round(findings.clot_burden_ml, 4),
                    "unit": "mL",
                    "system": _SYSTEMS["UCUM"],
                    "code": "mL",
                },
            },
        ],
        **_warnings(findings.reasons),
    }


def _warnings(reasons: Iterable[Reason]) -> dict[str, Any]:
    notes = [{"text": reason_line(reason)} for reason in reasons]
    return {"note": notes} if notes else {}


def _subject(study: Dataset) -> dict[str, Any]:
    """The patient by identifier alone; whose it is the server knows."""
    patient_id = text(study, "PatientID")
    if not patient_id:
        return {"type": "Patient", "display": "without a Patient ID"}
    issuer = text(study, "IssuerOfPatientID")
    assigner = {"assigner": {"display": issuer}} if issuer else {}
    return {"type": "Patient", "identifier": {"value": patient_id} | assigner}


def _accession(study: Dataset) -> list[dict[str, Any]]:
    number = text(study, "AccessionNumber")
    if not number:
        return []
    kind = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}]}
    return [{"type": kind, "value": number}]


def _when(element: str, study: Dataset) -> dict[str, str]:
    """The study's date. Its time has no time zone, without which FHIR takes none."""
    try:
        date = DA(text(study, "StudyDate"))
    except ValueError:
        return {}
    return {element: date.isoformat()} if date else {}


def _coding(code: Code) -> dict[str, str]:
    return {"system": _SYSTEMS[code.scheme_designator], "code": code.value, "display": code.meaning}


def _concept(code: Code) -> dict[str, Any]:
    return {"coding": [_coding(code)]}


def _search(identifier: dict[str, str]) -> str:
    return f"identifier={identifier['system']}|{identifier['value']}"
