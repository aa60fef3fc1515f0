from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging.errors import ConfigurationError
from imaging.findings import RESEARCH_USE_ONLY, Findings, Outcome
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from models.packages import default_package_directory, load_package
from tests.training.evaluation_records import record
from training.accuracy_report import ReportInputs, write_report
from training.case_record import CaseRecord
from training.comparison_picture import FOUND_RGB, PANEL_PX, TRUTH_RGB, write_comparison
from training.evaluation_scans import ANATOMIES, INSERTED, REAL, EvaluationScan
from training.recipe import Recipe

RECIPE = Path(__file__).parents[2] / "training/recipes/phantom-v3.toml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    folder = tmp_path_factory.mktemp("inputs")
    package = load_package(default_package_directory())

    def of(*arguments: object, **more: object) -> CaseRecord:
        return record(*arguments, package=package.sha256, **more)  # type: ignore[arg-type]

    picture = folder / "grown-1.png"
    Image.new("RGB", (4, 4)).save(picture)
    records = [
        of("1", (0.2, 2.0), [(0.9, 2), (0.8, 0), (0.3, 1)], dice=0.8, artery_dice=0.9, roi_recall=1.0),
        of("2", (12.0,), [(0.7, 1)], kind=ANATOMIES, dice=0.9, artery_dice=0.91, roi_recall=0.99),
        of("3", (), [(0.2, 0)], probability=0.2, artery_dice=0.92),
        of("LIDC", None, [(0.9, 0), (0.8, 0), (0.7, 0)], kind=REAL),
        of("crop", None, [(0.1, 0)], kind=REAL, artery_dice=0.7, artery_recall=0.8),
        of("in", (0.6,), [(0.9, 1)], kind=INSERTED),
        of("1", (0.2, 2.0), [(0.9, 2), (0.8, 0)], dice=0.7, variant="AANet alone"),
    ]
    return ReportInputs(records, package, Recipe.read(RECIPE), ["LIDC"], [picture], folder / "none")


@pytest.fixture(scope="module")
def report(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs") / "accuracy.md"
    write_report(inputs, path)
    return path


def test_the_report_says_what_it_is_about_and_what_it_is_not(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert RESEARCH_USE_ONLY in text
    assert "3 phantoms: 2 with 3 emboli, 1 without" in text
    assert "are not comparable" in text
    assert "nan" not in text


def test_aims_are_judged_by_what_was_measured(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert re.search(
        r"\| lesion sensitivity at 1 false positive per scan, 0 mm \| at least 0.9 \| 1.000 .*\| reached \|", text
    )
    assert "| findings in real CT `LIDC`, default threshold | at most 2 | 3 | **missed** |" in text
    assert "| artery Dice in real CT `crop` | at least 0.75 | 0.700 | **missed** |" in text
    assert "| embolus voxels inside the lung ROI, worst phantom | at least 1 | 0.990 | **missed** |" in text


def test_real_scans_say_whether_training_saw_them_and_where_the_findings_are(report: Path) -> None:
    rows = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    lidc, crop = rows
    assert lidc.startswith("| `LIDC` | yes | 3 |")
    assert lidc.count("at (1, 2, 3)") == 3
    assert crop.startswith("| `crop` | no | 0 | 0.700 | 0.800 |")


def test_tables_have_as_many_cells_in_every_row_as_in_their_head(report: Path) -> None:
    lines = report.read_text(encoding="utf-8").splitlines()
    for line, below in pairwise(lines):
        if line.startswith("|") and below.startswith("|"):
            assert line.count("|") == below.count("|"), below


def test_every_picture_the_report_shows_is_there(report: Path) -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", report.read_text(encoding="utf-8"))
    assert len(shown) == 2
    assert all((report.parent / name).is_file() for name in shown)


def test_the_curve_is_an_svg_whose_lines_rise(report: Path) -> None:
    root = ElementTree.parse(report.parent / "images/accuracy-froc.svg").getroot()
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 5
    for line in lines:
        heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
        assert heights == sorted(heights, reverse=True), "y runs down: sensitivity never falls"


def test_the_command_in_the_report_names_its_inputs_but_no_folder_of_this_machine(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "embolens evaluate --package models/weights/phantom-v3 --recipe training/recipes/phantom-v3.toml" in text
    assert "--anatomies ANATOMIES --real CHEST_CT --inserted INSERTED --cases 2 --negatives 1 --variants 1" in text


def test_records_of_another_package_make_no_report(inputs: ReportInputs, tmp_path: Path) -> None:
    stale = replace(inputs, records=[record("1", (1.0,), package="00")])
    with pytest.raises(ConfigurationError, match="not of package"):
        write_report(stale, tmp_path / "accuracy.md")


def test_real_scans_alone_make_no_report(inputs: ReportInputs, tmp_path: Path) -> None:
    only_real = [one for one in inputs.records if one.kind == REAL]
    with pytest.raises(ConfigurationError, match="no evaluated phantom"):
        write_report(replace(inputs, records=only_real), tmp_path / "accuracy.md")


def test_a_comparison_shows_the_truth_left_and_what_was_found_right(tmp_path: Path) -> None:
    embolus = np.zeros((5, 40, 50), np.uint16)
    embolus[3, 10:20, 10:20] = 1
    found = np.zeros_like(embolus)
    found[3, 25:35, 30:40] = 1
    volume = CtVolume(np.zeros(embolus.shape, np.int16), np.eye(4)[[2, 1, 0, 3]])
    nothing_reported = Findings(Outcome.NO_EMBOLUS, scan_probability=0.1, score_threshold=0.5)
    result = SegmentationResult(found, embolus > 0, nothing_reported)
    write_comparison(EvaluationScan("1", REAL, volume, embolus), result, tmp_path / "a/one.png")
    picture = np.asarray(Image.open(tmp_path / "a/one.png")).astype(int)
    left, right = picture[:, :PANEL_PX], picture[:, PANEL_PX + 4 :]
    green = (np.abs(left - TRUTH_RGB).sum(axis=2) < 60).any(axis=0)
    assert green.any()
    assert np.flatnonzero(green).max() < 0.5 * PANEL_PX
    assert not (np.abs(right - TRUTH_RGB).sum(axis=2) < 60).any()
    assert not (np.abs(right - FOUND_RGB).sum(axis=2) < 60).any(), "a candidate is not drawn as a finding"
