"""From enqueueing a job to its start, how workers share the jobs, and whether a long queue costs anything."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np

from benchmarks.page import Figure, Goal, Growth, Page, Row
from benchmarks.side_by_side import side_by_side
from services.embedded_redis import start_embedded_redis
from services.store.database import Database
from services.store.jobs import JobFilter, JobStore
from services.store.rows import JobRow, JobState, Priority, Stage
from services.store.study_store import StudyStore
from services.store.waiting_line import WaitingLine
from services.task_queue import TaskQueue
from tests.services.store.postgresql import PostgreSql
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU
from worker.held_lease import HeldLease
from worker.job_progress import JobProgress

_ONE_BY_ONE = 40
_SPIN_S, _SPUN_JOBS = 2.0, 8
_SLEPT_S, _JOBS_EACH = 3.0, 4
_WORKERS = (1, 8, 32)
_WAITING = (10, 1_000, 10_000)
_STARTS_LOOKED_AT = 10
_TIMEOUT_S = 120.0
_LOOK_S = 0.2  # the cores are the workers'; times are those of the rows


def measure(rounds: int) -> Page:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = start_embedded_redis(folder / "redis")
        stack.callback(redis.stop)
        postgresql = stack.enter_context(PostgreSql())
        places = iter(range(1_000_000))

        def place(url: str | None = None) -> _Place:
            return _Place(folder / str(next(places)), redis.url, url)

        one_by_one = side_by_side({"p95": lambda: _start_p95_ms(place())}, rounds=rounds, warm_up=False, unit="ms")
        shared = side_by_side(
            {"1 worker": lambda: _spun(place(), 1), "2 workers": lambda: _spun(place(), 2)},
            rounds=rounds,
            warm_up=False,
        )
        slept = side_by_side(
            {
                f"{database} {workers}": _sleeping(place, url, workers)
                for database, url in (("SQLite", None), ("PostgreSQL", postgresql.url))
                for workers in _WORKERS
            },
            rounds=min(rounds, 3),
            warm_up=False,
        )
        waiting = side_by_side(
            {str(jobs): _waiting(place, jobs) for jobs in _WAITING},
            rounds=rounds,
            warm_up=False,
            unit="ms",
        )
    gain = shared["1 worker"].median / shared["2 workers"].median
    shares = {name: slept[f"{name} 1"].median / slept[f"{name} {_WORKERS[-1]}"].median for name in _DATABASES}
    few, many = waiting[str(_WAITING[0])], waiting[str(_WAITING[-1])]
    return Page(
        title="The queue",
        how=_HOW,
        rows=(
            Row(
                what="enqueue to start, an idle worker, p95",
                unit="ms",
                higher_is_better=False,
                ours=one_by_one["p95"],
                goals=(Goal(says="under 50 ms", met=one_by_one["p95"].median < 50),),
            ),
            Row(
                what="1 -> 2 workers, jobs of one busy core",
                unit="x",
                higher_is_better=True,
                ours=Figure(name="2 workers", samples=(gain,)),
                goals=(Goal(says="1.8 x", met=gain >= 1.8),),
            ),
            *(
                Row(
                    what=f"1 -> {_WORKERS[-1]} simulated GPU workers on {name}",
                    unit="of linear",
                    higher_is_better=True,
                    ours=Figure(name=f"{_WORKERS[-1]} workers", samples=(share,)),
                    goals=(Goal(says="0.95", met=share >= 0.95),),
                )
                for name, share in shares.items()
            ),
            Row(
                what=f"from a job's end to the next one's start, {_WAITING[-1]} waiting",
                unit="ms",
                higher_is_better=False,
                ours=many.model_copy(update={"name": f"{_WAITING[-1]} waiting"}),
                others=(few.model_copy(update={"name": f"{_WAITING[0]} waiting"}),),
                goals=(Goal(says="no slower than with 10 (within a fifth)", met=many.median <= 1.2 * few.median),),
            ),
        ),
        growths=(
            Growth(
                what="next start",
                size="jobs waiting",
                unit="ms",
                points=tuple((float(jobs), waiting[str(jobs)].median) for jobs in _WAITING),
            ),
            *(
                Growth(
                    what=f"{_JOBS_EACH} jobs for each worker, {name}",
                    size="workers",
                    unit="s",
                    points=tuple((float(workers), slept[f"{name} {workers}"].median) for workers in _WORKERS),
                )
                for name in _DATABASES
            ),
        ),
    )


_DATABASES = ("SQLite", "PostgreSQL")


class _Place:
    """A data directory, its database (of PostgreSQL one that all share, with nothing queued), an emptied queue."""

    def __init__(self, folder: Path, redis_url: str, database_url: str | None) -> None:
        folder.mkdir()
        self.folder, self.redis_url = folder, redis_url
        self.database_url = database_url or f"sqlite:///{folder}/embolens.sqlite"
        self.database = Database(self.database_url)
        self.database.upgrade()
        self.jobs, self.store = JobStore(self.database), StudyStore(folder)
        self.queue = TaskQueue(redis_url)
        self.queue._redis.flushall()
        self._study = folder / "ct.nii.gz"
        hu_xyz = np.full((24, 20, 12), -800, dtype=np.int16)
        hu_xyz[2:22, 8:12, 4:8] = LUMEN_HU
        hu_xyz[10:12, 9:11, 5:7] = CLOT_HU
        nibabel.save(nibabel.Nifti1Image(hu_xyz, np.diag((-1.0, -1.0, 1.0, 1.0))), self._study)

    def submit(self, *, enqueue: bool = True) -> str:
        job_id = str(uuid.uuid4())
        digest = self.store.write_inputs(job_id, [self._study])
        routine = Priority.ROUTINE
        self.jobs.submit(job_id, input_kind="nifti", inputs_digest=digest, instance_count=1, priority=routine)
        if enqueue:
            self.queue.enqueue(job_id, routine)
        return job_id

    def wait_until_ended(self, job_ids: Sequence[str]) -> list[JobRow]:
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            rows = [self.jobs.get(job_id) for job_id in job_ids]
            if all(row.state == JobState.COMPLETED for row in rows):
                return rows
            time.sleep(_LOOK_S)
        raise TimeoutError("the jobs did not end")

    @contextmanager
    def workers(self, count: int, *, spin_s: float = 0.0) -> Iterator[None]:
        """Real worker processes, ready when this begins."""
        environment = os.environ | {
            "EMBOLENS_DATA_DIR": str(self.folder),
            "EMBOLENS_DATABASE_URL": self.database_url,
            "EMBOLENS_REDIS_URL": self.redis_url,
            "SPIN_S": str(spin_s),
            "OMP_NUM_THREADS": "1",
        }
        logs = [self.folder / f"worker-{number}.log" for number in range(count)]
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.scripted_worker"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=log.open("wb"),
            )
            for log in logs
        ]
        try:
            deadline = time.monotonic() + _TIMEOUT_S
            while not all(" ready." in log.read_text() for log in logs):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the workers are not ready: {logs[0].read_text()[-1000:]}")
                time.sleep(0.05)
            yield
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(timeout=60)


def _sleeping(place: Callable[[str | None], _Place], url: str | None, workers: int) -> Callable[[], float]:
    return lambda: _slept(place(url), workers)


def _waiting(place: Callable[[str | None], _Place], jobs: int) -> Callable[[], float]:
    return lambda: _next_start_ms(place(None), jobs)


def _start_p95_ms(place: _Place) -> float:
    """Each job is submitted when the one before has ended; from before its row is made until a worker claims it."""
    took = []
    with place.workers(1):
        for number in range(_ONE_BY_ONE + 1):
            began = time.time()
            (row,) = place.wait_until_ended([place.submit()])
            assert row.started_at is not None
            if number:  # the first one pays for what is imported when it is first used
                took.append(1000 * (row.started_at.timestamp() - began))
    return float(np.percentile(took, 95))


def _spun(place: _Place, workers: int) -> float:
    """Seconds from the first start to the last end of jobs that keep one core busy."""
    with place.workers(workers, spin_s=_SPIN_S):
        rows = place.wait_until_ended([place.submit() for _ in range(_SPUN_JOBS)])
    return _span_s(rows)


def _next_start_ms(place: _Place, waiting: int) -> float:
    """The median time between a job's end and the next one's start, while so many wait."""
    first = [place.submit() for _ in range(_STARTS_LOOKED_AT)]
    _add_queued(place, waiting - len(first))
    with place.workers(1):
        rows = place.wait_until_ended(first)
    rows.sort(key=lambda row: _seconds(row.started_at))
    gaps = [_seconds(after.started_at) - _seconds(before.finished_at) for before, after in pairwise(rows)]
    return 1000 * median(gaps)


def _add_queued(place: _Place, count: int) -> None:
    """Rows and messages of jobs that nobody comes to before the measurement is over."""
    if count <= 0:
        return
    template = place.jobs.page(JobFilter(state=JobState.QUEUED), limit=1)[0]
    same = {column.name: getattr(template, column.name) for column in JobRow.__table__.columns}
    rows = [same | {"id": str(uuid.uuid4())} for _ in range(count)]
    with place.database.write() as session:
        session.bulk_insert_mappings(JobRow, rows)
    redis, name = place.queue._redis, Priority.ROUTINE.value
    newest: Any = redis.lindex(name, 0)
    message = newest.decode()  # the last one that was enqueued; the others are alike
    last_id = json.loads(message)["headers"]["id"]
    redis.lpush(name, *(message.replace(last_id, row["id"]) for row in rows))


def _slept(place: _Place, workers: int) -> float:
    """Seconds from the first start to the last end, of jobs that only wait, as a worker does for its GPU."""
    ids = [place.submit(enqueue=False) for _ in range(_JOBS_EACH * workers)]
    context = multiprocessing.get_context("fork")
    place.database.close()  # no connection is shared with those that are forked
    ready = context.Barrier(workers)
    processes = [context.Process(target=_work, args=(place.database_url, ready)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a simulated worker ended with {process.exitcode}")
    rows = [place.jobs.get(job_id) for job_id in ids]
    return _span_s(rows)


def _work(database_url: str, ready: Barrier) -> None:
    """What a worker asks of the database for a job, without reading, networks and writing."""
    database = Database(database_url)
    jobs, line = JobStore(database), WaitingLine(database, routine_longest_wait_s=1800.0)
    owner = str(uuid.uuid4())
    database.ping()  # connected before anybody begins
    ready.wait()
    while (job := line.start_next(owner, lease_s=30.0)) is not None:
        with HeldLease(jobs, job.id, owner, lease_s=30.0) as lease:
            progress = JobProgress(lease)
            for stage in Stage:
                for step in range(10):
                    progress(stage, step / 10)
                    time.sleep(_SLEPT_S / len(Stage) / 10)
            jobs.finish(
                job.id,
                owner,
                findings={"outcome": "no_embolus", "reasons": []},
                stage_seconds=progress.done(),
                deliveries=[],
            )
    database.close()


def _span_s(rows: Sequence[JobRow]) -> float:
    return max(_seconds(row.finished_at) for row in rows) - min(_seconds(row.started_at) for row in rows)


def _seconds(moment: object) -> float:
    return moment.timestamp()  # type: ignore[attr-defined,no-any-return]


_HOW = """\
Real worker processes (Celery, one process in the pool) on the embedded Redis and SQLite, with a segmenter that needs
no network: small volumes are read, masked, written and finished as in every job. Start: each of 40 jobs is submitted
when the one before has ended; the time runs from before its row is made until the worker's claim. Two workers: jobs
that keep one core busy for two seconds, less than any real one, first start to last end; on a machine with two cores
nothing else may run beside them. Simulated GPU workers: processes that ask of the database what a worker asks (next in
line, claim, lease, progress of six stages, end) and sleep for three seconds meanwhile, what the cascade may take on a
GPU; linear means that 32 workers end 32 times as many jobs in the same time. Waiting jobs: the pause between a job's
end and the next one's start, with as many rows and messages queued.
"""
