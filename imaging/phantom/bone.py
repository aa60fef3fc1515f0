"""What bone is made of: a shell of cortex around marrow with trabeculae, fatty patches and sclerosis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.phantom.grid import Field3, Grid

TEXTURE_EDGE = 88
TEXTURE_PITCH_MM = 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Bone:
    """Bone of one patient.

    Attributes:
        age: 0 young and dense .. 1 old, thinned and worn; osteophytes and calcified cartilage follow it.
        marrow_hu, cortex_hu, cortex_mm: means over the skeleton.
        trabeculae: periodic noise (z, y, x), SD about `trabecular_hu`.
        fat: periodic share 0..1 of marrow that is fatty, as dark as soft tissue or clot.
        fat_hu: HU of such patches.
    """

    age: float
    marrow_hu: float
    cortex_hu: float
    cortex_mm: float
    trabeculae: Field3
    fat: Field3
    fat_hu: float


def draw_bone(rng: np.random.Generator) -> Bone:
    """From dense to osteoporotic; fatty patches are more common and larger in the old."""
    age = float(rng.uniform())
    white = rng.standard_normal((TEXTURE_EDGE,) * 3).astype(np.float32)
    scales = [_normal(ndimage.gaussian_filter(white, s, mode="wrap", truncate=2.5)) for s in (0.6, (2.2, 1.3, 1.3), 5)]
    weights = rng.uniform((0.5, 0.4, 0.3), (1.0, 0.9, 0.8))
    texture = _normal(sum(w * s for w, s in zip(weights, scales, strict=True)))
    threshold = rng.uniform(0.9, 2.6) - 0.9 * age
    patches = _normal(ndimage.gaussian_filter(np.roll(white, 31, axis=1), rng.uniform(3, 7), mode="wrap", truncate=2.5))
    return Bone(
        age=age,
        marrow_hu=float(np.clip(rng.normal(235 - 130 * age, 30), 60, 290)),
        cortex_hu=rng.uniform(650, 1050) - 150 * age,
        cortex_mm=rng.uniform(0.8, 1.7) - 0.3 * age,
        trabeculae=texture * np.float32(rng.uniform(30, 85)),
        fat=1 / (1 + np.exp(-4 * (patches - np.float32(threshold)))),
        fat_hu=rng.uniform(0, 60),
    )


def _normal(values: Field3) -> Field3:
    return np.asarray((values - values.mean()) / values.std(), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class BonePainter:
    """Fills bone into the slices of a grid."""

    bone: Bone
    grid: Grid

    def fill(
        self,
        plane: Field3,
        k: int,
        rows: NDArray[np.intp],
        columns: NDArray[np.intp],
        depth_mm: Field3,
        denser_hu: Field3 | float = 0.0,
        shell_share: Field3 | float = 1.0,
    ) -> None:
        """Blend bone into slice `k`, in place.

        Args:
            plane: (y, x) HU.
            rows, columns: the pixels to fill.
            depth_mm: how deep below the bone's surface each of them lies; negative outside.
            denser_hu: added to the marrow there.
            shell_share: thickness of the cortex there, relative to `Bone.cortex_mm`.
        """
        bone, pitch = self.bone, np.float32(max(self.grid.spacing_mm[1], 0.5))
        z = round(float(self.grid.axis_mm(0)[k]) / TEXTURE_PITCH_MM) % TEXTURE_EDGE
        y = np.rint(self.grid.axis_mm(1)[rows] / TEXTURE_PITCH_MM).astype(np.intp) % TEXTURE_EDGE
        x = np.rint(self.grid.axis_mm(2)[columns] / TEXTURE_PITCH_MM).astype(np.intp) % TEXTURE_EDGE
        # A coarse voxel holds the mean of many trabeculae.
        grain = np.float32(min(1.0, 1.2 / float(pitch)))
        texture = bone.trabeculae[z, y, x] * grain
        marrow = np.float32(bone.marrow_hu) + texture + denser_hu
        marrow += bone.fat[z, y, x] * (np.float32(bone.fat_hu) + np.float32(0.3) * texture - marrow)
        thickness = np.float32(bone.cortex_mm) * shell_share
        shell = np.clip((thickness - depth_mm) / pitch + np.float32(0.5), 0, 1)
        shell *= np.clip(thickness / pitch, 0, 1) * np.clip(np.float32(0.85) + texture / 250, 0.4, 1)
        value = marrow + shell * (np.float32(bone.cortex_hu) + texture - marrow)
        here = plane[rows, columns]
        plane[rows, columns] = here + np.clip(depth_mm / pitch + np.float32(0.5), 0, 1) * (value - here)
