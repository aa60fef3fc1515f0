"""More of the same from few cases: crops turned, scaled and recoloured, by a strength."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.sampling import Batch, BatchSource

TURN_DEGREES = 15.0  # at strength 1, about each axis (2D: about the patient's axis)
SCALE_SHARE = 0.12  # larger or smaller, each axis on its own
CONTRAST_SHARE = 0.08
OFFSET = 0.03  # of the window
NOISE = 0.02  # of the window, at most
FULL_STRENGTH_CASES = 16  # from so many cases on, the ordinary strength will do
LARGEST_STRENGTH = 3.0


def strength_for(cases: int) -> float:
    """How strong augmentation should be with so few cases: 1 for 16 or more, 2 for 4, at most 3."""
    return min(LARGEST_STRENGTH, max(1.0, math.sqrt(FULL_STRENGTH_CASES / max(1, cases))))


class Augmented:
    """The batches of `source`, each crop varied; what a step gives is a function of (seed, step).

    Voxels turned in from beyond a crop repeat its border in the input, and are unknown (-1) in the target.
    """

    def __init__(self, source: BatchSource, strength: float, seed: int) -> None:
        self.source, self.strength, self.seed = source, strength, seed

    def batch(self, step: int) -> Batch:
        batch = self.source.batch(step)
        rng = np.random.default_rng((self.seed, step, 1))
        grid = F.affine_grid(self._affine(batch.input, rng), list(batch.input.shape), align_corners=False)
        images = F.grid_sample(batch.input, grid, mode="bilinear", padding_mode="border", align_corners=False)
        shifted = batch.target + 1  # 0 beyond the crop, then -1 again
        target = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False) - 1
        return Batch(self._recoloured(images, rng), target)

    def _affine(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """(N, axes, axes + 1), output to input coordinates, each axis from -1 to 1; its order is x, y (, z)."""
        axes = images.ndim - 2
        half = np.asarray(images.shape[:1:-1], dtype=np.float64)  # in voxels, up to a factor
        affines = []
        for _ in range(len(images)):
            turn = np.eye(axes)
            for first in range(axes):
                for second in range(first + 1, axes):
                    angle = math.radians(TURN_DEGREES * self.strength) * rng.uniform(-1, 1)
                    plane = np.eye(axes)
                    plane[first, first] = plane[second, second] = math.cos(angle)
                    plane[first, second], plane[second, first] = -math.sin(angle), math.sin(angle)
                    turn = turn @ plane
            scale = np.exp(rng.uniform(-1, 1, axes) * SCALE_SHARE * self.strength)
            affines.append(np.diag(1 / half) @ turn @ np.diag(scale) @ np.diag(half))
        linear = torch.from_numpy(np.stack(affines)).to(images.dtype)
        return torch.cat([linear, linear.new_zeros(len(images), axes, 1)], dim=2)

    def _recoloured(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Contrast, brightness and noise; all channels of a crop alike, for they are windows of one density."""
        column = (len(images),) + (1,) * (images.ndim - 1)
        contrast = torch.from_numpy(rng.uniform(-1, 1, column)).float() * CONTRAST_SHARE * self.strength
        offset = torch.from_numpy(rng.uniform(-1, 1, column)).float() * OFFSET * self.strength
        sd = torch.from_numpy(rng.uniform(0, 1, column)).float() * NOISE * self.strength
        noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype=np.float32))
        return ((images - 0.5) * (1 + contrast) + 0.5 + offset + sd * noise).clamp_(0, 1)
