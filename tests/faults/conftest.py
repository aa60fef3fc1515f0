"""A PACS for all tests here, and systems beside it that may be broken."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import gateway, make_nifti, make_series, nifti, start_gateway  # noqa: F401
from tests.faults.pacs import CountingPacs, running_pacs
from tests.faults.small_disk import small_disk  # noqa: F401
from tests.faults.studies import Study, make_study
from tests.faults.system import System

StartSystem = Callable[..., System]
MakeStudies = Callable[[int], list[Study]]


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingPacs]:
    with running_pacs(tmp_path_factory.mktemp("pacs")) as running:
        yield running


@pytest.fixture
def start_system(tmp_path: Path, pacs: CountingPacs) -> Iterator[StartSystem]:
    """For tests that need settings of their own."""
    with ExitStack() as stack:

        def start(**options: Any) -> System:
            return stack.enter_context(System(tmp_path, pacs.orthanc, **options))

        yield start


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By how many seconds the wall clock of the shared system is shifted."""
    path = tmp_path_factory.mktemp("clock") / "shift_s"
    path.write_text("0")
    return path


@pytest.fixture(scope="session")
def shared_system(tmp_path_factory: pytest.TempPathFactory, pacs: CountingPacs, clock: Path) -> Iterator[System]:
    wrapper = ["tests/faults/shifted_clock.py", str(clock)]
    directory = tmp_path_factory.mktemp("system")
    with System(directory, pacs.orthanc, wrapper=wrapper, EMBOLENS_WORKER_DRAIN_S="8") as system:
        yield system


@pytest.fixture
def system(shared_system: System) -> Iterator[System]:
    """With one worker, whose jobs take a second, and a drain time of 8 s. Everything is up again after the test."""
    yield shared_system
    for part in list(shared_system.parts):
        if part.startswith("worker-") and part != "worker-1":
            shared_system.remove(part)
        elif not shared_system.is_up(part):
            shared_system.start(part)


@pytest.fixture
def make_studies(tmp_path: Path) -> MakeStudies:
    def make(count: int) -> list[Study]:
        return [make_study(tmp_path / "studies", random.randrange(2**31)) for _ in range(count)]

    return make
