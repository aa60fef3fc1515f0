"""One real slice in every transfer syntax in clinical use."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from services.dicomweb.frames import Frames
from services.dicomweb.instance_file import instance_file
from services.dicomweb.rendered import Rendering, rendered


@pytest.fixture(scope="module")
def one_slice(shared_data: Path) -> list[Frames]:
    found = [Frames(path) for path in sorted((shared_data / "hard_dicom/transfer_syntaxes_MISTER-CT").glob("*.dcm"))]
    assert len(found) >= 14
    return found


def test_it_looks_the_same_in_each(one_slice: list[Frames]) -> None:
    shown = [
        np.asarray(Image.open(BytesIO(rendered(frames, 0, Rendering("image/png"))))).astype(int)
        for frames in one_slice
        if frames.header.BitsAllocated == 16  # JPEG baseline holds 8 bits of it
    ]
    assert max(np.abs(one - shown[0]).mean() for one in shown) < 2


def test_it_is_decoded_to_what_its_header_says(one_slice: list[Frames]) -> None:
    for frames in one_slice:
        header = frames.header
        assert len(frames.decoded(0)) == header.Rows * header.Columns * header.BitsAllocated // 8


def test_it_is_transcoded_without_a_change_of_its_values(one_slice: list[Frames]) -> None:
    for frames in one_slice:
        given = b"".join(instance_file(frames.path, ExplicitVRLittleEndian, frames.transfer_syntax_uid))
        dataset = dcmread(BytesIO(given))
        np.testing.assert_array_equal(dataset.pixel_array, frames.meant(0), err_msg=frames.transfer_syntax_uid.name)
        assert dataset.PatientID == frames.header.PatientID
