"""SEG and SR by other makers, where ../shared/data has them: the same voxels as highdicom and dcmqi find."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK

from imaging.errors import InputError, NotAnalysable
from services.dicom.input_reader import read_input
from services.dicom.seg_reader import SourceSeg, read_seg
from services.dicom.seg_writer import write_seg
from services.dicom.series_reader import SourceSeries, read_series
from services.dicom.sr_writer import write_sr
from tests.services.dicom.made_series import IDENTITY, REAL_DATA, edit, made_result, removing, written_series
from tests.services.dicom.test_seg_writer import SEGIMAGE2ITKIMAGE

SEG_DATA = REAL_DATA / "seg"
needs_seg_data = pytest.mark.skipif(not SEG_DATA.is_dir(), reason="../shared/data/seg is absent")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every SEG in ../shared/data/seg, and in dcmqi's the series that they lie on."""
    directory = tmp_path_factory.mktemp("foreign")
    for archive in SEG_DATA.rglob("*.zip"):
        with zipfile.ZipFile(archive) as files:
            files.extractall(directory)
    for file in (SEG_DATA / "highdicom").glob("seg*.dcm"):
        (directory / file.name).symlink_to(file.resolve())
    return directory


def points(labels: np.ndarray, affine_lps: np.ndarray) -> np.ndarray:
    """Where the voxels lie, to a tenth of a millimetre, as sorted whole numbers."""
    tenths_mm = np.rint((np.argwhere(labels) @ affine_lps[:3, :3].T + affine_lps[:3, 3]) * 10).astype(np.int64)
    return np.sort(tenths_mm @ [1 << 40, 1 << 20, 1])


def points_of(found: SourceSeg, number: int) -> np.ndarray:
    return points(found.labels == number, found.affine_lps)


FOREIGN = {
    "seg_image_ct_binary.dcm": 1,
    "seg_image_ct_binary_overlap.dcm": 2,
    "seg_image_ct_binary_fractional.dcm": 1,
    "seg_image_ct_binary_single_frame.dcm": 1,
    "seg_image_ct_true_fractional.dcm": 1,
    "liver.dcm": 1,
    "partial_overlaps.dcm": 5,
    "ai_Lung_Dx-A0014_20080924_0.seg.dcm": 2,
}


@needs_seg_data
@pytest.mark.parametrize(("name", "segments"), FOREIGN.items())
def test_highdicom_finds_each_segment_on_the_same_voxels(foreign: Path, name: str, segments: int) -> None:
    path = next(file for file in foreign.rglob(name) if file.is_file())
    stored = highdicom.seg.segread(path)
    assert stored.number_of_segments == segments
    for number in range(1, segments + 1):
        ours = read_seg(path, only_segment=number)
        theirs = stored.get_volume(segment_numbers=[number])
        inside = theirs.array[..., 0] >= 0.5
        assert inside.any()
        np.testing.assert_array_equal(points_of(ours, number), points(inside, theirs.affine))


@needs_seg_data
@pytest.mark.parametrize("name", ["liver.dcm", "partial_overlaps.dcm", "ai_Lung_Dx-A0014_20080924_0.seg.dcm"])
def test_dcmqi_finds_each_segment_on_the_same_voxels(foreign: Path, tmp_path: Path, name: str) -> None:
    path = next(file for file in foreign.rglob(name) if file.is_file())
    command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", path, "--outputDirectory", tmp_path, "--outputType", "nrrd"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=100)
    for file in tmp_path.glob("*.nrrd"):
        image = SimpleITK.ReadImage(str(file))
        affine = np.eye(4)
        steps = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, :3], affine[:3, 3] = steps[:, ::-1], image.GetOrigin()
        theirs = SimpleITK.GetArrayFromImage(image) > 0
        number = int(file.stem)
        assert theirs.any()
        np.testing.assert_array_equal(points_of(read_seg(path, only_segment=number), number), points(theirs, affine))


@needs_seg_data
def test_a_foreign_seg_lies_on_the_grid_of_its_series(foreign: Path) -> None:
    path = next(foreign.rglob("liver.dcm"))
    series = read_series(sorted((path.parent / "ct-3slice").iterdir()))
    found = read_seg(path, series=series)
    assert found.labels.shape == series.volume.shape_zyx
    np.testing.assert_array_equal(points_of(found, 1), points_of(read_seg(path), 1))


@needs_seg_data
@pytest.mark.parametrize("name", ["seg_image_ct_binary_overlap.dcm", "partial_overlaps.dcm"])
def test_segments_that_share_voxels_are_refused_as_one_label_map(foreign: Path, name: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_seg(next(foreign.rglob(name)))
    assert (refusal.value.code, refusal.value.remedy) == ("segments.overlap", "take one segment at a time")


@needs_seg_data
def test_the_report_of_another_maker_is_built_of_the_same_templates_as_ours(tmp_path: Path) -> None:
    """Comprehensive 3D, TID 1500, planar or volumetric groups with tracking identifiers and measurements."""
    source = read_input(written_series(tmp_path / "series"))
    assert isinstance(source, SourceSeries)
    result = made_result(source.volume)
    seg = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY)
    write_sr(source, result, seg, tmp_path / "sr.dcm", identity=IDENTITY)
    ours, theirs = (highdicom.sr.srread(path) for path in (tmp_path / "sr.dcm", SEG_DATA / "highdicom/sr_document.dcm"))
    for report in (ours, theirs):
        assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
        root = report.content
        assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
        groups = [*root.get_planar_roi_measurement_groups(), *root.get_volumetric_roi_measurement_groups()]
        assert groups
        assert all(group.tracking_uid and group.get_measurements() for group in groups)
        assert {"126010", "125007"} <= _concepts(report)  # Imaging Measurements, Measurement Group


def _concepts(report: pydicom.Dataset) -> set[str]:
    """Code values of the concept names down to the measurement groups."""
    found, items = set(), [report]
    for _ in range(3):
        items = [child for item in items for child in item.get("ContentSequence", [])]
        found |= {item.ConceptNameCodeSequence[0].CodeValue for item in items if "ConceptNameCodeSequence" in item}
    return found


@pytest.fixture
def own(tmp_path: Path) -> Path:
    source = read_input(written_series(tmp_path / "series"))
    assert isinstance(source, SourceSeries)
    return write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path


def test_frames_without_a_place_are_refused(own: Path) -> None:
    edit(own, lambda seg: removing("PlaneOrientationSequence")(seg.SharedFunctionalGroupsSequence[0]))
    with pytest.raises(NotAnalysable, match="have no position, orientation or pixel spacing"):
        read_seg(own)


def test_frames_of_a_segment_that_is_not_described_are_refused(own: Path) -> None:
    edit(own, lambda seg: setattr(seg, "SegmentSequence", seg.SegmentSequence[:1]))
    with pytest.raises(InputError, match="segment 2 is not described"):
        read_seg(own)


def test_pixel_data_cut_short_are_refused(own: Path) -> None:
    edit(own, lambda seg: setattr(seg, "PixelData", seg.PixelData[:-100]))
    with pytest.raises(NotAnalysable) as refusal:
        read_seg(own)
    assert refusal.value.code == "pixels.unreadable"


def test_a_ct_image_is_no_seg(own: Path) -> None:
    with pytest.raises(InputError) as refusal:
        read_seg(own.parent / "series/000001.dcm")
    assert refusal.value.code == "input.not_seg"
