"""What a node says it has, whether it was asked by C-FIND or by QIDO-RS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pydicom.dataset import Dataset, FileMetaDataset

from imaging.errors import NodeUnavailable
from services.dicom.headers import integer, text
from services.dicom.storage import CT_STORAGE_SOP_CLASSES
from services.store.study_store import is_uid

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


class Receiver(Protocol):
    """What keeps the instances that come: the listener."""

    def answer_store(self, event: Event) -> Dataset: ...

    def take_in(self, encoded: BinaryIO, file_meta: FileMetaDataset, calling: Calling) -> None: ...


class Archive(Protocol):
    """A node that can be asked and fetched from. Every wait is bounded.

    Raises, in each method: `NodeUnavailable` where it does not answer or cannot do what it is asked for.
    """

    def studies(self, *, modality: str, study_dates: str) -> list[FoundStudy]: ...

    def study(self, study_instance_uid: str) -> FoundStudy | None: ...

    def series(
        self, study_instance_uid: str, series_instance_uid: str | None = None, *, with_contrast: bool = False
    ) -> list[FoundSeries]:
        """Of the study, or the one that is named. Archives read a file of each series to tell its contrast agent."""
        ...

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """SOP Instance UIDs of the series."""
        ...

    def other_than_ct(self, study_instance_uid: str, series_instance_uid: str, uids: Sequence[str]) -> frozenset[str]:
        """Those of them that the node knows to be of another storage class than CT. Archives read each one's file to
        tell, so this is asked of few."""
        ...

    def fetch(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        uids: Sequence[str] | None,
        *,
        receiver: Receiver,
        on_progress: Callable[[int], bool],
    ) -> None:
        """Have a series sent, or only some of its instances. What had come before an error has come.

        Args:
            on_progress: called on every answer with the number of instances that could not be sent; what it returns
                says whether to go on.
        """
        ...


def other_than_ct(
    archive: Archive, study_instance_uid: str, series_instance_uid: str, missing: frozenset[str]
) -> frozenset[str]:
    """Those of the missing instances that never come because they are no CT; none where the node cannot say."""
    try:
        return archive.other_than_ct(study_instance_uid, series_instance_uid, sorted(missing)) if missing else missing
    except NodeUnavailable:
        return frozenset()


def found_studies(answers: Sequence[Dataset], study_instance_uid: str = "") -> list[FoundStudy]:
    """Those that have a UID; with one given, only that one: not every node matches what it is asked for."""
    return [
        FoundStudy(uid, text(answer, "StudyDescription"))
        for answer in answers
        if is_uid(uid := text(answer, "StudyInstanceUID")) and study_instance_uid in ("", uid)
    ]


def found_series(answers: Sequence[Dataset], series_instance_uid: str | None = None) -> list[FoundSeries]:
    """As `found_studies`."""
    return [
        FoundSeries(
            series_instance_uid=uid,
            modality=text(answer, "Modality"),
            description=text(answer, "SeriesDescription"),
            contrast_agent=text(answer, "ContrastBolusAgent"),
            instances=integer(answer, "NumberOfSeriesRelatedInstances"),
        )
        for answer in answers
        if is_uid(uid := text(answer, "SeriesInstanceUID")) and series_instance_uid in (None, uid)
    ]


def sop_instance_uids(answers: Sequence[Dataset]) -> frozenset[str]:
    return frozenset(uid for answer in answers if is_uid(uid := text(answer, "SOPInstanceUID")))


def without_ct(answers: Sequence[Dataset]) -> list[Dataset]:
    return [answer for answer in answers if text(answer, "SOPClassUID") not in _CT_CLASSES | {""}]
