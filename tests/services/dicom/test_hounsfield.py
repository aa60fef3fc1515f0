from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from imaging.errors import NotAnalysable
from services.dicom.hounsfield import HU_UNIT
from services.dicom.series_reader import read_series
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import counting_volume, edit, removing, written_series


def real_world_map(unit: str, slope: float = 1.0, intercept: float = 0.0) -> Dataset:
    code, item = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = unit, "UCUM", unit
    item.MeasurementUnitsCodeSequence = [code]
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, intercept
    return item


def code_and_text(paths: list[Path]) -> tuple[str, str]:
    with pytest.raises(NotAnalysable) as refusal:
        read_series(paths)
    return refusal.value.code, refusal.value.message


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"RescaleType": "MGML"}, "RescaleType is MGML"),
        ({"RescaleType": "HU_MOD"}, "RescaleType is HU_MOD"),
        ({"RescaleType": "US", "RealWorldValueMappingSequence": [real_world_map("ml/100ml/s")]}, "ml/100ml/s"),
        ({"RealWorldValueMappingSequence": [real_world_map("mg/ml")]}, "mg/ml"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    ],
)
def test_values_that_are_no_hounsfield_units_are_refused(
    tmp_path: Path, attributes: dict[str, object], said: str
) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        edit(path, removing("RescaleType"))
        edit(path, lambda dataset: [setattr(dataset, keyword, value) for keyword, value in attributes.items()])
    code, text = code_and_text(paths)
    assert code == "pixels.not_hu"
    assert said in text
    assert "6 of 6" in text


@pytest.mark.parametrize("written", [b"-1024,0 ", b"one"])
def test_an_intercept_that_is_no_number_is_not_taken_for_zero(tmp_path: Path, written: bytes) -> None:
    paths = written_series(tmp_path)
    for path in paths:  # of the same length as before, so that the file stays whole
        content = path.read_bytes()
        element = b"\x28\x00\x52\x10DS\x02\x000 "
        assert element in content
        padded = written + b" " * (len(written) % 2)
        path.write_bytes(content.replace(element, element[:6] + len(padded).to_bytes(2, "little") + padded))
    assert code_and_text(paths)[0] == "pixels.not_hu"


def test_without_a_rescale_only_signed_values_are_taken_for_hu(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        edit(path, removing("RescaleSlope", "RescaleIntercept", "RescaleType"))
    np.testing.assert_array_equal(read_series(paths).volume.hu, counting_volume().hu)
    edit(paths[3], lambda dataset: setattr(dataset, "PixelRepresentation", 0))
    code, text = code_and_text(paths)
    assert (code, "1 of 6" in text) == ("pixels.not_hu", True)


@pytest.mark.parametrize("rescale", [True, False], ids=["beside an unspecified rescale", "alone"])
def test_a_map_to_hounsfield_units_is_applied(tmp_path: Path, rescale: bool) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        if not rescale:
            edit(path, removing("RescaleSlope", "RescaleIntercept", "RescaleType"))
        edit(path, lambda dataset: setattr(dataset, "RescaleType", "US"))
        mapping = [real_world_map(HU_UNIT, 2.0, 24.0)]
        edit(path, lambda dataset, mapping=mapping: setattr(dataset, "RealWorldValueMappingSequence", mapping))
    expected = np.maximum(counting_volume().hu * 2 + 24, -1024)
    np.testing.assert_array_equal(read_series(paths).volume.hu, expected)


def test_a_perfusion_map_in_an_enhanced_instance_is_refused(tmp_path: Path) -> None:
    path = written_multi_frame(counting_volume(), tmp_path / "enhanced.dcm", frame_order=range(6))

    def map_perfusion(dataset: Dataset) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        shared.PixelValueTransformationSequence[0].RescaleType = "US"
        shared.RealWorldValueMappingSequence = [real_world_map("ml/100ml/s")]

    edit(path, map_perfusion)
    assert code_and_text([path])[0] == "pixels.not_hu"
