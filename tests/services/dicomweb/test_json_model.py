"""Data sets as JSON, odd values included."""

from __future__ import annotations

from io import BytesIO

from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from services.dicomweb.json_model import as_bytes, json_model
from tests.services.ingest.peers import ct_series


def test_a_malformed_value_costs_only_itself() -> None:
    (one,) = ct_series(1, SliceThickness="1.25")
    written = BytesIO()
    one.save_as(written, enforce_file_format=True)
    content = written.getvalue().replace(b"1.25", b"1,2x")
    model = json_model(dcmread(BytesIO(content)))
    assert model["00180050"] == {"vr": "DS"}
    assert model["00100020"] == {"vr": "LO", "Value": ["PHI-4711"]}


def test_big_values_are_named_and_small_ones_repeated() -> None:
    dataset = Dataset()
    dataset.add_new(0x00420011, "OB", b"%PDF" * 1000)
    dataset.add_new(0x00282000, "OB", b"icc!")
    model = json_model(dataset, lambda tag: f"https://embolens.example/{tag}")
    assert model["00420011"] == {"vr": "OB", "BulkDataURI": "https://embolens.example/00420011"}
    assert model["00282000"] == {"vr": "OB", "InlineBinary": "aWNjIQ=="}
    assert as_bytes(model).startswith(b'{"00282000":{"vr":"OB"')


def test_an_element_whose_vr_is_damaged_hides_no_other() -> None:
    dataset = Dataset()
    dataset.PatientID = "1"
    dataset[0x00400275] = RawDataElement(Tag(0x00400275), "S\xd1", 4, b"abcd", 0, False, True)
    assert json_model(dataset) == {
        "00100020": {"vr": "LO", "Value": ["1"]},
        "00400275": {"vr": "UN"},
    }
