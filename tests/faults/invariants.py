"""What must hold whatever was broken: nothing lost, nothing twice, nothing stuck."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from services.store.rows import FINAL_STATES, DeliveryState, JobRow, OutboxRow
from tests.faults.pacs import CountingPacs
from tests.faults.studies import Study, data_set_of
from tests.faults.system import System

RESULT_OBJECTS = 2  # a SEG and an SR
STANDSTILL_S = 60.0  # after which something is stuck
_LONGEST_S = 240.0


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


def check(system: System, pacs: CountingPacs, studies: Sequence[Study]) -> Outcome:
    """Wait until nothing moves any more, then look at everything."""
    began = time.monotonic()
    wait_until_settled(system, studies)
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


def wait_until_settled(system: System, studies: Sequence[Study]) -> None:
    """Until every study has its job and every job and delivery has ended; at no time does all stand still for long."""
    began = changed_at = time.monotonic()
    last: list[str] = []
    while moving := _moving(system, studies):
        now = time.monotonic()
        if moving != last:
            last, changed_at = moving, now
        assert now - changed_at < STANDSTILL_S, f"nothing moves: {moving}"
        assert now - began < _LONGEST_S, f"no end: {moving}"
        time.sleep(0.2)


def _moving(system: System, studies: Sequence[Study]) -> list[str]:
    """What has not ended yet, as far as it is; one line each."""
    final = [state.value for state in FINAL_STATES]
    unfinished = select(JobRow.id, JobRow.state, JobRow.attempts, JobRow.stage).where(JobRow.state.not_in(final))
    unsent = select(OutboxRow.id, OutboxRow.job_id, OutboxRow.last_error).where(
        OutboxRow.state != DeliveryState.DELIVERED.value
    )
    with system.database.read() as session:
        known = set(session.scalars(select(JobRow.study_instance_uid)))
        jobs, deliveries = session.execute(unfinished).all(), session.execute(unsent).all()
    missing = [study.study_instance_uid for study in studies if study.study_instance_uid not in known]
    return sorted([*map(str, jobs), *map(str, deliveries), *missing])
