from __future__ import annotations

import itertools

import numpy as np
import pytest

from imaging.geometry import Box, WorkingGrid, _interpolation, cropped, to_canonical
from imaging.volume import CtVolume

CANONICAL_STEPS = np.array([[0.0, 0.0, 0.7], [0.0, 0.8, 0.0], [2.0, 0.0, 0.0]])


def _volume(shape_zyx: tuple[int, int, int] = (4, 5, 6)) -> CtVolume:
    affine = np.eye(4)
    affine[:3, :3] = CANONICAL_STEPS
    affine[:3, 3] = (-100, -50, 20)
    return CtVolume(np.arange(np.prod(shape_zyx), dtype=np.int16).reshape(shape_zyx), affine)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flipped", [(), (0,), (1, 2), (0, 1, 2)])
def test_every_axis_order_and_flip_becomes_the_same_canonical_volume(
    axes: tuple[int, ...], flipped: tuple[int, ...]
) -> None:
    original = _volume()
    affine = original.affine_lps[:, [*axes, 3]].copy()
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (original.hu.shape[axes[axis]] - 1)
        affine[:3, axis] *= -1
    turned = CtVolume(np.flip(original.hu.transpose(axes), flipped), affine)

    canonical, order = to_canonical(turned)

    np.testing.assert_array_equal(canonical.hu, original.hu)
    np.testing.assert_allclose(canonical.affine_lps, original.affine_lps, atol=1e-9)
    np.testing.assert_array_equal(order.undo(canonical.hu), turned.hu)


def test_a_cropped_voxel_stays_where_it_is_in_the_patient() -> None:
    volume = _volume()
    part = cropped(volume, Box((1, 2, 3), (3, 5, 6)))
    assert part.hu[0, 0, 0] == volume.hu[1, 2, 3]
    np.testing.assert_allclose(part.point_lps_mm((0, 0, 0)), volume.point_lps_mm((1, 2, 3)))


def test_halving_the_resolution_averages_neighbours() -> None:
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    hu = np.zeros((2, 2, 8), dtype=np.int16)
    hu[..., 2:4] = 100
    volume = CtVolume(hu, affine)
    grid = WorkingGrid.over(volume, Box((0, 0, 0), (2, 2, 8)), 1.0)

    resampled = grid.resample(volume.hu)

    assert resampled.shape == (1, 1, 4)
    # By hand: a triangle reaching 2 source voxels weighs 1/4, 3/4, 3/4, 1/4; at the edge 3/4, 3/4, 1/4 are left.
    np.testing.assert_array_equal(resampled[0, 0], [14, 75, 12, 0])


def test_there_and_back_keeps_a_smooth_field() -> None:
    spacing = (1.25, 0.7, 0.7)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)[::-1]
    z, y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip((40, 60, 60), spacing, strict=True)), indexing="ij")
    field = np.rint(200 * np.sin(z / 9) + 100 * np.cos(y / 8) + 50 * np.sin(x / 11)).astype(np.int16)
    volume = CtVolume(field, affine)
    box = Box((3, 5, 7), (37, 55, 60))
    grid = WorkingGrid.over(volume, box, 1.0)

    restored = grid.restore(grid.resample(volume.hu).astype(np.float32))

    inner = (slice(2, -2),) * 3
    assert np.abs(restored[inner] - field[box.slices][inner]).max() < 8
    assert restored.shape == box.shape_zyx


@pytest.mark.parametrize("spacing", [(1.25, 0.7, 0.7), (0.75, 0.7, 0.7), (3.0, 1.4, 1.0), (0.4, 0.9, 2.2)])
def test_few_weights_give_what_whole_matrices_give(spacing: tuple[float, float, float]) -> None:
    random = np.random.default_rng(1)
    shape = (23, 37, 31)
    volume = CtVolume(random.integers(-1000, 1500, shape).astype(np.int16), np.diag([*spacing, 1.0])[[2, 1, 0, 3]])
    box = Box((2, 3, 4), (22, 35, 29))
    grid = WorkingGrid.over(volume, box, 1.0)

    hu = _by_whole_matrices(volume.hu[box.slices], grid.shape_zyx, [step / 1.0 for step in spacing])
    assert np.abs(grid.resample(volume.hu) - hu).max() <= 0.501

    values = random.random(grid.shape_zyx, dtype=np.float32)
    restored = grid.restore(values)
    plain = _by_whole_matrices(values, box.shape_zyx, [1.0 / step for step in spacing])
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, plain, atol=1e-6)
    values[:, :9] = values[:, 20:] = values[:4] = 0
    for threshold in (0.0, 0.4, 0.99, 1.0):
        np.testing.assert_array_equal(grid.restore_above(values, threshold), grid.restore(values) > threshold)


def _by_whole_matrices(array: np.ndarray, target_shape: tuple[int, ...], source_steps: list[float]) -> np.ndarray:
    """Every voxel of the target from every voxel of the source, most of which weigh nothing, in float64."""
    for axis, (target_count, step) in enumerate(zip(target_shape, source_steps, strict=True)):
        count = array.shape[axis]
        centres = np.clip((np.arange(target_count) + 0.5) / step - 0.5, 0, count - 1)
        weights = np.maximum(0, 1 - np.abs(np.arange(count) - centres[:, None]) / max(1.0, 1.0 / step))
        weights /= weights.sum(axis=1, keepdims=True)
        array = np.moveaxis(np.tensordot(weights, array, axes=(1, axis)), 0, axis)
    return array


def test_a_voxel_costs_a_few_multiplications_however_large_the_grid_is() -> None:
    for count in (50, 500):
        refining = _interpolation(count, 1 / 0.7, round(count / 0.7))
        coarsening = _interpolation(count, 0.7, round(count * 0.7))
        assert refining.nnz <= 2 * refining.shape[0]
        assert coarsening.nnz <= 3 * coarsening.shape[0]


def test_the_box_around_a_mask_holds_all_of_it_and_no_more() -> None:
    mask = np.zeros((6, 7, 8), dtype=bool)
    assert Box.around(mask) is None
    mask[2, 3, 7] = mask[4, 1, 5] = True
    assert Box.around(mask) == Box((2, 1, 5), (5, 4, 8))


def test_a_grown_box_stays_inside_the_volume() -> None:
    assert Box((1, 5, 5), (3, 6, 9)).grown((2, 2, 2), (10, 10, 10)) == Box((0, 3, 3), (5, 8, 10))
