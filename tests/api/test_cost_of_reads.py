"""What a read costs, in statements: the same however many jobs there are, and for many jobs as for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from api.gateway import Gateway
from api.job_view import job_views
from tests.api.conftest import RunningGateway


@contextmanager
def statements() -> Iterator[list[str]]:
    """Every SELECT of this process, the gateway's among them."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_reads_take_two_or_three_statements(gateway: RunningGateway, make_nifti: Any) -> None:
    job_id = gateway.submit(make_nifti(seed=1))
    gateway.finish(job_id)
    for path, asked in (
        (f"/segment/{job_id}", 3),  # who calls, the job, its deliveries
        ("/segment", 2),
        ("/segment?limit=500", 2),
    ):
        with statements() as seen:
            assert gateway.client.get(path).status_code == 200
        assert len(seen) == asked, seen


def test_a_page_with_queued_jobs_takes_one_more_for_all_their_places(gateway: RunningGateway, make_nifti: Any) -> None:
    for seed in range(3):
        gateway.submit(make_nifti(seed=seed))
    with statements() as seen:
        assert gateway.client.get("/segment").status_code == 200
    assert len(seen) == 3, seen


def test_many_jobs_are_looked_at_as_one(gateway: RunningGateway, make_nifti: Any) -> None:
    ids = [gateway.submit(make_nifti(seed=seed)) for seed in range(5)]
    for job_id in ids:
        gateway.finish(job_id)
    with opened(gateway) as inside, statements() as seen:
        assert set(job_views(inside, ids)) == set(ids)
    assert len(seen) == 2, seen


@contextmanager
def opened(gateway: RunningGateway) -> Iterator[Gateway]:
    one = Gateway.open(gateway.settings)
    try:
        yield one
    finally:
        one.close()
