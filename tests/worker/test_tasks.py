from __future__ import annotations

from pathlib import Path

import pytest

import models.cascade
from services.chosen_package import choose_package
from services.settings import Settings
from tests.worker.threshold_worker import ThresholdSegmenter
from worker.tasks import load_cascade


def test_a_worker_loads_the_setting_s_package_else_the_chosen_one_else_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path | None] = []

    class Loaded(ThresholdSegmenter):
        device = "cpu"

    def load(package: Path | None, **options: object) -> Loaded:
        loaded.append(package)
        return Loaded()

    monkeypatch.setattr(models.cascade.Cascade, "load", load)
    chosen, given = tmp_path / "chosen", tmp_path / "given"
    chosen.mkdir()
    settings = Settings(data_dir=tmp_path / "data")

    load_cascade(settings)
    choose_package(settings.data_dir, chosen)
    load_cascade(settings)
    load_cascade(Settings(data_dir=settings.data_dir, package_dir=given))

    assert loaded == [None, chosen, given]
