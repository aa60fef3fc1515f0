"""What must hold whatever was broken: nothing lost, nothing twice, nothing stuck."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from services.store.rows import FINAL_STATES, DeliveryState, JobRow, OutboxRow
from tests.faults.pacs import CountingPacs
from tests.faults.studies import Study, data_set_of
from tests.faults.system import System

RESULT_OBJECTS = 2  # a SEG and an SR


@dataclass(frozen=True)
class Outcome:
    """Figures of a run that kept its promises.

    Attributes:
        attempts: of all jobs.
        receptions: how often the PACS was sent one of the result objects; an object that was sent again is the same.
    """

    settled_after_s: float
    attempts: int
    receptions: int


def check(system: System, pacs: CountingPacs, studies: Sequence[Study], *, within_s: float = 60.0) -> Outcome:
    """Wait until nothing moves any more, then look at everything."""
    began = time.monotonic()
    wait_until_settled(system, studies, within_s)
    settled_after_s = time.monotonic() - began
    system.wait_until_ready()
    attempts = 0
    for study in studies:
        (listed,) = system.jobs(study_instance_uid=study.study_instance_uid)
        job = system.job(listed["id"])
        assert job["state"] == "completed", job
        assert [delivery["state"] for delivery in job["deliveries"]] == ["delivered"] * RESULT_OBJECTS
        assert job["instance_count"] == len(study.files)
        assert study.job_id in (None, job["id"])
        attempts += job["attempts"]
        _check_files(system, study, job["id"])
        modalities = sorted(pacs.modalities(study.study_instance_uid))
        assert modalities == ["SEG", "SR"], (job["id"], modalities)
    received = pacs.received()
    objects = {uid for study in studies for uid in pacs.result_uids(study.study_instance_uid)}
    return Outcome(settled_after_s, attempts, sum(received[uid] for uid in objects))


def _check_files(system: System, study: Study, job_id: str) -> None:
    """Every acknowledged instance is on disk, byte for byte."""
    sent = study.data_sets()
    if study.job_id is None:
        directory = system.data_dir / "received" / study.study_instance_uid / study.series_instance_uid
        kept = {path.stem: data_set_of(path) for path in directory.iterdir()}
        assert study.acknowledged <= set(kept)
        assert kept == sent
    else:
        files = (system.data_dir / "jobs" / job_id / "input").rglob("*")
        kept_files = sorted(data_set_of(path) for path in files if path.is_file())
        assert kept_files == sorted(sent.values())


def wait_until_settled(system: System, studies: Sequence[Study], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            moving = _moving(system, studies)
        except (httpx.HTTPError, SQLAlchemyError) as error:
            moving = [type(error).__name__]
        if not moving:
            return
        assert time.monotonic() < deadline, f"not settled within {within_s:g} s: {moving}"
        time.sleep(0.2)


def _moving(system: System, studies: Sequence[Study]) -> list[str]:
    final = [state.value for state in FINAL_STATES]
    with system.database.read() as session:
        known = set(session.scalars(select(JobRow.study_instance_uid)))
        jobs = session.execute(select(JobRow.id, JobRow.state, JobRow.attempts).where(JobRow.state.not_in(final)))
        unsent = session.execute(
            select(OutboxRow.job_id, OutboxRow.state, OutboxRow.last_error).where(
                OutboxRow.state != DeliveryState.DELIVERED.value
            )
        )
        missing = [study.study_instance_uid for study in studies if study.study_instance_uid not in known]
        return [*map(str, jobs), *map(str, unsent), *missing]
