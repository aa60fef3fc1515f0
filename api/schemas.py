"""What the API says, field by field. Units stand in the names; times are UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from imaging.findings import ArteryLevel, Outcome
from services.store.rows import DeliveryState, JobState, Priority, Source, Stage

Fraction = Annotated[float, Field(ge=0, le=1)]
PointLpsMm = tuple[float, float, float]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReasonSchema(Schema):
    """Why a study was not analysable; on an analysed one, what a reader must know about the image."""

    code: str = Field(description="Stable and dotted", examples=["geometry.missing_slices"])
    text: str = Field(description="For people, with the measured value", examples=["3 of 240 slices are missing"])


class LesionSchema(Schema):
    """One embolus."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: int = Field(ge=1, description="Value of its voxels in mask.nii.gz; highest score first")
    score: Fraction = Field(description="Calibrated probability that this is an embolus")
    volume_ml: float
    centroid_lps_mm: PointLpsMm = Field(description="Centre of mass in patient coordinates: left, posterior, superior")
    peak_lps_mm: PointLpsMm = Field(description="Most probable voxel in patient coordinates")
    max_diameter_mm: float
    mean_hu: float
    artery_level: ArteryLevel
    sop_instance_uid: str | None = Field(description="Source image that shows the peak; null for NIfTI and NRRD input")


class FindingsSchema(Schema):
    """What is said about one scan: the content of findings.json."""

    model_config = ConfigDict(extra="allow", frozen=True)

    outcome: Outcome
    reasons: list[ReasonSchema]
    scan_probability: Fraction | None = Field(description="That the scan holds an embolus; null if it was not analysed")
    clot_burden_ml: float | None
    lesions: list[LesionSchema]
    provenance: dict[str, Any] = Field(description="Software, model package, thresholds and inputs that made this")
    notice: str


class JobErrorSchema(Schema):
    """Why a job failed or was called off."""

    code: str = Field(examples=["worker_lost"])
    message: str


class DeliverySchema(Schema):
    """What became of sending one result object, or one notification, to one destination."""

    id: int = Field(description="For POST to `deliveries/{id}/retry`")
    destination: str = Field(examples=["node:PACS"])
    state: DeliveryState = Field(
        description="stored: the destination has it and is yet to commit to keeping it; parked: waits for a retry"
    )
    attempts: int
    sop_instance_uid: str | None = Field(description="null for a notification")
    message_id: str | None = Field(description="Of a notification, the same however often it is sent")
    last_attempt_at: datetime | None
    last_error: str | None
    dimse_status: str | None = Field(
        description="What the destination last answered about this object; null where no answer came",
        examples=["0xB000"],
    )
    status_comment: str | None = Field(description="The destination's own words on it (Error Comment)")
    warning: str | None = Field(description="The object was taken with a warning", examples=["data elements coerced"])
    next_attempt_at: datetime | None = Field(description="null unless pending or stored")
    delivered_at: datetime | None
    committed_at: datetime | None = Field(description="When the node committed to keeping the object, if it was asked")


class LinksSchema(Schema):
    """Where to go from here, relative to this server; null where there is nothing (yet)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    itself: str = Field(alias="self", examples=["/segment/1b2c"])
    events: str
    findings: str | None
    seg: str | None
    sr: str | None
    report: str | None
    key_images: str | None
    mask: str | None
    artery: str | None
    preview: str | None


class JobSummarySchema(Schema):
    """One line of the worklist."""

    id: str = Field(examples=["6f1f7a52-5a3e-4b2f-9a44-2c1de28f1f0e"])
    state: JobState
    stage: Stage | None = Field(description="What a running job is doing")
    progress: Fraction = Field(description="Of the whole job")
    queue_position: int | None = Field(description="Jobs that start before this one; null unless queued")
    deliveries_parked: int = Field(description="Deliveries that failed for too long and wait for somebody's retry")
    priority: Priority
    source: Source
    input_kind: Literal["dicom", "nifti", "nrrd"]
    calling_ae_title: str | None = Field(
        description="Who sent it by C-STORE, or what it was fetched from: an AE title, or dicomweb:NAME"
    )
    study_instance_uid: str | None
    series_instance_uid: str | None
    instance_count: int
    outcome: Outcome | None
    lesion_count: int | None = Field(description="null until there is a result")
    scan_probability: Fraction | None
    clot_burden_ml: float | None
    reasons: list[ReasonSchema]
    error: JobErrorSchema | None
    created_at: datetime
    updated_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    links: LinksSchema


class JobSchema(JobSummarySchema):
    """Everything about one job."""

    expected_wait_s: float | None = Field(
        description="Until it starts, by what the last jobs took; null unless queued, or while nothing is known of that"
    )
    completion_reason: str | None = Field(description="Why its input was taken for complete")
    supersedes: str | None = Field(description="Job on an earlier, partial state of the same series")
    attempts: int
    can_retry: bool = Field(description="Whether POST to `retry` queues it again")
    inputs_purged_at: datetime | None = Field(description="Since when its input files are gone; null: they are here")
    results_purged_at: datetime | None = Field(description="Since when its result files are gone; findings stay")
    stage_seconds: dict[str, float] = Field(description="Wall time of each stage, s")
    findings: FindingsSchema | None
    deliveries: list[DeliverySchema]


class JobPageSchema(Schema):
    """Newest first."""

    jobs: list[JobSummarySchema]
    next: str | None = Field(description="Pass as `cursor` for the next page; null on the last one")


class ProgressSchema(Schema):
    """Data of the server-sent events `progress` and `end`."""

    state: JobState
    stage: Stage | None
    progress: Fraction
    queue_position: int | None
    outcome: Outcome | None


class LiveSchema(Schema):
    status: Literal["live"] = "live"


class PartSchema(Schema):
    """One thing the gateway depends on."""

    ok: bool
    detail: str = ""


class ReadySchema(Schema):
    """`degraded`: studies are taken in, but wait for Redis to come back."""

    status: Literal["ready", "degraded"]
    parts: dict[str, PartSchema]


class ProblemSchema(BaseModel):
    """RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:embolens:problem:not_found"])
    title: str = Field(examples=["Not found"])
    status: int = Field(examples=[404])
    detail: str
    instance: str = Field(description="Path of the request")
    code: str = Field(description="Stable; what a program reads", examples=["not_found"])
    remedy: str | None = Field(None, description="What the caller can do about it")
    reasons: list[ReasonSchema] = Field([], description="Why the input cannot be analysed")
