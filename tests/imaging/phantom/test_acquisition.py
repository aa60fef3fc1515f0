"""What kernels, slice thickness and dose do to an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from imaging.phantom.acquisition import Scanner, acquire, add_motion, draw_scanner
from imaging.phantom.grid import Grid

GRID = Grid.centred((24, 128, 128), (1.0, 0.7, 0.7), (0.0, 0.0, 0.0))
SOFT = Scanner(
    blur_mm=0.7,
    edge_boost=0.0,
    edge_per_mm=0.45,
    slice_thickness_mm=1.0,
    noise_hu=1e-6,
    denoising_mm=0.0,
    motion_mm=0.0,
    round_view=False,
)
SHARP = replace(SOFT, blur_mm=0.35, edge_boost=1.0)


def image(scanner: Scanner, hu: NDArray[np.float32], seed: int = 0) -> NDArray[np.float64]:
    return acquire(np.random.default_rng(seed), hu, GRID, scanner).astype(float)


def edge_of_bone() -> NDArray[np.float32]:
    hu = np.zeros(GRID.shape, np.float32)
    hu[:, :, 64:] = 500
    return hu


def high_frequency_share(noise: NDArray[np.float64]) -> float:
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(128, 0.7)[:, None], np.fft.fftfreq(128, 0.7)[None, :])
    return float(power[frequency > 0.35].sum() / power.sum())


def test_a_sharp_kernel_overshoots_at_edges_and_a_soft_one_does_not() -> None:
    soft, sharp = image(SOFT, edge_of_bone())[12, 64], image(SHARP, edge_of_bone())[12, 64]
    inside = slice(20, 110)
    assert soft[inside].max() <= 501
    assert soft[inside].min() >= -1
    assert sharp[inside].max() > 530
    assert sharp[inside].min() < -30
    assert np.abs(np.diff(sharp[inside])).max() > 1.3 * np.abs(np.diff(soft[inside])).max()


def test_no_kernel_changes_the_hu_of_even_tissue() -> None:
    even = np.full(GRID.shape, 60.0, np.float32)
    for scanner in (SOFT, SHARP):
        assert image(scanner, even) == pytest.approx(60.0, abs=1)


def test_noise_has_the_asked_sd_and_a_sharp_kernel_makes_it_finer() -> None:
    even = np.full(GRID.shape, 40.0, np.float32)
    shares = []
    for scanner in (SOFT, SHARP, replace(SHARP, denoising_mm=0.6)):
        noise = image(replace(scanner, noise_hu=20.0), even)[:, 44:84, 44:84]
        assert 17 < noise.std() < 25
        shares.append(high_frequency_share(image(replace(scanner, noise_hu=20.0), even) - 40))
    assert shares[1] > 1.5 * shares[0]
    assert shares[2] < shares[1]


def test_thick_slices_blur_across_slices_but_not_within_them() -> None:
    hu = np.zeros(GRID.shape, np.float32)
    hu[12:, :, 64:] = 400
    thin, thick = (image(replace(SOFT, slice_thickness_mm=t), hu) for t in (1.0, 5.0))
    assert np.abs(np.diff(thick[:, 64, 100])).max() < 0.6 * np.abs(np.diff(thin[:, 64, 100])).max()
    assert np.allclose(thick[20, 64], thin[20, 64], atol=2)


def test_slices_thicker_than_their_distance_share_noise() -> None:
    even = np.zeros(GRID.shape, np.float32)
    together = []
    for thickness in (1.0, 4.0):
        noise = image(replace(SOFT, noise_hu=20.0, slice_thickness_mm=thickness), even)
        together.append(np.corrcoef(noise[8].ravel(), noise[9].ravel())[0, 1])
    assert together[1] > together[0] + 0.2


def test_shoulders_draw_the_noise_out_from_side_to_side() -> None:
    wide = Grid.centred((4, 128, 512), (1.0, 0.9, 0.9), (0.0, 0.0, 0.0))
    hu = np.full(wide.shape, 100.0, np.float32)
    hu[:, :50] = hu[:, 80:] = -1000
    out = acquire(np.random.default_rng(0), hu, wide, replace(SOFT, noise_hu=10.0)).astype(float)
    rows = out[:, 56:74, 40:-40].mean(axis=2).std()
    columns = out[:, 56:74, 40:-40].mean(axis=1).std()
    assert rows > 1.5 * columns


def test_motion_doubles_contours_at_the_heart_and_leaves_the_back_alone() -> None:
    hu = np.zeros(GRID.shape, np.float32)
    hu[:, 60:68, 60:68] = 300
    still = hu.copy()
    add_motion(np.random.default_rng(1), hu, GRID, np.zeros(3), 3.0)
    assert hu[:, 60:68, 60:68].min() < 200
    assert hu.max() <= 300
    far = np.zeros(GRID.shape, np.float32)
    far[:, 60:68, 60:68] = 300
    add_motion(np.random.default_rng(1), far, GRID, np.array([0.0, -400.0, 0.0]), 3.0)
    assert np.allclose(far, still, atol=1)


def test_scanners_range_from_soft_to_sharp_and_from_thin_to_thick() -> None:
    drawn = [draw_scanner(np.random.default_rng(seed), GRID) for seed in range(200)]
    thickness = np.array([scanner.slice_thickness_mm for scanner in drawn])
    boost = np.array([scanner.edge_boost for scanner in drawn])
    noise = np.array([scanner.noise_hu for scanner in drawn])
    assert 0.5 <= thickness.min() < 1.1
    assert 4 < thickness.max() <= 5
    assert (boost == 0).mean() > 0.3
    assert boost.max() > 0.5
    assert 7 <= noise.min() < 15
    assert 30 < noise.max() <= 60
    assert draw_scanner(np.random.default_rng(0), GRID, 3.0).slice_thickness_mm == 3.0
