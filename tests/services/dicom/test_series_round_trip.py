"""A volume written as a series and read again, whatever its orientation, tilt, order of files and compression."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from scipy.spatial.transform import Rotation

from imaging.geometry import to_canonical
from imaging.volume import Affine, CtVolume
from services.dicom.headers import decimal_strings
from services.dicom.series_reader import SourceSeries, read_series
from tests.services.dicom.made_series import axial_affine, edit, tilted_series

SHAPE_ZYX = (5, 34, 40)
SYNTAXES = [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]
turns = st.tuples(*[st.floats(-180, 180)] * 3)
tilts = st.one_of(st.just(0.0), st.floats(12, 40), st.floats(-40, -12))  # by more than a pixel over the stack


def turned_affine(angles: tuple[float, float, float]) -> Affine:
    affine = axial_affine((1.5, 0.8, 0.7))
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ affine[:3, :3]
    return affine


def linear_hu(points_lps_mm: np.ndarray) -> np.ndarray:
    return np.rint(points_lps_mm @ [5.0, -3.0, 4.0]).astype(np.int16)


def written_and_read(
    affine: Affine, *, tilt_degrees: float, syntax: UID, order: random.Random, reverse: bool
) -> SourceSeries:
    """Slices of the linear image where they lie, as files in some order."""
    _, y, x = SHAPE_ZYX
    with TemporaryDirectory() as directory:
        blank = CtVolume(np.zeros(SHAPE_ZYX, np.int16), affine)
        paths = tilted_series(Path(directory), tilt_degrees=tilt_degrees, volume=blank)
        rows, columns = np.mgrid[0:y, 0:x]
        in_plane = rows[..., None] * affine[:3, 1] + columns[..., None] * affine[:3, 2]
        for path in paths:

            def fill(dataset: Dataset) -> None:
                position = np.array([float(value) for value in dataset.ImagePositionPatient])
                if reverse:  # columns the other way, so that the normal points down the stack
                    position = position + affine[:3, 2] * (x - 1)
                    dataset.ImagePositionPatient = decimal_strings(position)
                    row, column = -affine[:3, 2] / 0.7, affine[:3, 1] / 0.8
                    dataset.ImageOrientationPatient = decimal_strings([*row, *column])
                    points = position + in_plane - 2 * columns[..., None] * affine[:3, 2]
                else:
                    points = position + in_plane
                dataset.PixelData = linear_hu(points).astype("<i2").tobytes()
                if syntax != ExplicitVRLittleEndian:
                    dataset.compress(syntax, generate_instance_uid=False)

            edit(path, fill)
        order.shuffle(paths)
        return read_series(paths)


@settings(deadline=None, max_examples=25, phases=[Phase.explicit, Phase.generate])  # shrinking files takes minutes
@given(
    angles=turns,
    tilt_degrees=tilts,
    syntax=st.sampled_from(SYNTAXES),
    order=st.randoms(use_true_random=False),
    reverse=st.booleans(),
)
def test_every_voxel_has_the_hu_of_its_place_in_the_patient(
    angles: tuple[float, float, float], tilt_degrees: float, syntax: UID, order: random.Random, reverse: bool
) -> None:
    affine = turned_affine(angles)
    source = written_and_read(affine, tilt_degrees=tilt_degrees, syntax=syntax, order=order, reverse=reverse)
    volume, _ = to_canonical(source.volume)
    assert sorted(volume.spacing_zyx_mm) == pytest.approx([0.7, 0.8, 1.5], abs=1e-4)
    assert bool(source.reasons) == (tilt_degrees != 0)
    expected = linear_hu(volume.point_lps_mm(np.moveaxis(np.indices(volume.shape_zyx), 0, -1)))
    same = np.abs(volume.hu.astype(int) - expected) <= 1
    if tilt_degrees == 0:
        assert same.all()
        return
    voxels_of_slices = int(np.prod(SHAPE_ZYX))
    border = SHAPE_ZYX[0] * 2 * (SHAPE_ZYX[1] + SHAPE_ZYX[2])
    assert same.sum() >= voxels_of_slices - 2 * border
    assert np.count_nonzero(~same & (volume.hu != -1024)) <= border  # between a slice's edge and the air beside it
