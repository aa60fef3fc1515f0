from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.sheared_stack import AIR_HU, ShearedStack, shear_degrees
from imaging.volume import Affine, CtVolume

SHAPE_ZYX = (7, 12, 16)


def tilted_affine(tilt_degrees: float, sideways_degrees: float = 0.0) -> Affine:
    """Axial slices of 0.8 x 0.7 mm, 2.5 mm apart along their normal, that drift along rows and columns."""
    affine = np.eye(4)
    drift_mm = 2.5 * np.tan(np.radians([sideways_degrees, tilt_degrees]))
    affine[:3, 0] = [*drift_mm, 2.5]
    affine[:3, 1] = [0, 0.8, 0]
    affine[:3, 2] = [0.7, 0, 0]
    affine[:3, 3] = [-10, -20, 30]
    return affine


def points_of(affine: Affine, shape_zyx: tuple[int, int, int]) -> np.ndarray:
    return np.moveaxis(np.indices(shape_zyx), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def linear_hu(points_lps_mm: np.ndarray) -> np.ndarray:
    """What linear interpolation gives back exactly, but for rounding."""
    return np.rint(points_lps_mm @ [3.0, -2.0, 4.0]).astype(np.int16)


@settings(deadline=None, max_examples=50)
@given(tilt=st.floats(-45, 45), sideways=st.floats(-45, 45))
def test_every_voxel_of_the_grid_has_the_hu_of_its_place_in_the_patient(tilt: float, sideways: float) -> None:
    acquired = tilted_affine(tilt, sideways)
    stack, affine = ShearedStack.of(acquired, SHAPE_ZYX)
    volume = CtVolume(stack.straightened(linear_hu(points_of(acquired, SHAPE_ZYX))), affine)
    assert volume.shape_zyx == stack.grid_shape_zyx
    assert volume.spacing_zyx_mm == pytest.approx((2.5, 0.8, 0.7))
    index = np.moveaxis(np.indices(volume.shape_zyx), 0, -1).reshape(-1, 3)
    inside_slice = index[:, 1:] - stack.offsets_px[index[:, 0]]
    inside = np.all((inside_slice >= 0) & (inside_slice <= np.array(SHAPE_ZYX[1:]) - 1), axis=1)
    expected = linear_hu(volume.point_lps_mm(index[inside]))
    assert np.abs(volume.hu[tuple(index[inside].T)] - expected).max() <= 2  # both are rounded, and 0.05 px forgiven
    far = np.any((inside_slice <= -1) | (inside_slice >= np.array(SHAPE_ZYX[1:])), axis=1)
    assert np.all(volume.hu[tuple(index[far].T)] == AIR_HU)


@settings(deadline=None, max_examples=50)
@given(tilt=st.floats(-45, 45), sideways=st.floats(-45, 45))
def test_labels_go_back_to_where_they_are_in_the_patient(tilt: float, sideways: float) -> None:
    acquired = tilted_affine(tilt, sideways)
    stack, affine = ShearedStack.of(acquired, SHAPE_ZYX)
    z, y, x = np.indices(stack.grid_shape_zyx)
    labels = (z * 10_000 + y * 100 + x).astype(np.uint32)  # each voxel names its index
    back = stack.on_slices(labels)
    assert back.shape == SHAPE_ZYX
    index = np.stack([back // 10_000, back // 100 % 100, back % 100], axis=-1)
    named = index @ affine[:3, :3].T + affine[:3, 3]
    distance = np.abs(named - points_of(acquired, SHAPE_ZYX))
    assert np.all(distance <= np.array([0.7, 0.8, 0.0]) * 0.56 + 1e-9)


def test_a_stack_that_is_not_sheared_stays_what_it_is() -> None:
    affine = tilted_affine(0.0)
    stack, same = ShearedStack.of(affine, SHAPE_ZYX)
    hu = linear_hu(points_of(affine, SHAPE_ZYX))
    np.testing.assert_array_equal(stack.straightened(hu), hu)
    np.testing.assert_array_equal(same, affine)


def test_the_angle_is_that_of_the_gantry() -> None:
    assert shear_degrees(tilted_affine(-18.5)) == pytest.approx(18.5)
    assert shear_degrees(tilted_affine(0.0)) == 0.0
