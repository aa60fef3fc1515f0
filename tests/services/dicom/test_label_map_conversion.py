"""Label maps to DICOM SEG and back: the same label in the same place, or nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from imaging.errors import InputError
from imaging.volume import CtVolume
from services.dicom.conversion import label_map_to_seg, seg_to_label_map
from services.dicom.conversion_options import Drawn, LabelSegOptions
from services.dicom.input_reader import read_input
from services.dicom.label_nifti import nifti_of, save_nifti
from services.dicom.seg_options import SegType
from services.dicom.seg_reader import read_seg
from services.dicom.series_reader import SourceSeries
from tests.services.dicom.checked_objects import dcentvfy_errors, dciodvfy_errors
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import (
    axial_affine,
    counting_volume,
    oblique_affine,
    tilted_series,
    written_series,
)
from tests.services.dicom.test_conversion import AFFINES
from tests.services.dicom.test_seg_writer import read_by_dcmqi, read_by_highdicom


def written_labels(path: Path, labels: NDArray[np.uint16], affine_lps: NDArray[np.float64]) -> Path:
    save_nifti(nifti_of(labels, affine_lps), path)
    return path


def labels_in(path: Path) -> NDArray[np.int64]:
    return np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0).astype(np.int64)


def two_blocks(shape_zyx: tuple[int, int, int] = (6, 15, 23)) -> NDArray[np.uint16]:
    labels = np.zeros(shape_zyx, dtype=np.uint16)
    labels[1:3, 4:8, 3:7], labels[4, 7:9, 9:20] = 1, 2
    return labels


@pytest.fixture
def series(tmp_path: Path) -> Path:
    written_series(tmp_path / "series", counting_volume((6, 15, 23)))
    return tmp_path / "series"


@st.composite
def label_maps(draw: st.DrawFn) -> NDArray[np.uint16]:
    """Mostly of a number of pixels that is no multiple of 8, with slices that hold nothing."""
    shape = draw(st.tuples(st.integers(3, 6), st.integers(3, 19), st.integers(3, 21)))
    labels = draw(arrays.arrays(np.uint16, shape, elements=st.integers(0, 3)))
    labels[draw(st.integers(0, shape[0] - 1))] = 0
    labels.flat[draw(st.integers(0, labels.size - 1))] = 1
    return labels


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    labels=label_maps(),
    kind=st.sampled_from(SegType),
    lies=st.sampled_from([*AFFINES, "tilted", "multi-frame", "tilted multi-frame"]),
    flips=st.sets(st.integers(0, 2)),
    axes=st.permutations([0, 1, 2]),
)
def test_every_label_comes_back_to_its_voxel(
    labels: NDArray[np.uint16], kind: SegType, lies: str, flips: set[int], axes: list[int]
) -> None:
    with TemporaryDirectory() as directory:
        folder = Path(directory)
        volume = CtVolume(counting_volume(labels.shape).hu, AFFINES.get(lies, oblique_affine()))
        series = folder / "series"
        if "multi-frame" in lies:
            series.mkdir()
            order = [*range(1, len(labels)), 0]
            tilt = 18.5 if "tilted" in lies else 0.0
            written_multi_frame(volume, series / "1.dcm", frame_order=order, tilt_degrees=tilt)
        elif lies == "tilted":
            tilted_series(series, tilt_degrees=18.5, volume=volume)
        else:
            written_series(series, volume)
        source = read_input(series)
        assert isinstance(source, SourceSeries)
        expected = np.zeros(source.volume.shape_zyx, dtype=np.uint16)
        expected[:, : labels.shape[1], : labels.shape[2]] = labels
        if source.sheared is not None:  # what lies beside the slices cannot come back
            expected = source.sheared.onto_grid(source.on_slices(expected))
        numbers = sorted(set(np.unique(expected)) - {0})
        if not numbers:
            return
        expected = np.searchsorted([0, *numbers], expected)
        # the label map of the same grid, stored in another order of axes
        affine = source.volume.affine_lps.copy()
        for axis in flips:
            affine[:3, 3] += affine[:3, axis] * (expected.shape[axis] - 1)
            affine[:3, axis] *= -1
        stored = np.flip(expected, tuple(flips)).transpose(axes)
        label_map = written_labels(folder / "labels.nii", stored.astype(np.uint16), affine[:, [*axes, 3]])

        label_map_to_seg(label_map, series, folder / "seg.dcm", options=LabelSegOptions(type=kind))

        np.testing.assert_array_equal(read_seg(folder / "seg.dcm", series=source).labels, expected)
        seg_to_label_map(folder / "seg.dcm", folder / "back.nii", series=series)
        np.testing.assert_array_equal(labels_in(folder / "back.nii"), expected)
        if source.sheared is None and kind is not SegType.FRACTIONAL:
            np.testing.assert_array_equal(read_by_highdicom(folder / "seg.dcm", source.volume), expected)
        alone = read_seg(folder / "seg.dcm")
        assert np.count_nonzero(alone.labels) == np.count_nonzero(expected)
        if source.sheared is None:
            index = source.volume.index_zyx(
                np.argwhere(alone.labels) @ alone.affine_lps[:3, :3].T + alone.affine_lps[:3, 3]
            )
            np.testing.assert_allclose(index, np.rint(index), atol=0.05)
            np.testing.assert_array_equal(expected[tuple(np.rint(index).astype(int).T)], alone.labels[alone.labels > 0])


@pytest.mark.parametrize("affine", [axial_affine(), oblique_affine()], ids=["axial", "oblique"])
@pytest.mark.parametrize("shape_zyx", [(6, 15, 23), (5, 17, 19)], ids=["15 x 23", "17 x 19"])
def test_dcmqi_reads_frames_of_odd_sizes_onto_the_same_voxels(
    tmp_path: Path, affine: NDArray[np.float64], shape_zyx: tuple[int, int, int]
) -> None:
    volume = counting_volume(shape_zyx, affine)
    written_series(tmp_path / "series", volume)
    labels = two_blocks(shape_zyx)
    label_map_to_seg(
        written_labels(tmp_path / "labels.nii.gz", labels, affine), tmp_path / "series", tmp_path / "seg.dcm"
    )
    np.testing.assert_array_equal(read_by_dcmqi(tmp_path / "seg.dcm", volume, tmp_path / "dcmqi"), labels)


def test_the_seg_is_valid_and_says_what_was_drawn_by_whom(series: Path, tmp_path: Path) -> None:
    label_map = written_labels(tmp_path / "labels.nii", two_blocks(), axial_affine())
    options = LabelSegOptions(drawn=Drawn.EMBOLUS, algorithm="other network")
    for name in ("one.dcm", "two.dcm"):
        assert label_map_to_seg(label_map, series, tmp_path / name, options=options) == ()
    assert dciodvfy_errors(tmp_path / "one.dcm") == []
    assert dcentvfy_errors([tmp_path / "one.dcm", *series.iterdir()]) == []
    first, second = (segment for segment in pydicom.dcmread(tmp_path / "one.dcm").SegmentSequence)
    assert (first.SegmentLabel, second.SegmentLabel) == ("Label 1", "Label 2")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "55584005"
    assert (first.SegmentAlgorithmType, first.SegmentAlgorithmName) == ("AUTOMATIC", "other network")
    assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()


def test_another_grid_is_refused_with_both_or_resampled_on_demand(series: Path, tmp_path: Path) -> None:
    coarse = np.zeros((3, 15, 23), dtype=np.uint16)
    coarse[1, 4:8, 3:7] = 1
    affine = axial_affine((5.0, 0.8, 0.7))
    affine[2, 3] += 1.25  # a coarse slice lies in the middle of two
    label_map = written_labels(tmp_path / "labels.nii", coarse, affine)
    with pytest.raises(
        InputError, match=r"23 x 15 x 3 voxels of 0\.700 x 0\.800 x 5\.000 mm.*23 x 15 x 6 voxels"
    ) as no:
        label_map_to_seg(label_map, series, tmp_path / "seg.dcm")
    assert no.value.code == "geometry.grid_differs"
    assert not (tmp_path / "seg.dcm").exists()
    warnings = label_map_to_seg(label_map, series, tmp_path / "seg.dcm", resample=True)
    assert [warning.code for warning in warnings] == ["geometry.resampled"]
    seg_to_label_map(tmp_path / "seg.dcm", tmp_path / "back.nii", series=series)
    expected = np.zeros((6, 15, 23))
    expected[2:4, 4:8, 3:7] = 1
    np.testing.assert_array_equal(labels_in(tmp_path / "back.nii"), expected)


def test_labels_with_gaps_become_segments_named_after_them(series: Path, tmp_path: Path) -> None:
    labels = two_blocks() * 7
    warnings = label_map_to_seg(
        written_labels(tmp_path / "labels.nii", labels, axial_affine()), series, tmp_path / "seg.dcm"
    )
    assert [warning.code for warning in warnings] == ["segments.renumbered"]
    found = read_seg(tmp_path / "seg.dcm")
    assert found.segments == {1: "Label 7", 2: "Label 14"}


@pytest.mark.parametrize(
    ("value", "code"), [(0, "input.no_labels"), (-1, "input.not_labels"), (0.5, "input.not_labels")]
)
def test_what_is_no_label_map_is_refused(series: Path, tmp_path: Path, value: float, code: str) -> None:
    image = SimpleITK.GetImageFromArray(np.full((6, 15, 23), value, dtype=np.float32))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10, -20, 30))
    SimpleITK.WriteImage(image, str(tmp_path / "labels.nrrd"))
    with pytest.raises(InputError) as refusal:
        label_map_to_seg(tmp_path / "labels.nrrd", series, tmp_path / "seg.dcm")
    assert refusal.value.code == code


def test_a_ct_is_no_label_map(series: Path, tmp_path: Path) -> None:
    hu = np.arange(6 * 15 * 23, dtype=np.uint16).reshape(6, 15, 23)
    with pytest.raises(InputError, match="2069 different values, at most 1000"):
        label_map_to_seg(written_labels(tmp_path / "ct.nii", hu, axial_affine()), series, tmp_path / "seg.dcm")


def test_labels_beside_the_slices_of_a_tilted_series_are_told(tmp_path: Path) -> None:
    tilted_series(tmp_path / "series", tilt_degrees=18.5)
    grid = read_input(tmp_path / "series").volume
    labels = np.ones(grid.shape_zyx, dtype=np.uint16)
    warnings = label_map_to_seg(
        written_labels(tmp_path / "labels.nii", labels, grid.affine_lps), tmp_path / "series", tmp_path / "seg.dcm"
    )
    assert [warning.code for warning in warnings] == ["geometry.resampled", "segments.beside_slices"]
    assert np.count_nonzero(read_seg(tmp_path / "seg.dcm").labels) == 6 * 16 * 24


def test_a_seg_of_other_images_is_refused_over_a_series(series: Path, tmp_path: Path) -> None:
    written_series(tmp_path / "other", counting_volume((6, 15, 23), axial_affine(origin_lps_mm=(-10.3, -20, 30))))
    label_map = written_labels(tmp_path / "labels.nii", two_blocks(), axial_affine())
    label_map_to_seg(label_map, series, tmp_path / "seg.dcm")
    with pytest.raises(InputError) as refusal:
        seg_to_label_map(tmp_path / "seg.dcm", tmp_path / "back.nii", series=tmp_path / "other")
    assert refusal.value.code == "geometry.grid_differs"
    shutil.rmtree(series)
    with pytest.raises(InputError) as refusal:
        read_seg(tmp_path / "labels.nii")
    assert refusal.value.code == "input.not_dicom"
