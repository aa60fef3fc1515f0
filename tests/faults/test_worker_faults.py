"""A worker that hangs, one that is told to end, and a clock that is set back."""

from __future__ import annotations

import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.end_to_end.hospital import wait_for
from tests.faults.conftest import MakeStudies
from tests.faults.invariants import check
from tests.faults.pacs import CountingPacs
from tests.faults.studies import Senders, Study, push, upload
from tests.faults.system import System

pytestmark = pytest.mark.timeout(240)


@pytest.mark.fault(
    "worker",
    "a worker hung (SIGSTOP) past its lease, which goes on (SIGCONT) after another worker has finished its job",
    "what it makes is thrown away, the files of the other one are left alone; exactly one result",
)
def test_what_a_worker_that_hung_past_its_lease_makes_is_thrown_away(
    system: System, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    (study,) = make_studies(1)
    job_id = _running_job(system, study)
    system.send_signal("worker-1", signal.SIGSTOP)
    system.start("worker-2")

    job = system.wait_for_state(job_id, "completed")
    files = _result_files(system, job_id)
    system.send_signal("worker-1", signal.SIGCONT)

    said = f"job {job_id} went to another worker meanwhile"
    wait_for("the result is thrown away", lambda: said in system.log.read_text(), 30)
    assert job["attempts"] == 2
    assert _result_files(system, job_id) == files
    check(system, pacs, [study])


@pytest.mark.fault(
    "worker",
    "SIGTERM of a worker with a job that is done within the drain time",
    "the job is finished in its first attempt, the process ends with 0",
)
def test_a_worker_told_to_end_finishes_its_job(system: System, make_studies: MakeStudies, pacs: CountingPacs) -> None:
    (study,) = make_studies(1)
    _running_job(system, study)

    assert system.put_down("worker-1", signal.SIGTERM) == 0

    assert check(system, pacs, [study]).attempts == 1


@pytest.mark.fault(
    "worker",
    "SIGTERM of a worker with a job that takes longer than the drain time (8 s)",
    "the job is handed back and done by another worker, its lease not waited for; no attempt is lost",
)
def test_a_worker_that_has_to_end_before_its_job_hands_it_back(
    system: System, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    (study,) = make_studies(1)
    system.put_down("worker-1")
    system.start("worker-1", STAGE_S="10")
    job_id = _running_job(system, study)
    system.start("worker-2")

    assert system.put_down("worker-1", signal.SIGTERM) == 0

    assert f"job {job_id} is handed back" in system.log.read_text()
    assert check(system, pacs, [study]).attempts == 1


@pytest.mark.fault(
    "worker",
    "SIGTERM of a worker while Redis is away",
    "it ends within 30 s; its job is done when both are back",
)
def test_a_worker_without_redis_can_be_ended(system: System, make_studies: MakeStudies, pacs: CountingPacs) -> None:
    (study,) = make_studies(1)
    _running_job(system, study)
    system.put_down("redis")

    began = time.monotonic()
    system.put_down("worker-1", signal.SIGTERM)
    assert time.monotonic() - began < 30

    system.start("redis")
    system.start("worker-1")
    check(system, pacs, [study])


@pytest.mark.fault(
    "processes",
    "a rolling restart: each process in turn gets SIGTERM and is started again, while studies come in",
    "every process ends in order, nothing is lost, no job needs a second attempt, nothing is sent twice",
)
def test_a_rolling_restart_under_load_loses_nothing_and_repeats_nothing(
    system: System, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    studies = make_studies(8)
    senders = Senders()
    for number, study in enumerate(studies):
        if number % 2:
            senders.begin(push, study, system.dicom_port, slice_pause_s=0.1, after_s=2.0 * number)
        else:
            senders.begin(upload, study, system.http, after_s=2.0 * number)

    statuses = {}
    for part in ("gateway", "listener", "worker-1", "relay"):
        statuses[part] = system.put_down(part, signal.SIGTERM)
        system.start(part)
        system.wait_until_ready()

    senders.finish()
    outcome = check(system, pacs, studies)
    assert set(statuses.values()) == {0}, statuses
    assert outcome.attempts == len(studies)
    assert outcome.receptions == 2 * len(studies)


@pytest.mark.fault(
    "clock",
    "the wall clock of every process set back by an hour when one job's worker has died, the queue was emptied and a "
    "series is arriving",
    "nothing stands still for 60 s; exactly one result each",
)
def test_a_clock_set_back_by_an_hour_stalls_nothing(
    system: System, make_studies: MakeStudies, pacs: CountingPacs, clock: Path
) -> None:
    running, waiting, pushed, late = make_studies(4)
    push(pushed, system.dicom_port)
    _running_job(system, running)
    upload(waiting, system.http)
    system.put_down("worker-1")
    system.empty_redis()

    clock.write_text("-3600")
    system.start("worker-1")
    upload(late, system.http)

    check(system, pacs, [running, waiting, pushed, late])
    before, after = (datetime.fromisoformat(system.job(str(one.job_id))["created_at"]) for one in (waiting, late))
    assert before - after > timedelta(minutes=50)


def _running_job(system: System, study: Study) -> str:
    upload(study, system.http)
    job_id = str(study.job_id)
    system.wait_for_state(job_id, "running")
    return job_id


def _result_files(system: System, job_id: str) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (system.data_dir / "jobs" / job_id / "result").iterdir()}
