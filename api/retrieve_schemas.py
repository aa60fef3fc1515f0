"""What the API says of retrievals."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated

from pydantic import Field, model_validator

from api.schemas import JobErrorSchema, Schema
from services.retrieve.rules import CONTRAST_DESCRIPTION, RetrieveRule
from services.store.rows import Priority, RetrievalState

# Without repetition and groups, Python's backtracking takes time in proportion to text times pattern.
_REPEATS = re.compile(r"[*+?{(]")
Uid = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64, examples=["1.2.840.113619.2.1"])]


class RetrieveRequestSchema(Schema):
    """Either a study of a node, or a rule."""

    node: str | None = Field(None, description="AE title of a node, or dicomweb:NAME", examples=["PACS"])
    study_instance_uid: Uid | None = None
    series_instance_uid: Uid | None = Field(None, description="Only this series of the study")
    rule: str | RetrieveRule | None = Field(
        None, description="Name of a [[retrieve]] table in destinations.toml, or one written out; it runs at once"
    )
    priority: Priority | None = Field(None, description="Left out: routine, or what the rule says")

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> RetrieveRequestSchema:
        if (self.rule is None) == (self.study_instance_uid is None):
            raise ValueError("either study_instance_uid and node, or rule")
        if self.study_instance_uid is not None and self.node is None:
            raise ValueError("study_instance_uid needs the node that has it")
        if isinstance(self.rule, RetrieveRule):
            for pattern in (self.rule.description, self.rule.contrast_description):
                if pattern not in (None, CONTRAST_DESCRIPTION) and (len(pattern) > 200 or _REPEATS.search(pattern)):
                    raise ValueError(
                        "a pattern in a rule written out has at most 200 characters and none of * + ? { (: "
                        "matching it could take for ever; such a rule belongs into destinations.toml"
                    )
        if self.rule is not None and (self.node is not None or self.series_instance_uid is not None):
            raise ValueError("a rule names its node and takes no series")
        return self


class RetrievedSeriesSchema(Schema):
    """One series of the study."""

    series_instance_uid: str
    instances: int = Field(description="What the node has; CT images, unless it is skipped")
    received: int = Field(description="Of them here, whoever sent them")
    failed: int = Field(description="That the node could not send, the last time")
    skipped: str | None = Field(description="Code of why it is not fetched", examples=["intake.modality"])
    job: str | None = Field(description="Id of the newest job on it")


class RetrievalSchema(Schema):
    """The fetching of one study, or one run of a rule, which starts the fetching of several."""

    id: str
    state: RetrievalState
    priority: Priority
    node: str
    study_instance_uid: str | None = Field(description="null for the run of a rule")
    series_instance_uid: str | None
    rule: str | None = Field(description="Name of the rule that asked for it")
    parent: str | None = Field(description="The run of the rule that asked for it")
    instances_found: int
    instances_received: int
    instances_failed: int
    series: list[RetrievedSeriesSchema]
    jobs: list[str] = Field(description="Ids of the newest jobs on its series")
    studies_found: int | None = Field(description="By the run of a rule: studies that the node has of those days")
    retrievals: list[str] = Field(description="By the run of a rule: what it asked for; the newest 500")
    attempts: int = Field(description="That failed")
    next_attempt_at: datetime | None = Field(description="null unless pending")
    error: JobErrorSchema | None = Field(description="Of the last attempt")
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class RetrievalPageSchema(Schema):
    """Newest first."""

    retrievals: list[RetrievalSchema]
    next: str | None = Field(description="Pass as `cursor` for the next page; null on the last one")
