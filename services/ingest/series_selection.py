"""Which series of a study is the angiogram: points by rules that an operator writes, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from services.dicom.series_reader import SeriesInfo
from services.toml_file import Pattern, TomlTable

Attribute = Literal[
    "description",
    "kernel",
    "image_type",
    "contrast_agent",
    "orientation",
    "slice_thickness_mm",
    "slice_spacing_mm",
    "slices",
]
NUMBERS = ("slice_thickness_mm", "slice_spacing_mm", "slices")


class SelectionRule(TomlTable):
    """One [[selection]] table of deploy/intake.toml.

    `matches` is found anywhere in an attribute's text, upper and lower case alike; `at_least` and `at_most` bound a
    number. An attribute that a series does not have meets no rule.
    """

    attribute: Attribute
    matches: Pattern | None = None
    at_least: float | None = None
    at_most: float | None = None
    points: float
    because: str

    @model_validator(mode="after")
    def _asks_for_something(self) -> SelectionRule:
        is_number = self.attribute in NUMBERS
        if is_number != (self.matches is None) or (is_number and self.at_least is None and self.at_most is None):
            wanted = "at_least or at_most" if is_number else "matches, and no bounds"
            raise ValueError(f"a rule on {self.attribute} needs {wanted}")
        return self

    def is_met_by(self, series: SeriesInfo) -> bool:
        value = _value(series, self.attribute)
        if value is None:
            return False
        if isinstance(value, str):
            return self.matches is not None and re.search(self.matches, value, re.IGNORECASE) is not None
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, slots=True)
class ScoredSeries:
    """A series with its points and the rules that it met."""

    series: SeriesInfo
    met: tuple[SelectionRule, ...]

    @property
    def points(self) -> float:
        return sum(rule.points for rule in self.met)

    @property
    def because(self) -> str:
        """Every rule met and what it gave, "thin slices +2, lung kernel -3". Quotes no attribute of the patient."""
        return ", ".join(f"{rule.because} {rule.points:+g}" for rule in self.met) or "no rule met"


def ranked(series: Sequence[SeriesInfo], rules: Sequence[SelectionRule]) -> list[ScoredSeries]:
    """The most likely angiogram first; among equals the one with more slices, then the smaller UID."""
    scored = [ScoredSeries(one, tuple(rule for rule in rules if rule.is_met_by(one))) for one in series]
    return sorted(scored, key=lambda one: (-one.points, -one.series.count, one.series.series_instance_uid))


def _value(series: SeriesInfo, attribute: Attribute) -> str | float | None:
    if attribute == "slices":
        return series.count
    value: str | float | None = getattr(series, attribute)
    return value or None
