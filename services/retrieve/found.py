"""What a node says it has, whether it was asked by C-FIND or by QIDO-RS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

from pydicom.dataset import Dataset, FileMetaDataset

from services.dicom.headers import integer, text
from services.dicom.storage import CT_STORAGE_SOP_CLASSES

if TYPE_CHECKING:
    from pynetdicom.events import Event

    from services.ingest.arriving_series import Calling

_CT_CLASSES = frozenset(CT_STORAGE_SOP_CLASSES.values())


@dataclass(frozen=True, slots=True)
class FoundStudy:
    study_instance_uid: str
    description: str


@dataclass(frozen=True, slots=True)
class FoundSeries:
    """Empty texts and None where the node does not say.

    Attributes:
        instances: Number of Series Related Instances (0020,1209).
    """

    series_instance_uid: str
    modality: str
    description: str
    contrast_agent: str
    instances: int | None


@dataclass(frozen=True, slots=True)
class Suboperations:
    """How many instances of one fetch came, and how many the node could not send."""

    completed: int
    failed: int


class Receiver(Protocol):
    """What keeps the instances that come: the listener."""

    def answer_store(self, event: Event) -> Dataset: ...

    def take_in(self, encoded: BytesIO, file_meta: FileMetaDataset, calling: Calling) -> None: ...


class RunningFetch:
    """What lets another thread break a fetch off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._break_off: Callable[[], object] | None = None
        self._is_over = False

    def can_be_broken_off_by(self, break_off: Callable[[], object]) -> None:
        with self._lock:
            self._break_off = break_off
            is_over = self._is_over
        if is_over:
            break_off()

    def break_off(self) -> None:
        with self._lock:
            self._is_over = True
            break_off = self._break_off
        if break_off is not None:
            break_off()


class Archive(Protocol):
    """A node that can be asked and fetched from. Every wait is bounded.

    Raises, in each method: `NodeUnavailable` where it does not answer or cannot do what it is asked for.
    """

    def studies(self, *, modality: str, study_dates: str) -> list[FoundStudy]: ...

    def study(self, study_instance_uid: str) -> FoundStudy | None: ...

    def series(self, study_instance_uid: str, series_instance_uid: str | None = None) -> list[FoundSeries]: ...

    def ct_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs of the series, without those that are known to be of another storage class than CT."""
        ...

    def fetch(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uids: Sequence[str] | None,
        *,
        receiver: Receiver,
        on_progress: Callable[[Suboperations], bool],
        running: RunningFetch,
    ) -> Suboperations:
        """Have a series sent, or only some of its instances. What had come before an error has come.

        Args:
            on_progress: called on every answer; what it returns says whether to go on.
            running: by which another thread breaks this off.
        """
        ...


def found_study(answer: Dataset) -> FoundStudy:
    return FoundStudy(text(answer, "StudyInstanceUID"), text(answer, "StudyDescription"))


def found_series(answer: Dataset) -> FoundSeries:
    return FoundSeries(
        series_instance_uid=text(answer, "SeriesInstanceUID"),
        modality=text(answer, "Modality"),
        description=text(answer, "SeriesDescription"),
        contrast_agent=text(answer, "ContrastBolusAgent"),
        instances=integer(answer, "NumberOfSeriesRelatedInstances"),
    )


def ct_instances(answers: Sequence[Dataset]) -> frozenset[str]:
    return frozenset(
        text(answer, "SOPInstanceUID")
        for answer in answers
        if text(answer, "SOPInstanceUID") and text(answer, "SOPClassUID") in _CT_CLASSES | {""}
    )
