"""A PACS for all tests here, and systems beside it that may be broken."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.pacs import CountingPacs, running_pacs
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
    with ExitStack() as stack:

        def start(**options: Any) -> System:
            return stack.enter_context(System(tmp_path, pacs.orthanc, **options))

        yield start


@pytest.fixture
def make_studies(tmp_path: Path) -> MakeStudies:
    def make(count: int) -> list[Study]:
        return [make_study(tmp_path / "studies", random.randrange(2**31)) for _ in range(count)]

    return make
