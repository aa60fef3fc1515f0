"""What the scanner adds: motion, blur of kernel and slice thickness, streaks, then coloured noise, then whole HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from imaging.phantom.grid import Field3, Grid, Points
from imaging.volume import Hu, Mask

HU_RANGE = (-1024, 3071)
SLAB = 24
MARGIN = 8
WATER_PER_MM = 0.02  # attenuation of water at 70 keV, NIST XCOM


@dataclass(frozen=True, slots=True)
class Scanner:
    """How a scan was taken and reconstructed.

    Attributes:
        blur_mm: SD of the in-plane point spread, Gaussian part.
        edge_boost, edge_per_mm: a sharp kernel lifts spatial frequencies about `edge_per_mm` by up to this factor above
            1, and so overshoots at edges; 0 for a soft kernel.
        slice_thickness_mm: width of the slice profile, whatever the distance between slices.
        noise_hu: SD of the noise in the middle of the body.
        denoising_mm: SD of the low-pass that iterative reconstruction amounts to for noise; 0 for filtered
            backprojection, whose noise rises with frequency up to the kernel's limit.
        motion_mm: how far the heart and what lies near it is displaced in its second contour; 0 for none.
        round_view: nothing is reconstructed outside the circle that fits into the image, as many scanners do.
    """

    blur_mm: float
    edge_boost: float
    edge_per_mm: float
    slice_thickness_mm: float
    noise_hu: float
    denoising_mm: float
    motion_mm: float
    round_view: bool


def draw_scanner(rng: np.random.Generator, grid: Grid, slice_thickness_mm: float | None = None) -> Scanner:
    """From soft to sharp kernels (most of them soft, as for angiograms), thin to thick slices, still or moving."""
    sharpness = rng.beta(1.1, 2.0)
    thickness = grid.spacing_mm[0] * rng.uniform(0.9, 1.4)
    if rng.random() < 0.15:
        thickness = max(thickness, rng.uniform(0.5, 5.0))
    if slice_thickness_mm is not None:
        thickness = slice_thickness_mm
    thickness = float(np.clip(thickness, 0.5, max(5.0, grid.spacing_mm[0])))
    quiet = float(np.clip((1.5 / thickness) ** 0.5, 0.6, 1.3))
    return Scanner(
        blur_mm=0.72 - 0.38 * sharpness + rng.uniform(-0.06, 0.06),
        edge_boost=max(0.0, 1.5 * (sharpness - 0.3)) * rng.uniform(0.5, 1.3),
        edge_per_mm=rng.uniform(0.3, 0.55),
        slice_thickness_mm=thickness,
        noise_hu=float(np.clip(rng.gamma(6.0, 3.0) * (0.9 + 0.9 * sharpness) * quiet, 7, 60)),
        denoising_mm=0.0 if rng.random() < 0.4 else rng.uniform(0.2, 0.7),
        motion_mm=0.0 if rng.random() < 0.55 else rng.uniform(0.8, 3.0),
        round_view=bool(rng.random() < 0.4),
    )


def acquire(rng: np.random.Generator, hu: NDArray[np.float32], grid: Grid, scanner: Scanner) -> Hu:
    """Blur before noise, as the physics has it; slab by slab, so that one more copy of the volume is never held."""
    width = slice_profile_sd(scanner) / grid.spacing_mm[0]
    halo = int(np.ceil(2.5 * width)) + 1
    seeds = rng.integers(0, 2**63, grid.shape[0])
    kernel = _Kernel.of(scanner, grid)
    profile = _noise_profile(grid) * np.float32(scanner.noise_hu)
    out = np.empty(grid.shape, np.int16)
    before = np.zeros(grid.shape[1:], np.float32)
    # Slices thicker than their distance share noise; each mixes its own with its neighbour's.
    shared = float(np.clip(1 - grid.spacing_mm[0] / (scanner.slice_thickness_mm + 0.4), 0.0, 0.75))
    for start in range(0, grid.shape[0], SLAB):
        stop = min(start + SLAB, grid.shape[0])
        low, high = max(start - halo, 0), min(stop + halo, grid.shape[0])
        slab = hu[low:high]
        if width > 0.2:
            slab = ndimage.gaussian_filter1d(slab, width, axis=0, truncate=2.0, mode="nearest")
        for k in range(start, stop):
            stream = np.random.default_rng(seeds[k])
            plane = kernel.sharpened(slab[k - low])
            noise = kernel.coloured(stream.standard_normal(kernel.padded, dtype=np.float32))
            before = np.float32(shared) * before + np.float32(np.sqrt(1 - shared**2)) * noise
            plane += before * profile
            plane += _starvation(stream, hu[k], grid, scanner.noise_hu)
            np.clip(plane, *HU_RANGE, out=plane)
            out[k] = np.rint(plane)
    if scanner.round_view:
        out[:, _outside_view(grid)] = HU_RANGE[0]
    return out


def slice_profile_sd(scanner: Scanner) -> float:
    """SD of a box of the slice's thickness, mm."""
    return scanner.slice_thickness_mm / 12**0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Kernel:
    """Transfer functions of signal and noise on the half plane of frequencies of a padded slice."""

    shape: tuple[int, int]
    padded: tuple[int, int]
    signal: Field3
    noise: Field3

    @classmethod
    def of(cls, scanner: Scanner, grid: Grid) -> _Kernel:
        shape = grid.shape[1], grid.shape[2]
        padded = fft.next_fast_len(shape[0] + 2 * MARGIN, True), fft.next_fast_len(shape[1] + 2 * MARGIN, True)
        fy = np.fft.fftfreq(padded[0], grid.spacing_mm[1])[:, None]
        fx = np.fft.rfftfreq(padded[1], grid.spacing_mm[2])[None, :]
        squared = fy**2 + fx**2
        ratio = squared / scanner.edge_per_mm**2
        signal = np.exp(-2 * np.pi**2 * scanner.blur_mm**2 * squared)
        signal *= 1 + scanner.edge_boost * ratio * np.exp(1 - ratio)
        noise = signal * (squared + 0.02**2) ** 0.25 * np.exp(-2 * np.pi**2 * scanner.denoising_mm**2 * squared)
        # The half plane stands for the whole: all columns but the first, and the last of an even width, count twice.
        twice = np.full(fx.shape, 2.0)
        twice[0, 0] = 1.0
        if padded[1] % 2 == 0:
            twice[0, -1] = 1.0
        power = float((noise**2 * twice).sum()) / (padded[0] * padded[1])
        return cls(shape, padded, signal.astype(np.float32), (noise / power**0.5).astype(np.float32))

    def sharpened(self, plane: Field3) -> Field3:
        after = tuple(p - n - MARGIN for p, n in zip(self.padded, self.shape, strict=True))
        wide = np.pad(plane, ((MARGIN, after[0]), (MARGIN, after[1])), mode="edge")
        return self._filtered(wide, self.signal)

    def coloured(self, white: Field3) -> Field3:
        return self._filtered(white, self.noise)

    def _filtered(self, wide: Field3, transfer: Field3) -> Field3:
        filtered = fft.irfft2(fft.rfft2(wide) * transfer, s=self.padded)
        return np.asarray(filtered[MARGIN : MARGIN + self.shape[0], MARGIN : MARGIN + self.shape[1]])


def _outside_view(grid: Grid) -> Mask:
    y, x = (np.linspace(-1, 1, n) for n in grid.shape[1:])
    return np.asarray(np.hypot(y[:, None], x[None, :]) > 1.0)


def _noise_profile(grid: Grid) -> NDArray[np.float32]:
    """(y, x): noise is strongest in the middle of the body, where the fewest photons arrive from."""
    _, y, x = grid.open_mesh()
    return np.asarray(0.65 + 0.5 * np.exp(-((y[0] / 110) ** 2) - (x[0] / 150) ** 2), dtype=np.float32)


def _starvation(rng: np.random.Generator, plane: Field3, grid: Grid, noise_hu: float) -> Field3:
    """(y, x): grain drawn out from side to side in rows where shoulders or arms let few photons through."""
    water_mm = np.clip(plane[:, ::4] / 1000 + 1, 0, 2.5).sum(axis=1) * np.float32(4 * grid.spacing_mm[2])
    starved = np.clip(np.exp(WATER_PER_MM / 2 * (water_mm - 330)) - 1, 0, 5)
    if starved.max() < 0.2:
        return np.zeros((1, 1), np.float32)
    starved = ndimage.gaussian_filter1d(starved, 2.0)
    knots = rng.standard_normal((plane.shape[0], 7)).astype(np.float32)
    position = np.linspace(0, 5.999, plane.shape[1])
    low = position.astype(np.intp)
    part = (position - low).astype(np.float32)
    weights = np.zeros((7, plane.shape[1]), np.float32)
    weights[low, np.arange(plane.shape[1])] = 1 - part
    weights[low + 1, np.arange(plane.shape[1])] = part
    return np.asarray((starved * np.float32(0.45 * noise_hu))[:, None] * (knots @ weights))


def add_motion(rng: np.random.Generator, hu: NDArray[np.float32], grid: Grid, heart: Points, motion_mm: float) -> None:
    """Double contours of the beating heart and the vessels near it, in bands of slices; in place."""
    if motion_mm == 0:
        return
    z, y, x = grid.axis_mm(0), grid.axis_mm(1), grid.axis_mm(2)
    near = np.exp(-(((y - heart[1]) / 75) ** 2))[:, None] * np.exp(-(((x - heart[2]) / 80) ** 2))[None, :]
    period, phase = rng.uniform(9, 30), rng.uniform(0, 2 * np.pi)
    turn = rng.uniform(0, 2 * np.pi)
    for k in np.flatnonzero(np.abs(z - heart[0]) < 95):
        beat = np.sin(2 * np.pi * z[k] / period + phase) * np.exp(-(((z[k] - heart[0]) / 70) ** 2))
        steps = np.rint(motion_mm * beat * np.array([np.sin(turn), np.cos(turn)]) / grid.spacing_mm[1:]).astype(int)
        if not steps.any():
            continue
        again = np.roll(hu[k], (int(steps[0]), int(steps[1])), (0, 1))
        hu[k] += np.float32(0.45) * near * (again - hu[k])


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
