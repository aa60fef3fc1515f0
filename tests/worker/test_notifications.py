"""What a job's end tells: webhook, FHIR R4 and HL7 v2, read by libraries of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hl7
import numpy as np
import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message

from imaging.findings import RESEARCH_USE_ONLY
from imaging.volume import CtVolume
from services.delivery.destinations_file import DestinationsFile
from services.delivery.failure_report import FailureReports
from services.dicom.ct_series_writer import write_ct_series
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.rows import JobRow
from services.store.study_store import StudyStore
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter
from worker.pipeline import Pipeline

DESTINATIONS = """
[[nodes]]
ae_title = "PACS"
host = "127.0.0.1"
port = 104
announce_to = ["RIS"]
[[nodes]]
ae_title = "RIS"
host = "127.0.0.1"
port = 105
[[webhooks]]
name = "json"
url = "https://example.org/hook"
secret_file = "/run/secrets/hook"
[[webhooks]]
name = "fhir"
url = "https://example.org/fhir"
secret_file = "/run/secrets/hook"
format = "fhir"
[[webhooks]]
name = "positive"
url = "https://example.org/positive"
secret_file = "/run/secrets/hook"
events = ["embolus_found"]
[[hl7]]
name = "engine"
host = "127.0.0.1"
port = 2575
receiving_application = "RIS"
receiving_facility = "Haus & Hof|Ost"
[[routes]]
to = ["node:PACS", "webhook:json", "webhook:fhir", "webhook:positive", "hl7:engine"]
"""
ENDINGS = ["embolus_found", "no_embolus", "not_analysable", "failed"]
WHY_NOT = {"not_analysable": "contrast.none", "failed": "internal"}
NAME = "Müller^Änne^O'Hara^Dr.^jun."


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline], tmp_path: Path) -> Pipeline:
    (tmp_path / "destinations.toml").write_text(DESTINATIONS)
    destinations = DestinationsFile(tmp_path / "destinations.toml")
    return replace(make_pipeline(ThresholdSegmenter()), destinations=destinations)


@pytest.fixture
def messages(
    pipeline: Pipeline, jobs: JobStore, store: StudyStore, database: Database, tmp_path: Path
) -> Callable[[str], dict[str, Any]]:
    """Run a pushed series to this ending; the outbox rows that are no objects, by destination."""

    def run(ending: str) -> dict[str, Any]:
        hu = np.full((24, 40, 48), -800, dtype=np.int16)
        hu[8:16, 16:24, 4:44] = 40 if ending == "not_analysable" else LUMEN_HU
        if ending == "embolus_found":
            hu[10:14, 18:22, 20:24] = CLOT_HU
        volume = CtVolume(hu, np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64))
        files = write_ct_series(
            volume, tmp_path / "ct", patient_id="P|1^&", patient_name=NAME, accession_number="A~4711"
        )
        job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
        digest = store.write_inputs(job.id, files)
        jobs.complete_intake(job.id, inputs_digest=digest, instance_count=len(files), completion_reason="quiet")
        failing = replace(pipeline, segmenter=ThresholdSegmenter(error=KeyError(NAME)), max_attempts=1)
        (failing if ending == "failed" else pipeline).run_job(job.id)
        settings = Settings(data_dir=tmp_path, destinations=tmp_path / "destinations.toml")
        FailureReports(settings, store, jobs).write_due()
        assert jobs.get(job.id).outcome == ending
        return {row.destination: row for row in Outbox(database).of_job(job.id) if row.message_id}

    return run


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_webhook_is_told_how_it_ended_and_nobodys_name(
    messages: Callable[[str], dict[str, Any]], ending: str
) -> None:
    rows = messages(ending)
    body = json.loads(rows["webhook:json"].message)
    assert body["type"] == f"result.{ending}"
    said = body["data"]
    assert said["findings"]["outcome"] == ending
    assert said["embolus_count"] == {"embolus_found": 1, "no_embolus": 0}.get(ending)
    assert len(said["objects"]) == {"embolus_found": 5, "no_embolus": 4}.get(ending, 3)
    assert said["findings"]["notice"] == RESEARCH_USE_ONLY
    for secret in ("ller", "P|1", "A~4711"):
        assert secret not in rows["webhook:json"].message
    assert ("webhook:positive" in rows) == (ending == "embolus_found")
    assert rows["availability:RIS"].waits_for == "node:PACS"
    assert rows["availability:RIS"].message is None


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_fhir_bundle_is_valid_and_says_the_ending(messages: Callable[[str], dict[str, Any]], ending: str) -> None:
    text = messages(ending)["webhook:fhir"].message
    study, report = (entry.resource for entry in Bundle.model_validate_json(text).entry)
    assert study.get_resource_type() == "ImagingStudy"
    assert study.identifier[0].value.startswith("urn:oid:")
    assert study.subject.identifier.value == "P|1^&"
    assert {series.modality.code for series in study.series} >= {"CT", "SR"}
    assert report.status == "preliminary"
    assert RESEARCH_USE_ONLY in report.conclusion
    assert RESEARCH_USE_ONLY in report.text.div
    (observation,) = report.contained
    if ending in WHY_NOT:
        assert observation.valueCodeableConcept is None
        code = {"not_analysable": "not-performed", "failed": "error"}[ending]
        assert observation.dataAbsentReason.coding[0].code == code
        assert WHY_NOT[ending] in report.conclusion
        assert report.conclusionCode is None
        assert "no embolus" not in text.lower()
    else:
        found = ending == "embolus_found"
        value = observation.valueCodeableConcept.coding[0]
        assert (value.system, value.code) == ("http://snomed.info/sct", "52101004" if found else "272519000")
        assert observation.component[0].valueInteger == int(found)
        assert float(observation.component[1].valueQuantity.value) == pytest.approx(0.064 if found else 0)
        assert (report.conclusionCode is not None) == found
    requests = [entry["request"] for entry in json.loads(text)["entry"]]
    assert [request["method"] for request in requests] == ["POST", "PUT"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_hl7_message_is_valid_and_says_the_ending(messages: Callable[[str], dict[str, Any]], ending: str) -> None:
    row = messages(ending)["hl7:engine"]
    parsed = parse_message(row.message, validation_level=VALIDATION_LEVEL.STRICT)
    parsed.validate()
    assert parsed.name == "ORU_R01"
    message = hl7.parse(row.message)
    header, patient = message.segment("MSH"), message.segment("PID")
    assert (str(header[5]), str(header[12]), str(header[18])) == ("RIS", "2.5.1", "UNICODE UTF-8")
    assert message.unescape(str(header[6])) == "Haus & Hof|Ost"
    assert str(header[10]) == row.message_id.replace("-", "")[:20]
    assert message.unescape(str(patient[3])) == "P|1^&"
    assert str(patient[5]) == "Müller^Änne^O'Hara^jun.^Dr."
    assert message.unescape(str(message.segment("OBR")[3])) == "A~4711"
    assert RESEARCH_USE_ONLY in str(message.segment("NTE")[3])
    observations = {str(segment[3][0][0]): segment for segment in message.segments("OBX")}
    finding = observations["59282003"]
    assert (str(finding[5]).split("^")[0], str(finding[11])) == {
        "embolus_found": ("52101004", "P"),
        "no_embolus": ("272519000", "P"),
    }.get(ending, ("", "X"))
    assert str(observations["110180"][5]).startswith("2.25.")
    if ending in WHY_NOT:
        assert "embolus_count" not in observations
        assert WHY_NOT[ending] in row.message
        assert "no embolus" not in row.message.lower()
    else:
        assert int(str(observations["embolus_count"][5])) == int(ending == "embolus_found")


def test_of_images_without_a_patient_only_the_webhook_in_json_is_told(
    pipeline: Pipeline, jobs: JobStore, database: Database, queue_job: Callable[..., JobRow]
) -> None:
    job = queue_job()
    pipeline.run_job(job.id)
    rows = Outbox(database).of_job(job.id)
    assert [row.destination for row in rows] == ["webhook:json", "webhook:positive"]
    assert jobs.get(job.id).state == "delivering"


def test_a_retried_job_tells_anew_only_what_it_now_says_differently(
    pipeline: Pipeline, jobs: JobStore, database: Database, queue_job: Callable[..., JobRow]
) -> None:
    outbox = Outbox(database)
    job = queue_job(artery_hu=40, clot=False)
    pipeline.run_job(job.id)
    (told,) = outbox.claim_due(limit=5, lease_s=60)
    outbox.delivered(told)
    jobs.retry(job.id)
    pipeline.run_job(job.id)
    assert [row.id for row in outbox.of_job(job.id)] == [told.id]  # the same again: it is known there
    assert outbox.of_job(job.id)[0].message is None  # nothing of it is kept once it has arrived
