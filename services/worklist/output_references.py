"""The result objects of a job, and where whoever asked for them can get each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.delivery.destinations import DICOMWEB, NODE, Destinations
from services.dicom.headers import read_header, text
from services.settings import Settings
from services.store.outbox import Outbox
from services.store.rows import DeliveryState
from services.store.study_store import StudyStore


@dataclass(frozen=True, slots=True)
class Output:
    """One object. `ae_titles` are nodes that have it, `urls` are of its series by WADO-RS (PS3.18 10.4)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    ae_titles: tuple[str, ...]
    urls: tuple[str, ...]


def outputs_of(
    job_id: str, store: StudyStore, outbox: Outbox, destinations: Destinations, settings: Settings
) -> Iterator[Output]:
    """Those objects of the job that somebody can get: from a node or a DICOMweb service that took them, or, where it is
    known how we are reached (`gateway_url`), from our own."""
    holders: dict[str, list[str]] = {}
    for row in outbox.of_job(job_id):
        if row.sop_instance_uid is not None and row.state == DeliveryState.DELIVERED:
            holders.setdefault(row.sop_instance_uid, []).append(row.destination)
    for path in sorted(store.result_directory(job_id).glob("*.dcm")):
        header = read_header(path)
        study, series = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
        held_by = holders.get(text(header, "SOPInstanceUID"), [])
        bases = [str(service.url) for service in destinations.dicomweb if DICOMWEB + service.name in held_by]
        if settings.gateway_url:
            bases.append(f"{settings.gateway_url.rstrip('/')}/dicom-web")
        output = Output(
            study_instance_uid=study,
            series_instance_uid=series,
            sop_class_uid=text(header, "SOPClassUID"),
            sop_instance_uid=text(header, "SOPInstanceUID"),
            ae_titles=tuple(holder.removeprefix(NODE) for holder in held_by if holder.startswith(NODE)),
            urls=tuple(f"{base.rstrip('/')}/studies/{study}/series/{series}" for base in bases),
        )
        if output.ae_titles or output.urls:
            yield output
