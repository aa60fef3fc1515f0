"""The rules on their own, and the shipped ones on the series of a usual study."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.dicom.series_reader import SeriesInfo, inspect_headers
from services.ingest.intake_rules import IntakeRules
from services.ingest.series_selection import SelectionRule, ranked
from services.settings import Settings
from tests.services.ingest.peers import ct_series, save

SHIPPED = IntakeRules.load(Settings().intake_rules).selection

ANGIOGRAM = {
    "description": "CTPA 1.0 Br40", "kernel": "Br40d\\3", "image_type": "ORIGINAL\\PRIMARY\\AXIAL",
    "contrast_agent": "IOMEPROL", "orientation": "axial", "slice_thickness_mm": 1.0, "slice_spacing_mm": 0.8,
}  # fmt: skip


def series(uid: str, **changed: object) -> SeriesInfo:
    usual: dict[str, object] = {
        "patient_id": "", "study_instance_uid": "1.2", "series_instance_uid": uid, "modality": "CT",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "count": 300, "rows": 512, "columns": 512, "paths": (),
    }  # fmt: skip
    return SeriesInfo(**(usual | ANGIOGRAM | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changed",
    [
        {"description": "Lung 1.0 Bl57", "kernel": "Bl57d\\3", "count": 320},
        {"description": "Thorax 5.0", "slice_thickness_mm": 5.0, "slice_spacing_mm": 5.0, "count": 70},
        {"description": "CTPA cor", "orientation": "coronal", "image_type": "DERIVED\\SECONDARY\\MPR", "count": 400},
        {"description": "Thorax nativ 1.0", "contrast_agent": ""},
        {"description": "Abdomen venous 1.0", "count": 500},
        {"description": "CTPA MIP", "image_type": "DERIVED\\SECONDARY\\AXIAL\\MIP"},
        {"description": "Iodine map", "image_type": "DERIVED\\SECONDARY\\IODINE"},
    ],
)
def test_the_shipped_rules_prefer_the_angiogram(changed: dict[str, object]) -> None:
    best, other = ranked([series("1.2.1", **changed), series("1.2.9")], SHIPPED)
    assert best.series.series_instance_uid == "1.2.9"
    assert best.points > other.points
    assert best.because.startswith("described as a pulmonary angiogram +4, contrast agent named +2, axial +2")


def test_among_equals_more_slices_and_then_the_smaller_uid_win() -> None:
    given = [series("1.3"), series("1.2"), series("1.4", count=301)]
    assert [one.series.series_instance_uid for one in ranked(given, SHIPPED)] == ["1.4", "1.2", "1.3"]
    assert [one.series.series_instance_uid for one in ranked(given, ())] == ["1.4", "1.2", "1.3"]
    assert ranked(given, ())[0].because == "no rule met"


def test_an_attribute_that_is_not_there_meets_no_rule() -> None:
    thin = SelectionRule(attribute="slice_thickness_mm", at_most=1.5, points=3, because="thin")
    anything = SelectionRule(attribute="kernel", matches="", points=1, because="a kernel")
    (scored,) = ranked([series("1.2", slice_thickness_mm=None, kernel="")], [thin, anything])
    assert scored.points == 0


@pytest.mark.parametrize(
    "rule",
    [
        {"attribute": "kernel", "at_least": 1.0},
        {"attribute": "slices", "matches": "1"},
        {"attribute": "slices"},
        {"attribute": "kernel", "matches": "("},
        {"attribute": "patient_name", "matches": "x"},
    ],
)
def test_a_rule_that_can_never_hold_is_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SelectionRule.model_validate({**rule, "points": 1, "because": "so"})


def test_headers_tell_what_the_rules_ask_for(tmp_path: Path) -> None:
    slices = ct_series(3, ConvolutionKernel=["Br40d", "3"], ContrastBolusAgent="IOHEXOL", SliceThickness="1.25")
    (info,) = inspect_headers(save(slices, tmp_path)).series
    assert (info.kernel, info.contrast_agent, info.slice_thickness_mm) == ("Br40d\\3", "IOHEXOL", 1.25)
    assert info.orientation == "axial"
    for cosines, plane in (([1, 0, 0, 0, 0, -1], "coronal"), ([0, 1, 0, 0, 0, -1], "sagittal")):
        turned = ct_series(2, ImageOrientationPatient=cosines)
        assert inspect_headers(save(turned, tmp_path / plane)).series[0].orientation == plane
    oblique = ct_series(2, ImageOrientationPatient=[1, 0, 0, 0, 0.7071068, 0.7071068])
    assert inspect_headers(save(oblique, tmp_path / "oblique")).series[0].orientation == "oblique"
