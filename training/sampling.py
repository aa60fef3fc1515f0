"""What the networks see in training: crops of cached cases, centred on emboli more often than chance would.

A `BatchSource` gives the batch of any step from (seed, step) alone: no worker state, so a resumed training sees the
batches an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imaging.errors import ConfigurationError
from imaging.windows import aanet_input, unet_channels
from training.cases import ARTERY, UNKNOWN_VESSELS, VEIN, Block, TrainingCase
from training.concatenation import Shape, concatenated, tile_edges
from training.copy_paste import ClotSource, pasted
from training.crop_choice import CropChoice, Place, embolus_crops_at
from training.crop_variation import Turn, mirrored, recoloured

CENTRE_JITTER = 0.3  # of the crop's size, to either side
RATIO_CROPS = 256  # of each kind, from which the embolus's share of voxels is estimated
PASTE_ROOM = 24  # slices at least, in which a copied embolus is laid along its artery
UNKNOWN = -1.0  # of a target that nobody knows; losses pass over it


class Batch(NamedTuple):
    """`input` (N, channels, ...) float32 0..1; `target` float32: masks (N, targets, ...) or boxes (N, boxes, 4).

    A mask is 0 or 1, or -1 where nobody knows.
    """

    input: Tensor
    target: Tensor


class BatchSource(Protocol):
    """Where training gets its batches from."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True, slots=True)
class CropOptions:
    """How crops are drawn beyond where: a recipe's network table has these under the same names.

    Attributes:
        target_ratio: of all voxels of the batches, in the long run, so many shall be embolus; the share of crops that
            are drawn on emboli follows from it, and `embolus_share` is not asked. 0: `embolus_share` decides.
        balanced_sizes: emboli under 0.3 ml are drawn as often as larger ones.
        lung_crop: crops come from the box around the lungs. False: from all that the case holds, which is more than
            that box only where the case was made with a larger `margin_mm`.
        concatenate_share: of the crops on emboli are put together of two or four smaller ones on small emboli.
        copy_paste_share: of the crops get one more embolus, copied from an artery of the same calibre.
        turned_share: of the crops are turned and scaled.
        variation: how strongly crops are turned and recoloured; 0: not at all, 1: as between patients and scanners.
    """

    target_ratio: float = 0.0
    balanced_sizes: bool = True
    lung_crop: bool = True
    concatenate_share: float = 0.0
    copy_paste_share: float = 0.0
    turned_share: float = 0.0
    variation: float = 1.0

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> CropOptions:
        """Those of `table` that are crop options; the others are somebody else's."""
        return cls(**{field.name: table[field.name] for field in fields(cls) if field.name in table})


PLAIN = CropOptions()


class _Crops:
    """Crops of `crop_zyx`, `size` in a batch, of which `embolus_share` are on emboli."""

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        crop_zyx: Sequence[int],
        size: int,
        embolus_share: float,
        seed: int,
        options: CropOptions,
    ) -> None:
        z, y, x = crop_zyx
        self.cases, self.crop_zyx, self.size, self.seed, self.options = cases, (z, y, x), size, seed, options
        self.choice = CropChoice(cases, balanced_sizes=options.balanced_sizes, lung_crop=options.lung_crop)
        self.clots = ClotSource(cases, (PASTE_ROOM, *self.crop_zyx))
        self.embolus_share = self._share_for(options.target_ratio) if options.target_ratio else embolus_share

    def _crops(self, step: int) -> list[Block]:
        """The crops of a step; those on emboli come first, a fixed number of them: steadier gradients than a coin."""
        on_embolus = embolus_crops_at(step, self.size, self.embolus_share)
        return [
            self._crop(np.random.default_rng((self.seed, step, index)), index < on_embolus)
            for index in range(self.size)
        ]

    def _crop(self, rng: np.random.Generator, on_embolus: bool) -> Block:
        crop = self._content(rng, on_embolus)
        if rng.random() < 0.5:
            crop = mirrored(crop)
        return crop._replace(hu=recoloured(crop.hu, rng, self.options.variation))

    def _content(self, rng: np.random.Generator, on_embolus: bool) -> Block:
        """A crop with its own colours."""
        if on_embolus and self.choice.has_emboli and rng.random() < self.options.concatenate_share:
            return concatenated(
                tile_edges(self.crop_zyx, rng), lambda shape: self._around(self.choice.small_embolus(rng), shape, rng)
            )
        pastes = rng.random() < self.options.copy_paste_share
        elsewhere = self.choice.artery if pastes else self.choice.other
        place = self.choice.embolus(rng) if on_embolus and self.choice.has_emboli else elsewhere(rng)
        if not pastes:
            return self._turned(place, self.crop_zyx, rng)
        z, y, x = self.crop_zyx
        return self._thinned(pasted(self._turned(place, (max(z, PASTE_ROOM), y, x), rng), self.clots, rng), rng)

    def _turned(self, place: Place, shape_zyx: Shape, rng: np.random.Generator) -> Block:
        """A block around a place, as it lies or, by the share, turned."""
        if rng.random() < self.options.turned_share and self.options.variation > 0:
            turn = Turn.draw(rng, self.options.variation)
            return turn.apply(self._around(place, turn.source_shape(shape_zyx), rng), shape_zyx)
        return self._around(place, shape_zyx, rng)

    def _thinned(self, block: Block, rng: np.random.Generator) -> Block:
        """As many slices of a block as a crop has, around one with an embolus where there is any."""
        slices, wanted = len(block.hu), self.crop_zyx[0]
        if slices == wanted:
            return block
        filled = np.flatnonzero(block.embolus.any(axis=(1, 2)))
        middle = int(rng.choice(filled)) if len(filled) else slices // 2
        start = min(max(middle - wanted // 2, 0), slices - wanted)
        return block.part((slice(start, start + wanted),))

    def _around(self, place: Place, shape_zyx: Shape, rng: np.random.Generator) -> Block:
        """A block of `shape_zyx`, the place somewhere in the middle."""
        shape, smallest = np.asarray(shape_zyx), np.minimum(shape_zyx, self.crop_zyx)
        jitter = rng.uniform(-CENTRE_JITTER, CENTRE_JITTER, 3) * np.where(smallest > 1, smallest, 0)
        start = np.round(place.centre + jitter - shape / 2).astype(int)
        return self.cases[place.case].block(self.choice.bounds[place.case].start_inside(start, shape_zyx), shape_zyx)

    def _share_for(self, ratio: float) -> float:
        """The share of crops on emboli with which `ratio` of all voxels are embolus."""
        on, off = (
            float(
                np.mean(
                    [
                        self._content(np.random.default_rng((self.seed, kind, index)), bool(kind)).embolus.mean()
                        for index in range(RATIO_CROPS)
                    ]
                )
            )
            for kind in (1, 0)
        )
        if not off <= ratio <= on:
            raise ConfigurationError(
                f"target_ratio {ratio}: crops on emboli are {on:.5f} embolus, others {off:.5f}",
                code="training.target_ratio",
                remedy=f"choose a ratio from {off:.5f} to {on:.5f}, or crops of another size",
            )
        return (ratio - off) / (on - off) if on > off else 1.0


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
        options: CropOptions = PLAIN,
    ) -> None:
        super().__init__(cases, crop_zyx, size, embolus_share, seed, options)
        self.veins = veins

    def batch(self, step: int) -> Batch:
        crops = self._crops(step)
        targets = [_masks(crop) if self.veins else _masks(crop)[:2] for crop in crops]
        return _to_batch([aanet_input(crop.hu)[None] for crop in crops], targets)


class SliceSource(_Crops):
    """2D crops for the UNets: input (N, 5, y, x) as `unet_channels` makes it, target embolus (N, 1, y, x)."""

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        crop_yx: Sequence[int],
        size: int,
        embolus_share: float,
        seed: int,
        *,
        options: CropOptions = PLAIN,
    ) -> None:
        super().__init__(cases, (3, *crop_yx), size, embolus_share, seed, options)

    def batch(self, step: int) -> Batch:
        crops = self._crops(step)
        return _to_batch(
            [unet_channels(crop.hu, 1) for crop in crops], [crop.embolus[1:2].astype(np.float32) for crop in crops]
        )


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


def _masks(crop: Block) -> NDArray[np.float32]:
    """(3, z, y, x): embolus, artery, vein; a clot lies in the artery, whoever marked what."""
    unknown = (crop.anatomy >= UNKNOWN_VESSELS) & ~crop.embolus
    masks = [crop.embolus, (crop.anatomy == ARTERY) | crop.embolus, (crop.anatomy == VEIN) & ~crop.embolus]
    targets = np.stack(masks).astype(np.float32)
    targets[1:, unknown] = UNKNOWN
    return targets


def _to_batch(inputs: list[NDArray[np.float32]], targets: list[NDArray[np.float32]]) -> Batch:
    return Batch(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets)))
