"""How a crop is varied before a network sees it: turned and scaled as another patient lies, recoloured as another
scanner would. On the HU of the crop, so that all windows made of it afterwards agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.cases import Block

TURN_DEGREES = 15.0  # about the patient's long axis, at strength 1
ZOOM_SHARE = 0.15  # larger or smaller, each axis on its own, at strength 1
CONTRAST_SHARE = 0.12
CONTRAST_CENTRE_HU = 40.0  # what no kilovoltage changes: soft tissue
OFFSET_HU = 15.0
NOISE_HU = 20.0
KERNEL_SHARE = 0.5  # of the crops are softer or sharper than their scanner made them
KERNEL_SIGMA_PIXELS = 0.8
SHARPER, SOFTER = 0.5, 0.9
LOWEST_HU, HIGHEST_HU = -1024, 3071
EMBOLUS_BIT = 64  # of a packed label; anatomy uses the low bits and the top one


@dataclass(frozen=True, slots=True)
class Turn:
    """A rotation in the axial plane after a zoom along each axis (z, y, x)."""

    degrees: float
    zoom_zyx: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, strength: float = 1.0) -> Turn:
        z, y, x = (1 + ZOOM_SHARE) ** (strength * rng.uniform(-1, 1, 3))
        return cls(float(rng.uniform(-TURN_DEGREES, TURN_DEGREES)) * strength, (float(z), float(y), float(x)))

    def source_shape(self, shape_zyx: tuple[int, int, int]) -> tuple[int, int, int]:
        """How large a block has to be for a turned one of `shape_zyx` to be cut from it without a border."""
        reach = np.abs(self._to_source()) @ (np.asarray(shape_zyx) - 1)
        z, y, x = (int(n) + 1 for n in np.ceil(reach - 1e-9))
        return z, y, x

    def apply(self, block: Block, shape_zyx: tuple[int, int, int]) -> Block:
        """The turned middle of `block`: HU linearly between voxels, labels from the nearest."""
        to_source = self._to_source()
        middle = (np.asarray(block.hu.shape) - 1) / 2
        offset = middle - to_source @ ((np.asarray(shape_zyx) - 1) / 2)
        packed = block.anatomy | (block.embolus * np.uint8(EMBOLUS_BIT))
        hu = ndimage.affine_transform(
            block.hu.astype(np.float32), to_source, offset, shape_zyx, order=1, mode="nearest"
        )
        labels = ndimage.affine_transform(packed, to_source, offset, shape_zyx, order=0, mode="nearest")
        return Block(
            np.rint(hu).astype(np.int16), labels & np.uint8(255 - EMBOLUS_BIT), (labels & EMBOLUS_BIT).astype(bool)
        )

    def _to_source(self) -> NDArray[np.float64]:
        angle = np.radians(self.degrees)
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        return np.asarray(turn @ np.diag(1 / np.asarray(self.zoom_zyx)))


def mirrored(block: Block) -> Block:
    """Left and right exchanged: the only mirror that leaves a plausible chest."""
    return Block(block.hu[..., ::-1], block.anatomy[..., ::-1], block.embolus[..., ::-1])


def recoloured(hu: NDArray[np.int16], rng: np.random.Generator, strength: float = 1.0) -> NDArray[np.int16]:
    """Another kilovoltage, dose and kernel.

    At strength 1: contrast +-12 % around 40 HU, offset +-15 HU, white noise up to 20 HU, and then in half of the crops
    a softer or sharper kernel, which acts on the noise too. At strength 0 the HU as they are.
    """
    if strength == 0:
        return hu
    contrast = np.float32(1 + strength * CONTRAST_SHARE * rng.uniform(-1, 1))
    offset = np.float32(CONTRAST_CENTRE_HU + strength * OFFSET_HU * rng.uniform(-1, 1))
    varied = (hu - np.float32(CONTRAST_CENTRE_HU)) * contrast + offset
    varied += rng.standard_normal(hu.shape, dtype=np.float32) * np.float32(strength * NOISE_HU * rng.uniform())
    if rng.random() < KERNEL_SHARE:
        soft = np.float32(rng.uniform(-SHARPER, SOFTER) * min(1.0, strength))
        varied += soft * (ndimage.gaussian_filter(varied, KERNEL_SIGMA_PIXELS, axes=(1, 2), truncate=2.5) - varied)
    return np.asarray(np.rint(np.clip(varied, LOWEST_HU, HIGHEST_HU)), dtype=np.int16)
