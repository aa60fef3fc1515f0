"""What the networks see in training: crops of cached cases, centred on emboli more often than chance would.

A `BatchSource` gives the batch of any step from (seed, step) alone: no worker state, so a resumed training sees the
batches an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imaging.windows import aanet_input, unet_channels
from training.cases import ARTERY, VEIN, TrainingCase


class Batch(NamedTuple):
    """`input` (N, channels, ...) float32 0..1; `target` float32: masks (N, targets, ...) or boxes (N, boxes, 4)."""

    input: Tensor
    target: Tensor


Block = tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.bool_]]


class BatchSource(Protocol):
    """Where training gets its batches from."""

    def batch(self, step: int) -> Batch: ...


class _Crops:
    """Chooses where to crop: a case, then an embolus (each as likely as the next, large or small) or a distractor."""

    def __init__(
        self, cases: Sequence[TrainingCase], crop_zyx: Sequence[int], size: int, embolus_share: float, seed: int
    ) -> None:
        self.cases, self.crop_zyx, self.size, self.embolus_share, self.seed = cases, crop_zyx, size, embolus_share, seed

    def _crop(self, rng: np.random.Generator, on_embolus: bool) -> Block:
        """(hu, anatomy, embolus mask) of one crop, augmented; each of shape `crop_zyx`."""
        case = self.cases[int(rng.integers(len(self.cases)))]
        points = case.embolus_points if on_embolus and len(case.embolus_points) else case.other_points
        centre = points[rng.integers(len(points))]
        crop = np.asarray(self.crop_zyx)
        jitter = rng.uniform(-0.3, 0.3, 3) * np.where(crop > 1, crop, 0)
        start = np.round(centre + jitter - crop / 2).astype(int)
        hu, anatomy, embolus = case.block(start, self.crop_zyx)
        if rng.random() < 0.5:  # left-right: the only mirror that leaves a plausible chest
            hu, anatomy, embolus = hu[..., ::-1], anatomy[..., ::-1], embolus[..., ::-1]
        return _vary_intensity(hu, rng), anatomy, embolus

    def _on_embolus(self, index: int) -> bool:
        """A fixed share of every batch, rather than a coin per crop: steadier gradients."""
        return index < round(self.size * self.embolus_share)


class BlockSource(_Crops):
    """3D crops for AANet: input (N, 1, z, y, x), targets embolus and artery (N, 2, z, y, x).

    With `veins` the veins are a third target.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        crop_zyx: Sequence[int],
        size: int,
        embolus_share: float,
        seed: int,
        *,
        veins: bool = False,
    ) -> None:
        super().__init__(cases, crop_zyx, size, embolus_share, seed)
        self.veins = veins

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        inputs, targets = [], []
        for index in range(self.size):
            hu, anatomy, embolus = self._crop(rng, self._on_embolus(index))
            inputs.append(aanet_input(hu)[None])
            masks = [embolus, (anatomy == ARTERY) | embolus, (anatomy == VEIN) & ~embolus]
            targets.append(np.stack(masks if self.veins else masks[:2]))
        return _to_batch(inputs, targets)


class SliceSource(_Crops):
    """2D crops for the UNets: input (N, 5, y, x) as `unet_channels` makes it, target embolus (N, 1, y, x)."""

    def __init__(
        self, cases: Sequence[TrainingCase], crop_yx: Sequence[int], size: int, embolus_share: float, seed: int
    ) -> None:
        super().__init__(cases, (3, *crop_yx), size, embolus_share, seed)

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        inputs, targets = [], []
        for index in range(self.size):
            hu, _, embolus = self._crop(rng, self._on_embolus(index))
            inputs.append(unet_channels(hu, 1))
            targets.append(embolus[1:2])
        return _to_batch(inputs, targets)


class RoiSource:
    """Axial slices for the lung detector: input (N, 1, size, size), target one box per slice (N, 1, 4).

    A box is (centre x, centre y, width, height) relative to the slice; a slice without lung has width 0.
    """

    def __init__(self, cases: Sequence[TrainingCase], size: int, seed: int) -> None:
        self.cases, self.size, self.seed = cases, size, seed

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step))
        inputs, boxes = [], []
        for _ in range(self.size):
            case = self.cases[int(rng.integers(len(self.cases)))]
            index = rng.integers(len(case.roi_slices))
            image, box = case.roi_slices[index].astype(np.float32) / 255.0, case.roi_boxes[index]
            if rng.random() < 0.5:
                image, box = image[:, ::-1], box * (-1, 1, 1, 1) + (box[2] > 0, 0, 0, 0)
            if box[2] <= 0 and rng.random() < 0.7:
                image = _with_bowel_gas(image, rng)
            image, box = _shifted(image, box, rng)
            image = np.clip(image * rng.uniform(0.9, 1.1) + rng.normal(0, 0.02, image.shape), 0, 1)
            inputs.append(image[None].astype(np.float32))
            boxes.append(box[None].astype(np.float32))
        return Batch(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(boxes)))


def _with_bowel_gas(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Pockets of gas in the body of a slice below or above the lungs: air that is no lung."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    body = np.argwhere(image > 0.6)  # denser than fat
    if len(body) == 0:
        return image
    gassy = image.copy()
    for row, column in body[rng.integers(len(body), size=rng.integers(1, 9))]:
        tall, wide = rng.uniform(0.008, 0.06, 2) * image.shape[0]
        pocket = ((rows - row) / tall) ** 2 + ((columns - column) / wide) ** 2 < 1
        gassy[pocket] = rng.uniform(0.0, 0.4)
    return gassy


def _shifted(
    image: NDArray[np.float32], box: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Moves the patient on the table, up to 6 % of the field of view; what comes in is air."""
    size = image.shape[0]
    dy, dx = rng.integers(-size // 16, size // 16 + 1, 2)
    moved = np.zeros_like(image)
    source = image[max(0, -dy) : size - max(0, dy), max(0, -dx) : size - max(0, dx)]
    moved[max(0, dy) :, max(0, dx) :][: source.shape[0], : source.shape[1]] = source
    if box[2] <= 0:
        return moved, box
    low = np.clip(box[:2] - box[2:] / 2 + (dx / size, dy / size), 0, 1)
    high = np.clip(box[:2] + box[2:] / 2 + (dx / size, dy / size), 0, 1)
    return moved, np.concatenate([(low + high) / 2, high - low])


def _vary_intensity(hu: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.int16]:
    """Another kilovoltage and dose: contrast +-12 % around 40 HU, offset +-15 HU, white noise up to 20 HU."""
    varied = (hu - 40.0) * rng.uniform(0.88, 1.12) + 40.0 + rng.uniform(-15, 15)
    varied += rng.standard_normal(hu.shape, dtype=np.float32) * rng.uniform(0, 20)
    varied = np.clip(varied, -1024, 3071)
    return np.asarray(varied, dtype=np.int16)


def _to_batch(inputs: list[NDArray[np.float32]], targets: list[NDArray[np.bool_]]) -> Batch:
    return Batch(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets).astype(np.float32)))
