"""Reading `/segment` while 200 people look at it, and how its cost grows with the jobs that there are."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from api.page_cursor import cursor_after
from benchmarks import machine
from benchmarks.gateway_process import GatewayProcess, running_gateway, wait_until_answers
from benchmarks.http_load import Latencies, Load, measured
from benchmarks.many_jobs import add_jobs
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.side_by_side import console, side_by_side
from services.accounts.key_store import KeyStore
from services.accounts.principal import Scope
from services.embedded_redis import free_port
from services.store.database import Database
from services.store.jobs import JobStore
from tests.services.store.postgresql import PostgreSql

CLIENTS = 200
SIZES = (1_000, 10_000, 100_000)
PAGE = 50
_THINK_S, _SECONDS = 1.0, 4.0
_ALONE_REQUESTS = 40
_GOAL_MS = 50.0
_SAME_COST = 1.25

_HOW = f"""
A gateway process as it is shipped, authentication on, {CLIENTS} clients with an API key and a connection each. A client
asks, takes the whole answer and thinks for 1 s on average (0 to 2 s): about {CLIENTS} requests/s, as {CLIENTS} open
worklist pages bring that look every 1.5 s at their busiest. Half of the requests are the first page of the list ({PAGE}
jobs, 60 kB), half are single jobs drawn from all. The database has 100,000 jobs with two deliveries each; 600 wait,
12 run. p99 is of all answers of {_SECONDS:g} s, from the first byte asked to the last byte answered; an error fails the
benchmark. "At once" is the same without thinking: what one gateway process can give. PostgreSQL runs beside it, on
a unix socket; client, gateway and database share the cores. The floor is a FastAPI route that answers hello on the
same server under the same load. Depth and growth: one client alone, the median of {_ALONE_REQUESTS} requests.
"""


@dataclass
class _Site:
    """A gateway with its database, and the ids of its jobs, oldest first."""

    gateway: GatewayProcess
    database: Database
    authorizations: tuple[str, ...]
    ids: list[str] = field(default_factory=list)

    def grow(self, jobs: int) -> None:
        self.ids += add_jobs(self.database, jobs - len(self.ids), all_together=jobs)

    def load(self, paths: Sequence[str], *, think_s: float) -> Latencies:
        return _without_errors(
            Load(
                port=self.gateway.port,
                paths=tuple(paths),
                authorizations=self.authorizations,
                clients=CLIENTS,
                think_s=think_s,
                seconds=_SECONDS if think_s else _SECONDS / 2,
            )
        )

    def mixed_paths(self) -> list[str]:
        chance = random.Random(1)
        return [f"/segment?limit={PAGE}"] * CLIENTS + [f"/segment/{one}" for one in chance.choices(self.ids, k=CLIENTS)]

    def alone_ms(self, *paths: str) -> float:
        """The median of one client's requests."""
        load = Load(
            port=self.gateway.port,
            paths=paths,
            authorizations=self.authorizations[:1],
            clients=1,
            think_s=0,
            seconds=30,
            requests=_ALONE_REQUESTS,
        )
        return _without_errors(load).percentile_ms(50)

    def page_at(self, place: float) -> str:
        """The path of the page that begins this far down the list: 0 the first, 1 the last."""
        behind = max(PAGE, round(len(self.ids) * (1 - place)))
        if place == 0:
            return f"/segment?limit={PAGE}"
        before = JobStore(self.database).get(self.ids[min(behind, len(self.ids) - 1)])
        return f"/segment?limit={PAGE}&cursor={cursor_after(before.created_at, before.id)}"


def measure(rounds: int) -> Page:
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        server = opened.enter_context(PostgreSql())
        sites = {
            "SQLite": opened.enter_context(_running_site(scratch / "sqlite", "")),
            "PostgreSQL": opened.enter_context(_running_site(scratch / "postgresql", server.url)),
        }
        growths = [growth for name, site in sites.items() for growth in _grow(name, site)]
        hello = opened.enter_context(_hello())
        ways: dict[str, Callable[[], float]] = {}
        for name, site in sites.items():
            ways[name] = partial(_p99_ms, site)
            ways[f"{name} at once"] = partial(_per_second, site)
        for name, site in sites.items():
            for depth, place in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):
                ways[f"{name} {depth}"] = partial(site.alone_ms, site.page_at(place))
        floors = {"p99": hello(_THINK_S).percentile_ms(99), "at once": hello(0).per_second}
        found = side_by_side(ways, rounds=rounds, unit="ms or requests/s")
    return Page(
        title="Reading /segment with 100,000 jobs",
        how=f"{_HOW}{machine.version('uvicorn')}, {machine.version('fastapi')}, {machine.version('sqlalchemy')}.",
        rows=tuple(row for name in sites for row in _rows(name, found, floors)),
        growths=tuple(growths),
    )


def _rows(name: str, found: dict[str, Figure], floors: dict[str, float]) -> Iterator[Row]:
    p99, first, last = found[name], found[f"{name} first"], found[f"{name} last"]
    yield Row(
        what=f"{name}: p99 of {CLIENTS} clients who ask once per second",
        unit="ms",
        higher_is_better=False,
        ours=p99,
        floor=Floor(value=floors["p99"], why="hello under the same load"),
        goals=(Goal(says=f"under {_GOAL_MS:g} ms", met=p99.median < _GOAL_MS),),
    )
    yield Row(
        what=f"{name}: answers to {CLIENTS} clients who ask at once",
        unit="requests/s",
        higher_is_better=True,
        ours=found[f"{name} at once"],
        floor=Floor(value=floors["at once"], why="hello under the same load"),
    )
    yield Row(
        what=f"{name}: the last page of 100,000 jobs, by one client alone",
        unit="ms",
        higher_is_better=False,
        ours=last,
        others=(
            Figure(name="our first page", samples=first.samples),
            Figure(name="our middle page", samples=found[f"{name} middle"].samples),
        ),
        goals=(Goal(says=f"at most {_SAME_COST:g} x the first page", met=last.median <= _SAME_COST * first.median),),
    )


def _grow(name: str, site: _Site) -> Iterator[Growth]:
    costs: dict[str, list[tuple[float, float]]] = {}
    for size in SIZES:
        site.grow(size)
        searched = f"/dicom-web/studies?StudyInstanceUID=1.2.826.0.1.3680043.8.498.{size // 2}"
        for what, paths in (
            ("first page", [site.page_at(0)]),
            ("page in the middle", [site.page_at(0.5)]),
            ("one job", [f"/segment/{one}" for one in random.Random(2).choices(site.ids, k=50)]),
            ("QIDO-RS for one study", [searched]),
        ):
            costs.setdefault(what, []).append((size, site.alone_ms(*paths)))
        console.print(f"  {name}, {size} jobs: " + ", ".join(f"{what} {one[-1][1]:.3g}" for what, one in costs.items()))
    for what, points in costs.items():
        yield Growth(what=f"{name}, {what}", size="jobs", unit="ms", points=tuple(points))


def _p99_ms(site: _Site) -> float:
    return site.load(site.mixed_paths(), think_s=_THINK_S).percentile_ms(99)


def _per_second(site: _Site) -> float:
    return site.load(site.mixed_paths(), think_s=0).per_second


def _without_errors(load: Load) -> Latencies:
    latencies = measured(load)
    assert not latencies.errors, f"{latencies.errors} answers were errors"
    return latencies


@contextmanager
def _running_site(directory: Path, database_url: str) -> Iterator[_Site]:
    directory.mkdir()
    # All clients are at one address and each of them is below the limit; the measurement at once is above it.
    with running_gateway(directory, DATABASE_URL=database_url, REQUESTS_PER_SECOND="0") as gateway:
        database = Database(database_url or f"sqlite:///{gateway.data_dir / 'embolens.sqlite'}")
        keys = KeyStore(database)
        made = [keys.create(f"client {number}", scopes=[Scope.READ])[1].text() for number in range(CLIENTS)]
        yield _Site(gateway, database, tuple(f"Bearer {key}" for key in made))
        database.close()


@contextmanager
def _hello() -> Iterator[Callable[[float], Latencies]]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.hello_server", str(port)])

    def ask(think_s: float) -> Latencies:
        seconds = _SECONDS if think_s else _SECONDS / 2
        return _without_errors(
            Load(port=port, paths=("/hello",), authorizations=("",), clients=CLIENTS, think_s=think_s, seconds=seconds)
        )

    try:
        wait_until_answers(f"http://127.0.0.1:{port}/hello", process)
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=20)
