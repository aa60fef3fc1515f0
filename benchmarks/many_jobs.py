"""A site's database after years: jobs in the real tables, written in bulk."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Insert, Table, insert, text

from imaging.findings import ArteryLevel, Findings, Lesion, Outcome
from services.store.database import Database
from services.store.rows import DeliveryState, HeldSeriesRow, JobRow, JobState, OutboxRow, Priority, Source

FIRST_CREATED_AT = datetime(2025, 6, 30, 12, tzinfo=UTC)
_APART = timedelta(minutes=5)
_WAITING, _RUNNING = 200, 4  # the newest jobs, each time that some are written
_AT_ONCE = 5000


def add_jobs(database: Database, count: int, *, all_together: int) -> list[str]:
    """Write so many jobs with two deliveries and one entry of the DICOMweb index each; ids, oldest first.

    Args:
        all_together: as many as there will be: these are the last of them, each newer than every one before.
    """
    ids: list[str] = []
    for begin in range(all_together - count, all_together, _AT_ONCE):
        jobs = [_job(number, all_together) for number in range(begin, min(begin + _AT_ONCE, all_together))]
        ids += [job["id"] for job in jobs]
        with database.write() as session:
            session.execute(_into(JobRow), jobs)
            if deliveries := [row for job in jobs for row in _deliveries(job)]:
                session.execute(_into(OutboxRow), deliveries)
            session.execute(_into(HeldSeriesRow), [_held_series(job) for job in jobs])
    with database.write() as session:
        session.execute(text("ANALYZE"))
    return ids


def _into(row: type[JobRow | OutboxRow | HeldSeriesRow]) -> Insert:
    table = row.__table__
    assert isinstance(table, Table)
    return insert(table)


def _job(number: int, all_together: int) -> dict[str, Any]:
    chance = random.Random(number)
    from_end = all_together - number
    state = (
        JobState.QUEUED
        if from_end <= _WAITING
        else JobState.RUNNING
        if from_end <= _WAITING + _RUNNING
        else chance.choices((JobState.COMPLETED, JobState.NOT_ANALYSABLE, JobState.FAILED), (96, 3, 1))[0]
    )
    created_at = FIRST_CREATED_AT + number * _APART
    has_ended = state not in (JobState.QUEUED, JobState.RUNNING)
    findings = _findings(chance) if state is JobState.COMPLETED else None
    return {
        "id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        "tenant": "default",
        "state": state.value,
        "priority": chance.choices((Priority.ROUTINE, Priority.STAT), (9, 1))[0].value,
        "source": chance.choices((Source.DICOM, Source.REST), (9, 1))[0].value,
        "input_kind": "dicom",
        "calling_ae_title": "CT1",
        "study_instance_uid": f"1.2.826.0.1.3680043.8.498.{number}",
        "series_instance_uid": f"1.2.826.0.1.3680043.8.498.{number}.1",
        "instance_count": chance.randint(250, 900),
        "arrivals": 0,
        "inputs_digest": f"{chance.getrandbits(256):064x}",
        "completion_reason": "quiet for 20 s",
        "progress": 1.0 if has_ended else 0.0,
        "stage_seconds": {"load": 1.5, "roi": 2.5, "unet": 9.25, "aanet": 12.5, "fuse": 0.75, "write": 1.25},
        "attempts": 0 if state is JobState.QUEUED else 1,
        "cancel_requested": False,
        "outcome": None if not has_ended else findings["outcome"] if findings else state.value,
        "findings": findings,
        "reasons": [{"code": "contrast.low", "text": "low contrast"}] if state is JobState.NOT_ANALYSABLE else [],
        "created_at": created_at,
        "updated_at": created_at + _APART,
        "queued_at": created_at + timedelta(seconds=20),
        "started_at": None if state is JobState.QUEUED else created_at + timedelta(seconds=25),
        "finished_at": created_at + timedelta(seconds=55) if has_ended else None,
        "indexed_at": created_at + _APART,
    }


def _findings(chance: random.Random) -> dict[str, Any]:
    lesions = tuple(
        Lesion(number, 0.9, 1.25, (1.0, 2.0, 3.0), (1.0, 2.0, 4.0), 12.5, 55.0, ArteryLevel.LOBAR)
        for number in range(1, 1 + chance.choices((0, 1, 3, 8), (70, 15, 10, 5))[0])
    )
    outcome = Outcome.EMBOLUS_FOUND if lesions else Outcome.NO_EMBOLUS
    provenance = {"software": "Embolens 0.1.0", "model_package": "phantom-v3", "sha256": "0" * 64}
    return Findings(outcome, scan_probability=0.9 if lesions else 0.1, lesions=lesions, provenance=provenance).to_dict()


def _deliveries(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("seg", "sr") if job["finished_at"] else ():
        yield {
            "job_id": job["id"],
            "destination": "node:PACS",
            "object_path": f"jobs/{job['id']}/result/{kind}.dcm",
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.66.4",
            "sop_instance_uid": f"2.25.{uuid.UUID(job['id']).int}{len(kind)}"[:64],
            "state": DeliveryState.DELIVERED.value,
            "attempts": 1,
            "next_attempt_at": job["finished_at"],
            "created_at": job["finished_at"],
            "delivered_at": job["finished_at"],
            "dimse_status": 0,
        }


def _held_series(job: dict[str, Any]) -> dict[str, Any]:
    study, series = job["study_instance_uid"], job["series_instance_uid"]
    date = f"{job['created_at']:%Y%m%d}"
    return {
        "tenant": "default",
        "study_instance_uid": study,
        "series_instance_uid": series,
        "patient_id": f"P{study.rsplit('.', 1)[1]}",
        "patient_name": "Doe^Jo",
        "accession_number": "",
        "study_id": "1",
        "study_date": date,
        "study_time": "120000",
        "study_description": "CTPA",
        "referring_physician_name": "",
        "modality": "CT",
        "series_number": 1,
        "series_description": "CTPA 1.0",
        "attributes": {
            "0020000D": {"vr": "UI", "Value": [study]},
            "0020000E": {"vr": "UI", "Value": [series]},
            "00080020": {"vr": "DA", "Value": [date]},
        },
    }
