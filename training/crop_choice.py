"""Where to crop: which case, on which embolus, or on what is none; and how often on either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.cases import ARTERY, LUNG, UNKNOWN_VESSELS, TrainingCase

SMALL_EMBOLUS_VOXELS = 300  # 0.3 ml on the 1 mm grid
LUNG_MARGIN_MM = 12
LUNG_STEP_MM = 4  # the lung box is found on every fourth voxel

EmboliOfCases = dict[int, list[NDArray[np.int16]]]
"""The points (n, 3) of each embolus, by the number of its case."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The part of a case that crops are taken from: a half-open box, both (3,) in (z, y, x)."""

    low: NDArray[np.int_]
    high: NDArray[np.int_]

    def hold(self, points: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Which of the points (n, 3) lie inside."""
        return np.asarray(((points >= self.low) & (points < self.high)).all(axis=1))

    def start_inside(self, start: NDArray[np.int_], shape: Sequence[int]) -> NDArray[np.int_]:
        """`start` moved so that a block of `shape` stays inside, or begins with the box where it is too large."""
        return np.clip(start, self.low, np.maximum(self.high - shape, self.low))


def whole_case(case: TrainingCase) -> Bounds:
    return Bounds(np.zeros(3, int), np.asarray(case.hu.shape))


def lung_bounds(case: TrainingCase) -> Bounds:
    """The box around both lungs and 12 to 15 mm; the whole case where no lung is marked.

    Emboli lie in the box of the lungs, but often not in the lungs: central arteries are outside.
    """
    coarse = case.anatomy[::LUNG_STEP_MM, ::LUNG_STEP_MM, ::LUNG_STEP_MM]
    lung = (coarse & np.uint8(255 - UNKNOWN_VESSELS)) == LUNG
    if not lung.any():
        return whole_case(case)
    filled = [np.flatnonzero(lung.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low = np.array([some[0] for some in filled]) * LUNG_STEP_MM - LUNG_MARGIN_MM - LUNG_STEP_MM + 1
    high = np.array([some[-1] for some in filled]) * LUNG_STEP_MM + LUNG_MARGIN_MM + LUNG_STEP_MM
    return Bounds(np.maximum(low, 0), np.minimum(high, case.hu.shape))


@dataclass(frozen=True, slots=True)
class Place:
    """A voxel of a case: its number among the cases and (3,) in (z, y, x)."""

    case: int
    centre: NDArray[np.int16]


class CropChoice:
    """Draws places to crop at.

    Args:
        balanced_sizes: emboli under 0.3 ml, as a class, are drawn as often as the others, then every case that has
            such emboli as often as the next, then its emboli; otherwise a case is drawn, then a voxel of its emboli.
        lung_crop: only from the box around the lungs; otherwise from all that the case holds.
    """

    def __init__(self, cases: Sequence[TrainingCase], *, balanced_sizes: bool, lung_crop: bool) -> None:
        self.bounds = [lung_bounds(case) if lung_crop else whole_case(case) for case in cases]
        self.others = [_inside(case.other_points, bounds) for case, bounds in zip(cases, self.bounds, strict=True)]
        on_artery = [
            points[case.anatomy[tuple(points.T)] == ARTERY] for case, points in zip(cases, self.others, strict=True)
        ]
        self.arteries = {number: [points] for number, points in enumerate(on_artery) if len(points)}
        self.small: EmboliOfCases = {}
        self.large: EmboliOfCases = {}
        for number, (case, bounds) in enumerate(zip(cases, self.bounds, strict=True)):
            for points in points_of_each_embolus(case):
                inside = points[bounds.hold(points)]
                if len(inside):
                    kind = self.small if len(points) < SMALL_EMBOLUS_VOXELS else self.large
                    kind.setdefault(number, []).append(inside)
        kinds = (self.small, self.large) if balanced_sizes else (_voxels_of_each_case(self.small, self.large),)
        self.kinds = [kind for kind in kinds if kind]

    @property
    def has_emboli(self) -> bool:
        return bool(self.kinds)

    def embolus(self, rng: np.random.Generator) -> Place:
        """A voxel of an embolus; not to be asked without `has_emboli`."""
        return self._within(self.kinds, rng)

    def small_embolus(self, rng: np.random.Generator) -> Place:
        """A voxel of an embolus that fills little of a crop, where there are such."""
        return self._within([self.small or self.large], rng)

    def artery(self, rng: np.random.Generator) -> Place:
        """A voxel of an artery beside its emboli, where arteries are known."""
        return self._within([self.arteries], rng) if self.arteries else self.other(rng)

    def other(self, rng: np.random.Generator) -> Place:
        """A voxel where there is no embolus: vessels, what touches them, lung."""
        number = int(rng.integers(len(self.others)))
        return Place(number, self.others[number][rng.integers(len(self.others[number]))])

    def _within(self, kinds: Sequence[EmboliOfCases], rng: np.random.Generator) -> Place:
        kind = kinds[int(rng.integers(len(kinds)))]
        number = list(kind)[int(rng.integers(len(kind)))]
        points = kind[number][int(rng.integers(len(kind[number])))]
        return Place(number, points[rng.integers(len(points))])


def _voxels_of_each_case(*kinds: EmboliOfCases) -> EmboliOfCases:
    """All emboli of a case as if they were one."""
    numbers = sorted({number for kind in kinds for number in kind})
    return {number: [np.concatenate([p for kind in kinds for p in kind.get(number, ())])] for number in numbers}


def points_of_each_embolus(case: TrainingCase) -> list[NDArray[np.int16]]:
    """The points (n, 3) of each embolus; a case keeps all voxels of a small one."""
    labels = case.embolus[tuple(case.embolus_points.T)]
    return [case.embolus_points[labels == label] for label in np.unique(labels)]


def _inside(points: NDArray[np.int16], bounds: Bounds) -> NDArray[np.int16]:
    inside = points[bounds.hold(points)]
    if len(inside):
        return inside
    return ((bounds.low + bounds.high) // 2).astype(np.int16)[None]


def embolus_crops_at(step: int, size: int, share: float) -> int:
    """How many crops of the batch of a step are on emboli: in the long run exactly `share` of all crops."""
    return int((step + 1) * size * share + 1e-6) - int(step * size * share + 1e-6)
