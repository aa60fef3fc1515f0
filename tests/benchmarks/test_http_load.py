"""The clients of a benchmark, and the site that they ask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.gateway_process import wait_until_answers
from benchmarks.http_load import Load, measured
from benchmarks.many_jobs import add_jobs
from services.embedded_redis import free_port
from services.store.database import Database
from services.store.jobs import JobFilter, JobStore
from services.store.rows import JobState


@pytest.fixture(scope="module")
def hello_port() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.hello_server", str(port)])
    wait_until_answers(f"http://127.0.0.1:{port}/hello", process)
    yield port
    process.terminate()
    process.wait(timeout=20)


@pytest.mark.parametrize(("path", "errors"), [("/hello", 0), ("/nobody", 6)])
def test_every_answer_is_timed_and_errors_are_counted(hello_port: int, path: str, errors: int) -> None:
    load = Load(port=hello_port, paths=(path,), authorizations=("",), clients=3, think_s=0.01, seconds=20, requests=2)
    latencies = measured(load)
    assert len(latencies.seconds) == 6
    assert latencies.errors == errors
    assert 0 < latencies.percentile_ms(50) <= latencies.percentile_ms(99)


def test_a_site_grows_by_newer_jobs(database: Database) -> None:
    ids = add_jobs(database, 300, all_together=300)
    ids += add_jobs(database, 100, all_together=400)
    assert len(set(ids)) == 400
    newest = JobStore(database).page(JobFilter(tenant="default"), limit=500)
    assert [job.id for job in newest] == ids[::-1]
    assert newest[0].state == JobState.QUEUED
    assert newest[-1].state in (JobState.COMPLETED, JobState.NOT_ANALYSABLE, JobState.FAILED)
