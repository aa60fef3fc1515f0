"""Which studies are fetched by themselves: the [[retrieve]] tables of deploy/destinations.toml."""

from __future__ import annotations

import re
from datetime import date, time, timedelta
from typing import Literal

from pydantic import Field, model_validator

from services.retrieve.found import FoundSeries
from services.store.rows import Priority
from services.toml_file import Pattern, TomlTable

# What describes a series with contrast where the node does not name the agent; first, what says the opposite.
CONTRAST_DESCRIPTION = (
    r"^(?!.*(nativ|non.?con|without|w/?o\b|unenhanced|\bplain))"
    r".*(contrast|kontrast|angio|art(eri|\b)|embol|\b(CM|KM|IV|CTA|CT ?PA|PE|LE)\b)"
)

_MATCHED = (
    256  # characters of a description, which has 64 (PS3.5 6.2): what a node sends decides how long matching takes
)


class StudyQuery(TomlTable):
    """The studies, and in each the series, that one run of a rule asks for.

    Attributes:
        study_dates: a date range as DICOM matches it (PS3.4 C.2.2.2.5), "20260102-20260103"; empty: any.
        description: found in Series or Study Description, upper and lower case alike.
        contrast: only series with a contrast agent; where the node names none, with `contrast_description`.
    """

    rule: str
    modality: str = "CT"
    study_dates: str = ""
    description: Pattern | None = None
    contrast: bool = False
    contrast_description: Pattern = CONTRAST_DESCRIPTION

    def wants(self, series: FoundSeries, study_description: str) -> bool:
        described = f"{series.description[:_MATCHED]}\n{study_description[:_MATCHED]}"
        if series.modality and series.modality != self.modality:
            return False
        if self.description is not None and not re.search(self.description, described, re.IGNORECASE):
            return False
        if not self.contrast or series.contrast_agent:
            return True
        # A series that says nothing of itself is judged by its study.
        return bool(
            re.search(self.contrast_description, (series.description or study_description)[:_MATCHED], re.IGNORECASE)
        )


class RetrieveRule(TomlTable):
    """One [[retrieve]] table; see deploy/destinations.toml."""

    name: str = Field(min_length=1, max_length=64)
    node: str = Field(min_length=1, max_length=128)
    at: time | None = None
    modality: str = Field("CT", pattern=r"^[A-Z]{2,16}$")
    study_date: Literal["today", "yesterday"] | None = None
    last_days: int | None = Field(None, ge=1, le=366)
    description: Pattern | None = None
    contrast: bool = False
    contrast_description: Pattern = CONTRAST_DESCRIPTION
    priority: Priority = Priority.ROUTINE

    @model_validator(mode="after")
    def _names_the_days(self) -> RetrieveRule:
        if (self.study_date is None) == (self.last_days is None):
            raise ValueError('exactly one of study_date ("today", "yesterday") and last_days')
        if self.at is not None and self.at.tzinfo is not None:
            raise ValueError("at is local time, without a time zone")
        return self

    def query(self, today: date) -> StudyQuery:
        """What a run on this day asks for."""
        last = today - timedelta(days=1) if self.study_date == "yesterday" else today
        first = last - timedelta(days=(self.last_days or 1) - 1)
        return StudyQuery(
            rule=self.name,
            modality=self.modality,
            study_dates=f"{first:%Y%m%d}-{last:%Y%m%d}",
            description=self.description,
            contrast=self.contrast,
            contrast_description=self.contrast_description,
        )
