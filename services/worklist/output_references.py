"""The result objects of a job, and where whoever asked for them can get each."""

from __future__ import annotations

from dataclasses import dataclass

from services.delivery.destinations import DICOMWEB, NODE, Destinations
from services.dicom.headers import read_header, text
from services.settings import Settings
from services.store.outbox import Outbox
from services.store.rows import DeliveryState
from services.store.study_store import StudyStore


@dataclass(frozen=True, slots=True)
class Output:
    """Objects of one series. `ae_titles` are nodes that have them, `urls` are the series' by WADO-RS (PS3.18 10.4).

    Attributes:
        objects: SOP Class UID and SOP Instance UID of each.
    """

    study_instance_uid: str
    series_instance_uid: str
    ae_titles: tuple[str, ...]
    urls: tuple[str, ...]
    objects: tuple[tuple[str, str], ...]


def outputs_of(
    job_id: str, store: StudyStore, outbox: Outbox, destinations: Destinations, settings: Settings
) -> list[Output]:
    """Those objects of the job that somebody can get: from a node or a DICOMweb service that took them, or, where it is
    known how we are reached (`gateway_url`), from our own."""
    holders: dict[str, list[str]] = {}
    for row in outbox.of_job(job_id):
        if row.sop_instance_uid is not None and row.state == DeliveryState.DELIVERED:
            holders.setdefault(row.sop_instance_uid, []).append(row.destination)
    found: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], list[tuple[str, str]]] = {}
    for path in sorted(store.result_directory(job_id).glob("*.dcm")):
        header = read_header(path)
        study, series = text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID")
        sop_instance_uid = text(header, "SOPInstanceUID")
        held_by = holders.get(sop_instance_uid, [])
        ae_titles = tuple(holder.removeprefix(NODE) for holder in held_by if holder.startswith(NODE))
        bases = [str(service.url) for service in destinations.dicomweb if DICOMWEB + service.name in held_by]
        if settings.gateway_url:
            bases.append(f"{settings.gateway_url.rstrip('/')}/dicom-web")
        urls = tuple(f"{base.rstrip('/')}/studies/{study}/series/{series}" for base in bases)
        if ae_titles or urls:
            one = (text(header, "SOPClassUID"), sop_instance_uid)
            found.setdefault((study, series, ae_titles, urls), []).append(one)
    return [Output(*of_series, objects=tuple(objects)) for of_series, objects in found.items()]
