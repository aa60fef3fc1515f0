"""A second, finer look where the first one fires: AANet again, on a finer grid, around each candidate.

The first pass works on one isotropic grid, where the smallest arteries are a voxel or two wide. What it calls a
candidate fills a few millilitres of a chest, so that a finer look at all of them costs less than a tenth of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.special import expit, logit

from imaging.errors import ConfigurationError
from imaging.geometry import Box, WorkingGrid, cropped
from imaging.volume import CtVolume, Probability

_CERTAIN = 1e-6

Look = Callable[[NDArray[np.int16]], Probability]
"""HU of a block (z, y, x) on the finer grid -> embolus probability of its voxels."""


@dataclass(frozen=True, slots=True)
class SecondPassSettings:
    """What a package says of its second pass.

    Attributes:
        spacing_mm: of the finer grid.
        from_probability: first-pass probability from which a voxel makes a candidate.
        smallest_mm3: candidates of fewer cubic millimetres are not looked at again.
        margin_mm: around a candidate, for the network to see where it lies.
        share: of the second look in the mean of both looks' log odds.
        most: candidates that are looked at again, the most probable ones.
    """

    spacing_mm: float
    from_probability: float
    smallest_mm3: float
    margin_mm: float
    share: float
    most: int

    def __post_init__(self) -> None:
        if not (self.spacing_mm > 0 and 0 < self.from_probability < 1 and 0 < self.share <= 1 and self.most > 0):
            raise ConfigurationError(
                f"second pass {self}", code="package.second_pass", remedy="shares and probabilities lie within 0..1"
            )


def looked_at_again(
    probability: Probability,
    volume: CtVolume,
    look: Look,
    settings: SecondPassSettings,
    on_progress: Callable[[float], None],
) -> Probability:
    """The first pass's probability, around its candidates joined with what a finer look gives; a new array.

    Args:
        probability: embolus probability (z, y, x) of the first pass on the volume's grid.
        volume: the canonical CT, or a part of it.
        on_progress: called with the share of the candidates done; may raise to stop.
    """
    boxes = list(_candidates(probability, volume, settings))
    if not boxes:
        return probability
    log_odds = np.zeros(probability.shape, dtype=np.float32)
    looks = np.zeros(probability.shape, dtype=np.uint8)
    for done, box in enumerate(boxes, start=1):
        part = cropped(volume, box)
        grid = WorkingGrid.over(part, Box((0, 0, 0), part.shape_zyx), settings.spacing_mm)
        finer = np.clip(grid.restore(look(grid.resample(part.hu))), _CERTAIN, 1 - _CERTAIN)
        log_odds[box.slices] += logit(finer)
        looks[box.slices] += 1
        on_progress(done / len(boxes))
    seen = looks > 0
    first = logit(np.clip(probability[seen], _CERTAIN, 1 - _CERTAIN))
    joined = probability.copy()
    joined[seen] = expit((1 - settings.share) * first + settings.share * log_odds[seen] / looks[seen])
    return joined


def _candidates(probability: Probability, volume: CtVolume, settings: SecondPassSettings) -> Iterator[Box]:
    """Boxes around the candidates and their margin, the most probable candidates first."""
    components = cc3d.connected_components(
        probability >= settings.from_probability, connectivity=26, out_dtype=np.uint32
    )
    smallest = settings.smallest_mm3 / volume.voxel_volume_mm3
    found = []
    for label, place in enumerate(find_objects(components), start=1):
        inside = components[place] == label
        if np.count_nonzero(inside) >= smallest:
            found.append((float(probability[place][inside].max()), place))
    margins = [int(np.ceil(settings.margin_mm / step)) for step in volume.spacing_zyx_mm]
    for _, place in sorted(found, key=lambda item: -item[0])[: settings.most]:
        z, y, x = place
        box = Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))
        yield box.grown((margins[0], margins[1], margins[2]), volume.shape_zyx)
