"""What a benchmark found: rows of figures side by side, how cost grows, and the floor that the machine sets."""

from __future__ import annotations

import statistics

import numpy as np
from pydantic import BaseModel, ConfigDict


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Finding):
    """What one way of doing it gave, once per round; or a single figure that is counted and not timed."""

    name: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


class Floor(_Finding):
    """What the machine could do at best, and from what that follows: bytes over a bandwidth, FLOPs over a rate."""

    value: float
    why: str


class Goal(_Finding):
    says: str
    met: bool


class Row(_Finding):
    """Ours, what others gave in the same rounds, the floor. `unit` says what the figures are: "slices/s", "s", "MB"."""

    what: str
    unit: str
    higher_is_better: bool
    ours: Figure
    others: tuple[Figure, ...] = ()
    floor: Floor | None = None
    goals: tuple[Goal, ...] = ()

    @property
    def best_other(self) -> Figure | None:
        if not self.others:
            return None
        return (max if self.higher_is_better else min)(self.others, key=lambda figure: figure.median)

    def times_better_than(self, other: Figure) -> float:
        """2.0: twice as fast, or half as much, as that one."""
        ratio = self.ours.median / other.median
        return ratio if self.higher_is_better else 1 / ratio

    @property
    def share_of_floor(self) -> float | None:
        """1.0: as good as the machine can be."""
        if self.floor is None:
            return None
        ratio = self.ours.median / self.floor.value
        return ratio if self.higher_is_better else 1 / ratio


class Growth(_Finding):
    """How a cost grows with one size, at three sizes or more."""

    what: str
    size: str  # "slices"
    unit: str
    points: tuple[tuple[float, float], ...]  # size, cost
    explanation: str = ""  # where it grows faster than the size

    @property
    def exponent(self) -> float:
        """1.0: linear. The slope of a line through the logarithms; a fixed cost draws it below 1."""
        sizes, costs = np.log(np.array(self.points)).T
        return float(np.polyfit(sizes, costs, 1)[0])


class Page(_Finding):
    """One benchmark: its rows and growths, how it was done, and with which versions of whom."""

    title: str
    how: str
    rows: tuple[Row, ...]
    growths: tuple[Growth, ...] = ()
    # Filled in when it is kept: the module's name, where and when.
    name: str = ""
    machine: str = ""
    measured_on: str = ""
