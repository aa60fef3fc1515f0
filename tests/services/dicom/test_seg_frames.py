"""Our frames against those that highdicom makes of the same masks, byte for byte."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest

from imaging.result import SegmentationResult
from services.dicom import seg_frames
from services.dicom.reference_headers import reference_headers
from services.dicom.result_object import save_whole
from services.dicom.seg_options import SegOptions, SegType
from services.dicom.seg_writer import segment_numbers, segmentation_of, write_seg
from services.dicom.series_reader import SourceSeries, read_series
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import (
    IDENTITY,
    counting_volume,
    made_result,
    oblique_affine,
    tilted_series,
    written_series,
)


def _flipped(directory: Path) -> SourceSeries:
    affine = oblique_affine()
    affine[:3, 0] *= -1
    return read_series(written_series(directory, counting_volume(affine=affine)))


def _multi_frame(directory: Path) -> SourceSeries:
    volume = counting_volume(affine=oblique_affine())
    directory.mkdir()
    return read_series([written_multi_frame(volume, directory / "enhanced.dcm", frame_order=[3, 0, 5, 1, 4, 2])])


# Of 7 x 15 voxels a frame ends within a byte.
SOURCES: dict[str, Callable[[Path], SourceSeries]] = {
    "axial": lambda directory: read_series(written_series(directory)),
    "flipped": _flipped,
    "odd": lambda directory: read_series(written_series(directory, counting_volume((11, 7, 15)))),
    "tilted": lambda directory: read_series(tilted_series(directory, tilt_degrees=18.5)),
    "multi-frame": _multi_frame,
}
OPTIONS = [SegOptions(kind, artery) for kind in SegType for artery in (True, False)]


def by_highdicom_alone(
    source: SourceSeries, result: SegmentationResult, path: Path, options: SegOptions
) -> pydicom.Dataset:
    """Every frame handed to highdicom, as its documentation has it; written by pydicom."""
    headers = reference_headers(source)
    planes = source.on_slices(segment_numbers(result, options))
    if source.is_multi_frame:
        planes = planes[np.argsort(source.frame_indices)]
    made = segmentation_of(result.findings, IDENTITY, options, headers, planes)
    for sequence in (made.DimensionOrganizationSequence, made.DimensionIndexSequence):
        for item in sequence:
            item.DimensionOrganizationUID = IDENTITY.uid("seg", "dimension organization")
    voxels = made.NumberOfFrames * planes[0].size
    bytes_of_pixels = -(-voxels * made.BitsAllocated // 8)
    if bytes_of_pixels % 2:
        made.PixelData = made.PixelData[:bytes_of_pixels] + b"\0"  # PS3.5 section 6.2; highdicom pads with a "0"
    save_whole(made, headers[0], path)
    by_pydicom = BytesIO()
    made.save_as(by_pydicom, enforce_file_format=True)
    assert path.read_bytes() == by_pydicom.getvalue()
    return made


def with_full_probability(result: SegmentationResult) -> SegmentationResult:
    """What highdicom makes of a mask alone: 255 where a segment is."""
    return replace(result, lesion_probability=np.where(result.embolus_labelmap > 0, 255, 0).astype(np.uint8))


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SourceSeries:
    return SOURCES[request.param](tmp_path_factory.mktemp(request.param) / "series")


@pytest.mark.parametrize("options", OPTIONS, ids=lambda one: f"{one.type}-{'artery' if one.artery else 'emboli'}")
def test_the_file_is_the_one_that_highdicom_makes(tmp_path: Path, source: SourceSeries, options: SegOptions) -> None:
    for emboli in (0, 3) if options.has_artery else (1, 3):  # one segment, and several
        result = with_full_probability(made_result(source.volume, emboli=emboli))
        ours = write_seg(source, result, tmp_path / "ours.dcm", identity=IDENTITY, options=options)
        by_highdicom_alone(source, result, tmp_path / "theirs.dcm", options)
        assert ours.path.read_bytes() == (tmp_path / "theirs.dcm").read_bytes(), emboli


@pytest.mark.parametrize("options", [SegOptions(kind) for kind in (SegType.BINARY, SegType.LABELMAP)])
def test_masks_without_a_voxel_and_segments_without_one(
    tmp_path: Path, source: SourceSeries, options: SegOptions
) -> None:
    empty = made_result(source.volume, emboli=2)
    empty = replace(empty, artery=np.zeros_like(empty.artery), embolus_labelmap=np.zeros_like(empty.embolus_labelmap))
    absent = made_result(source.volume, emboli=3)
    absent.embolus_labelmap[absent.embolus_labelmap == 2] = 0
    scattered = made_result(source.volume, emboli=0)
    scattered.artery[2] = False
    for result in (empty, absent, scattered):
        ours = write_seg(source, result, tmp_path / "ours.dcm", identity=IDENTITY, options=options)
        by_highdicom_alone(source, result, tmp_path / "theirs.dcm", options)
        assert ours.path.read_bytes() == (tmp_path / "theirs.dcm").read_bytes()


def test_numbers_beyond_a_byte(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series"))
    template = made_result(source.volume, emboli=1)
    labelmap = np.zeros(source.volume.shape_zyx, dtype=np.uint16)
    labelmap.reshape(-1)[1::7][:300] = np.arange(1, 301)
    lesions = tuple(replace(template.findings.lesions[0], id=number) for number in range(1, 301))
    result = SegmentationResult(labelmap, template.artery, replace(template.findings, lesions=lesions))
    for options in (SegOptions(), SegOptions(SegType.LABELMAP)):
        ours = write_seg(source, result, tmp_path / "ours.dcm", identity=IDENTITY, options=options)
        by_highdicom_alone(source, result, tmp_path / "theirs.dcm", options)
        assert ours.path.read_bytes() == (tmp_path / "theirs.dcm").read_bytes()


def test_work_is_that_of_one_frame_whatever_the_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """highdicom makes one frame, pixels go to the file a few frames at a time."""
    seen = []
    real = segmentation_of

    def counted(*arguments: object) -> object:
        seen.append(arguments[-1].shape[0])  # type: ignore[attr-defined]
        return real(*arguments)  # type: ignore[arg-type]

    peaks = {}
    for slices in (20, 80):
        source = read_series(written_series(tmp_path / f"{slices}", counting_volume((slices, 256, 256))))
        artery = np.zeros(source.volume.shape_zyx, dtype=bool)
        artery[:, 100:120, 100:120] = True
        made = made_result(source.volume, emboli=2)
        numbers = segment_numbers(replace(made, artery=artery))
        tracemalloc.start()
        seg_frames.save_segmentation(
            source,
            numbers,
            tmp_path / "seg.dcm",
            partial(counted, made.findings, IDENTITY, SegOptions()),  # type: ignore[arg-type]
            dimension_organization_uid="2.25.1",
        )
        peaks[slices] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert pydicom.dcmread(tmp_path / "seg.dcm").NumberOfFrames == slices + 4
    assert seen == [1, 1]
    assert peaks[80] - peaks[20] < 60 * 256 * 256 // 8  # a part of what the packed frames take
