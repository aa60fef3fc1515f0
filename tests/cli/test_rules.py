from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Embolens
from tests.services.ingest.peers import ct_series, save


def test_every_series_of_a_folder_is_judged_with_its_reasons(embolens: Embolens, tmp_path: Path) -> None:
    study = tmp_path / "study"
    native = ct_series(24)
    angiogram = ct_series(24, StudyInstanceUID=native[0].StudyInstanceUID, ContrastBolusAgent="IOHEXOL")
    scout = ct_series(2, StudyInstanceUID=native[0].StudyInstanceUID, SeriesDescription="Scout")
    for index, series in enumerate((native, angiogram, scout)):
        save(series, study / str(index))
    (study / "readme.txt").write_text("from the archive")
    finished = embolens("rules", "test", study)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    first = {
        name: next(number for number, line in enumerate(lines) if str(series[0].SeriesInstanceUID) in line)
        for name, series in (("angiogram", angiogram), ("native", native), ("scout", scout))
    }
    assert first["angiogram"] < first["native"] < first["scout"]
    assert "yes, routine" in finished.stdout
    assert "contrast agent named +2" in " ".join(finished.stdout.split())
    assert "intake.too_few_slices" in finished.stdout


def test_a_rule_that_is_none_is_named(embolens: Embolens, tmp_path: Path) -> None:
    save(ct_series(2), tmp_path / "study")
    (tmp_path / "own.toml").write_text("[[selection]]\nattribute = 'colour'\npoints = 1\nbecause = 'so'\n")
    finished = embolens("rules", "test", tmp_path / "study", "--rules", tmp_path / "own.toml")
    assert finished.returncode == 1
    assert "selection.0.attribute" in finished.stderr
