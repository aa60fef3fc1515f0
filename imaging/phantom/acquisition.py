"""What the scanner adds: blur of kernel and slice thickness, streaks, then noise with a grain, then whole HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.phantom.grid import Grid, Points
from imaging.volume import Hu, Mask

HU_RANGE = (-1024, 3071)
SLAB = 24


@dataclass(frozen=True, slots=True)
class Scanner:
    """In-plane blur, blur across slices and grain of the noise as Gaussian SDs in mm; noise SD in HU.

    `round_view`: nothing is reconstructed outside the circle that fits into the image, as many scanners do.
    """

    blur_mm: float
    slice_blur_mm: float
    noise_hu: float
    grain_mm: float
    round_view: bool


def draw_scanner(rng: np.random.Generator, grid: Grid) -> Scanner:
    return Scanner(
        blur_mm=rng.uniform(0.35, 0.75),
        slice_blur_mm=rng.uniform(0.3, 0.55) * max(grid.spacing_mm[0], 0.6),
        noise_hu=float(np.clip(rng.gamma(6.0, 3.2), 9, 36)),
        grain_mm=rng.uniform(0.35, 0.95),
        round_view=bool(rng.random() < 0.4),
    )


def acquire(rng: np.random.Generator, hu: NDArray[np.float32], grid: Grid, scanner: Scanner) -> Hu:
    """Blur before noise, as the physics has it; slab by slab, so that one more copy of the volume is never held."""
    sigma = np.array([scanner.slice_blur_mm, scanner.blur_mm, scanner.blur_mm]) / grid.spacing_mm
    halo = int(np.ceil(2.5 * sigma[0])) + 1
    seeds = rng.integers(0, 2**63, grid.shape[0] + 4)
    grain = np.array([0.45 * grid.spacing_mm[0], scanner.grain_mm, scanner.grain_mm]) / grid.spacing_mm
    gain = scanner.noise_hu / _sd_after(grain)
    body = _noise_profile(grid) * np.float32(gain)
    out = np.empty(grid.shape, np.int16)
    for start in range(0, grid.shape[0], SLAB):
        stop = min(start + SLAB, grid.shape[0])
        low, high = max(start - halo, 0), min(stop + halo, grid.shape[0])
        slab = _blurred(hu[low:high], sigma)[start - low : stop - low]
        streams = [np.random.default_rng(seed) for seed in seeds[start : stop + 4]]
        white = np.stack([stream.standard_normal(grid.shape[1:], dtype=np.float32) for stream in streams])
        slab = slab + _blurred(white, grain)[2 : 2 + stop - start] * body
        np.clip(slab, *HU_RANGE, out=slab)
        out[start:stop] = np.rint(slab)
    if scanner.round_view:
        out[:, _outside_view(grid)] = HU_RANGE[0]
    return out


def _blurred(values: NDArray[np.float32], sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    for axis, width in enumerate(sigma):
        if width > 0.2:
            values = ndimage.gaussian_filter1d(values, width, axis=axis, truncate=2.0, mode="nearest")
    return values


def _sd_after(sigma: NDArray[np.float64]) -> float:
    """SD of white noise of SD 1 after `_blurred`."""
    sd = 1.0
    for width in sigma:
        if width > 0.2:
            impulse = np.zeros(41)
            impulse[20] = 1
            sd *= float(np.linalg.norm(ndimage.gaussian_filter1d(impulse, width, truncate=2.0)))
    return sd


def _outside_view(grid: Grid) -> Mask:
    y, x = (np.linspace(-1, 1, n) for n in grid.shape[1:])
    return np.asarray(np.hypot(y[:, None], x[None, :]) > 1.0)


def _noise_profile(grid: Grid) -> NDArray[np.float32]:
    """(y, x): noise is strongest in the middle of the body, where the fewest photons arrive from."""
    _, y, x = grid.open_mesh()
    return np.asarray(0.65 + 0.5 * np.exp(-((y[0] / 110) ** 2) - (x[0] / 150) ** 2), dtype=np.float32)


def add_streaks(
    rng: np.random.Generator, hu: NDArray[np.float32], grid: Grid, source: Points, strength_hu: float
) -> None:
    """Bright and dark rays from dense contrast in the superior vena cava, in the slices that it crosses."""
    _, y, x = grid.open_mesh()
    heights = grid.axis_mm(0)
    order = np.argsort(source[:, 0])
    phase = rng.uniform(0, 2 * np.pi, 3)
    for k in np.flatnonzero((heights > source[:, 0].min()) & (heights < source[:, 0].max())):
        cy, cx = (np.interp(heights[k], source[order, 0], source[order, a]) for a in (1, 2))
        dy, dx = y[0] - np.float32(cy), x[0] - np.float32(cx)
        box_y = np.flatnonzero(np.abs(dy[:, 0]) < 75)
        box_x = np.flatnonzero(np.abs(dx[0]) < 75)
        if not box_y.size or not box_x.size:
            continue
        rows, columns = slice(box_y[0], box_y[-1] + 1), slice(box_x[0], box_x[-1] + 1)
        angle = np.arctan2(dy[rows], dx[:, columns])
        far = np.hypot(dy[rows], dx[:, columns])
        drift = np.float32(0.03 * heights[k])
        rays = np.sin(5 * angle + phase[0] + drift) + np.sin(11 * angle + phase[1] - drift)
        rays += np.sin(24 * angle + phase[2])
        hu[k, rows, columns] += np.float32(strength_hu / 2) * rays * np.exp(-far / 22) * (far > 5)
