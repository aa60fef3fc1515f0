"""A workitem as the origin server describes it, and whether it is one for us."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from services.delivery.destinations import DICOMWEB, Destinations
from services.dicom.headers import MALFORMED, text
from services.dicom.storage import CT_STORAGE_SOP_CLASSES
from services.store.rows import Priority
from services.store.study_store import is_uid
from services.store.worklist_items import InputSeries
from services.worklist.worklist_table import Code, Worklist

# Procedure Step State (0074,1000), PS3.4 Table CC.1.1-1
SCHEDULED = "SCHEDULED"
IN_PROGRESS = "IN PROGRESS"
COMPLETED = "COMPLETED"
CANCELED = "CANCELED"

READY = "READY"  # Input Readiness State (0040,4041)
_URGENCY = {"HIGH": 0, "MEDIUM": 1, "LOW": 2}  # Scheduled Procedure Step Priority (0074,1200)
_CT_CLASSES = frozenset(CT_STORAGE_SOP_CLASSES.values())


@dataclass(frozen=True, slots=True)
class Workitem:
    """What of a workitem matters here; its patient does not."""

    dataset: Dataset

    @property
    def uid(self) -> str:
        return text(self.dataset, "SOPInstanceUID")

    @property
    def state(self) -> str:
        return text(self.dataset, "ProcedureStepState")

    @property
    def priority(self) -> Priority:
        return Priority.STAT if text(self.dataset, "ScheduledProcedureStepPriority") == "HIGH" else Priority.ROUTINE

    @property
    def urgency(self) -> tuple[int, str]:
        """The smallest goes first: by priority, then by the time for which it is scheduled."""
        priority = text(self.dataset, "ScheduledProcedureStepPriority")
        return _URGENCY.get(priority, len(_URGENCY)), text(self.dataset, "ScheduledProcedureStepStartDateTime")

    def code(self, worklist: Worklist) -> Code | None:
        """The scheduled workitem code, if it is one that the worklist's table lists."""
        scheduled = [_coded(item) for item in _items(self.dataset, "ScheduledWorkitemCodeSequence")]
        return next((one for one in worklist.workitem_codes if (one.value, one.scheme) in scheduled), None)

    def is_for_us(self, worklist: Worklist, now: datetime) -> bool:
        """Whether it waits for us. Asked of every workitem found: origin servers need not match by every key."""
        stations = [_coded(item) for item in _items(self.dataset, "ScheduledStationNameCodeSequence")]
        ours = (worklist.station.value, worklist.station.scheme) in stations
        return (
            self.state == SCHEDULED
            and text(self.dataset, "InputReadinessState") == READY
            and (ours or (worklist.unassigned and not stations))
            and self.code(worklist) is not None
            and worklist.worklist_label in (None, text(self.dataset, "WorklistLabel"))
            and not self._begins_after(now)
        )

    def _begins_after(self, now: datetime) -> bool:
        try:
            begins = DT(text(self.dataset, "ScheduledProcedureStepStartDateTime"))
        except MALFORMED:
            return False
        return begins is not None and begins.astimezone() > now  # without an offset it is local time

    def inputs(
        self, destinations: Destinations, fetchable: Collection[str], otherwise: str | None
    ) -> list[InputSeries]:
        """The CT series of the Input Information Sequence, each once.

        Args:
            fetchable: names of those who can be fetched from.
            otherwise: who is asked where the workitem names none of them.
        """
        found: dict[tuple[str, str], InputSeries] = {}
        for item in _items(self.dataset, "InputInformationSequence"):
            images = [(text(one, "ReferencedSOPClassUID"), one) for one in _items(item, "ReferencedSOPSequence")]
            ct_images = [text(one, "ReferencedSOPInstanceUID") for sop_class, one in images if sop_class in _CT_CLASSES]
            if images and not ct_images:
                continue
            key = text(item, "StudyInstanceUID"), text(item, "SeriesInstanceUID")
            if not all(map(is_uid, key)):
                continue  # it names no series, or is not DICOM
            before = found[key].sop_instance_uids if key in found else ()
            named = (who for who in _held_by(item, destinations) if who in fetchable)
            found[key] = InputSeries(*key, (*before, *ct_images), next(named, otherwise))
        return list(found.values())


def _held_by(item: Dataset, destinations: Destinations) -> Iterator[str]:
    """Who has the instances, by the item (PS3.3 Table 10-3b) and our own list: nobody else is ever asked."""
    for retrieval in _items(item, "WADORSRetrievalSequence"):
        url = text(retrieval, "RetrieveURL")
        for service in destinations.dicomweb:
            if url.startswith(f"{str(service.url).rstrip('/')}/"):
                yield DICOMWEB + service.name
    for retrieval in _items(item, "DICOMRetrievalSequence"):
        yield from text(retrieval, "RetrieveAETitle").split("\\")


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    try:
        return list(dataset.get(keyword) or ())
    except MALFORMED:
        return []


def _coded(item: Dataset) -> tuple[str, str]:
    return text(item, "CodeValue"), text(item, "CodingSchemeDesignator")
