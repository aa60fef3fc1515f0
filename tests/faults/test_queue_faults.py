"""Redis carries job ids only: whatever becomes of it, a study takes its way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.store.rows import Priority
from services.task_queue import TaskQueue
from tests.faults.conftest import MakeStudies
from tests.faults.invariants import check
from tests.faults.pacs import CountingPacs
from tests.faults.studies import push, upload
from tests.faults.system import System

STUDIES = 4
pytestmark = pytest.mark.timeout(200)
_ALL_DONE = "every study ends in one result; nothing stands still for 60 s"


@pytest.mark.parametrize(
    "forget",
    [
        pytest.param(
            System.empty_redis,
            marks=pytest.mark.fault("queue", "FLUSHALL while one job runs and others wait", _ALL_DONE),
            id="emptied",
        ),
        pytest.param(
            System.replace_redis,
            marks=pytest.mark.fault("queue", "Redis replaced by an empty one meanwhile", _ALL_DONE),
            id="replaced",
        ),
    ],
)
def test_a_queue_that_forgets_everything_costs_time_only(
    system: System, make_studies: MakeStudies, pacs: CountingPacs, forget: Callable[[System], None]
) -> None:
    studies = make_studies(STUDIES)
    push(studies[0], system.dicom_port)
    for study in studies[1:]:
        upload(study, system.http)
    system.wait_for_state(str(studies[1].job_id), "running")

    forget(system)

    check(system, pacs, studies)


@pytest.mark.fault(
    "queue",
    "the same task delivered to two workers at once",
    "one of them works, the other finds the job taken; one result, one attempt",
)
def test_a_task_delivered_twice_is_worked_on_once(
    system: System, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    (study,) = make_studies(1)
    system.put_down("worker-1")
    upload(study, system.http)
    queue = TaskQueue(system.redis_url)
    queue.enqueue(str(study.job_id), Priority.ROUTINE)
    queue.close()

    for worker in ("worker-1", "worker-2"):
        system.start(worker)

    assert check(system, pacs, [study]).attempts == 1
