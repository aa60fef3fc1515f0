"""A running listener on a fresh data directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.database import Database
from tests.services.ingest.peers import QUIET_S, Receiving


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return Settings(data_dir=tmp_path / "data", redis_url=redis_url, dicom_port=0, series_quiet_s=QUIET_S)


@pytest.fixture
def rules() -> IntakeRules:
    return IntakeRules(min_slices=2)


@pytest.fixture
def receiving(settings: Settings, database: Database, rules: IntakeRules) -> Iterator[Receiving]:
    running = Receiving(settings, database, rules)
    yield running
    running.stop()
