from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from imaging.errors import Reason
from imaging.findings import RESEARCH_USE_ONLY, Findings, Outcome
from services.dicom.key_pictures import embolus_pictures, overview_picture, refusal_picture
from services.dicom.picture_panels import EMBOLUS_RGB, TEXT_RGB
from services.dicom.preview import preview_picture
from services.dicom.result_files import MOST_KEY_IMAGES, write_not_analysable, write_results
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import SopInstance
from services.dicom.series_reader import SourceSeries, read_series
from tests.services.dicom.checked_objects import dcentvfy_errors, dciodvfy_errors
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import IDENTITY, counting_volume, made_result, written_series

REFUSED = Findings(Outcome.NOT_ANALYSABLE, reasons=(Reason("geometry.missing_slices", "3 of 240 slices"),))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return written_series(tmp_path / "series")


def key_images(source: SourceSeries, directory: Path, *, emboli: int = 2) -> tuple[SopInstance, ...]:
    written = write_results(source, made_result(source.volume, emboli=emboli), directory, IDENTITY)
    return written.objects[ResultKind.KEY_IMAGES]


def shows(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=2).any())


@pytest.mark.parametrize("emboli", [0, 2])
def test_an_overview_and_a_picture_of_every_embolus_with_its_outline(
    files: list[Path], tmp_path: Path, emboli: int
) -> None:
    source = read_series(files)
    images = key_images(source, tmp_path / "result", emboli=emboli)
    assert len(images) == 1 + emboli
    assert len({one.sop_instance_uid for one in images}) == len(images)
    assert {one.series_instance_uid for one in images} == {IDENTITY.uid("key_images", "series")}
    assert dcentvfy_errors([*(one.path for one in images), *files]) == []
    for number, one in enumerate(images):
        image = pydicom.dcmread(one.path)
        assert dciodvfy_errors(one.path) == []
        assert image.SOPClassUID == SecondaryCaptureImageStorage
        assert shows(image.pixel_array, EMBOLUS_RGB) or not emboli
        assert "research use only" in image.SeriesDescription
        assert image.DerivationDescription == RESEARCH_USE_ONLY
        assert (image.PatientID, image.StudyInstanceUID) == ("PHANTOM-1", source.study_instance_uid)
        if number:  # embolus 1 peaks in slice 2, embolus 2 in slice 3
            (shown,) = image.SourceImageSequence
            assert shown.ReferencedSOPInstanceUID == source.sop_instance_uids[1 + number]


def test_a_multi_frame_source_has_key_images_too(tmp_path: Path) -> None:
    source = read_series(
        [written_multi_frame(counting_volume(), tmp_path / "enhanced.dcm", frame_order=[3, 0, 5, 1, 4, 2])]
    )
    images = key_images(source, tmp_path / "result")
    assert [dciodvfy_errors(one.path) for one in images] == [[], [], []]


def test_the_most_probable_emboli_have_pictures_where_there_are_many(files: list[Path], tmp_path: Path) -> None:
    source = read_series(files)
    made = made_result(source.volume, emboli=1)
    labelmap = np.zeros_like(made.embolus_labelmap)
    labelmap.reshape(-1)[1::7][:20] = np.arange(1, 21)
    lesions = tuple(replace(made.findings.lesions[0], id=number) for number in range(1, 21))
    result = replace(made, embolus_labelmap=labelmap, findings=replace(made.findings, lesions=lesions))
    written = write_results(source, result, tmp_path / "result", IDENTITY)
    assert len(written.objects[ResultKind.KEY_IMAGES]) == 1 + MOST_KEY_IMAGES
    assert dciodvfy_errors(written.objects[ResultKind.REPORT][0].path) == []


def test_repeated_work_writes_the_same_bytes(files: list[Path], tmp_path: Path) -> None:
    source = read_series(files)
    first = key_images(source, tmp_path / "first")
    time.sleep(1.1)  # everything DICOM takes from the clock is counted in seconds
    second = key_images(source, tmp_path / "second")
    assert [one.path.read_bytes() for one in first] == [one.path.read_bytes() for one in second]


def test_a_scan_that_was_not_analysable_has_one_picture_that_says_why(files: list[Path], tmp_path: Path) -> None:
    written = write_not_analysable(REFUSED, tmp_path / "result", IDENTITY, files)
    (image,) = written.objects[ResultKind.KEY_IMAGES]
    assert dciodvfy_errors(image.path) == []
    assert "not analysable" in pydicom.dcmread(image.path).SeriesDescription
    assert not shows(pydicom.dcmread(image.path).pixel_array, EMBOLUS_RGB)


def test_every_reason_is_in_the_picture() -> None:
    def lines(count: int) -> int:
        reasons = tuple(Reason(f"geometry.reason_{number}", "too little") for number in range(count))
        picture = np.asarray(refusal_picture(Findings(Outcome.NOT_ANALYSABLE, reasons=reasons)))
        written = (picture[60:] == TEXT_RGB).all(axis=2).any(axis=1)
        return int(np.count_nonzero(np.diff(written.astype(int)) == 1))

    assert [lines(1), lines(3), lines(40)] == [1, 3, 40]


def test_a_warning_stands_below_the_overview() -> None:
    volume = counting_volume()
    result = made_result(volume, emboli=0)
    preview = preview_picture(volume, result)
    warned = result.with_reasons([Reason("coverage.partial", "only 100 mm of lung in view")])
    below = np.asarray(overview_picture(preview, warned.findings))[preview.height :]
    assert shows(below, TEXT_RGB)
    assert overview_picture(preview, result.findings).size == preview.size


def test_the_slice_that_shows_most_of_an_embolus_is_shown() -> None:
    volume = counting_volume((12, 40, 40))
    made = made_result(volume, emboli=1)
    labelmap = np.zeros_like(made.embolus_labelmap)
    labelmap[3, 10:12, 10:12] = 1
    labelmap[4, 10:30, 10:30] = 1
    (picture,) = embolus_pictures(volume, replace(made, embolus_labelmap=labelmap), made.findings.lesions)
    outlined = np.argwhere((np.asarray(picture) == EMBOLUS_RGB).all(axis=2))
    assert np.ptp(outlined[:, 1]) > 0.4 * picture.width
