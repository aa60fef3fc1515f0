"""What is missing of a series that went quiet: by the retrieval that fetches it, its node's count, and its geometry."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from imaging.errors import ConfigurationError, InputError, NodeUnavailable, Reason
from services.dicom.headers import numbers, read_header, text
from services.dicom.stack_geometry import is_even_stack, missing_slices
from services.ingest.arriving_series import ArrivingSeries
from services.process_log import where_raised
from services.retrieve.archives import counting_archive
from services.retrieve.found import Archive, other_than_ct
from services.settings import Settings
from services.store.retrievals import RetrievalStore, has_ended
from services.store.study_store import StudyStore

log = logging.getLogger(__name__)

INCOMPLETE = "intake.incomplete"
_ASK_AGAIN_S = 15.0
_CHEST_MM = 150.0  # lungs are longer; what is shorter may be the beginning of more
_PLACE_KEYWORDS = ("SOPClassUID", "ImageType", "ImagePositionPatient", "ImageOrientationPatient")

_Place = tuple[NDArray[np.float64], NDArray[np.float64]]  # position, and the normal of the image plane


@dataclass
class _Evidence:
    """What is known of one arriving series. The thread that asks a node writes `missing` before `is_asking`."""

    asked_at: float = -np.inf
    is_asking: bool = False
    missing: frozenset[str] | None = None
    places: dict[str, _Place | None] = field(default_factory=dict)


class Completeness:
    """Judges series that would be complete by their quiet time alone. Never waits for a node: it is asked in a thread
    of its own, and the answer is there at a later look."""

    def __init__(self, settings: Settings, store: StudyStore, retrievals: RetrievalStore) -> None:
        self._settings = settings
        self._store = store
        self._retrievals = retrievals
        self._evidence: WeakKeyDictionary[ArrivingSeries, _Evidence] = WeakKeyDictionary()

    def judge(self, series: ArrivingSeries, reason: str) -> tuple[str | None, tuple[Reason, ...]]:
        """Call with the series' lock held.

        Returns:
            why the series is complete (`reason`, or a better one), None where it is still waited for; and, where the
            wait is over although instances are known to be missing, the reason why it cannot be analysed.
        """
        fetched = self._retrievals.of_series(
            series.study_instance_uid, series.series_instance_uid, tenant=series.tenant
        )
        here = len(series.sop_instance_uids)
        if fetched is not None and here < fetched[1].instances and not has_ended(fetched[0]):
            return None, ()  # tried again until it ends
        evidence = self._evidence.setdefault(series, _Evidence())
        if not self._has_answered(series, evidence):
            return None, ()
        is_over = time.monotonic() - series.last_arrival >= self._settings.series_longest_wait_s
        if evidence.missing is not None:
            missing = len(evidence.missing - series.sop_instance_uids)
            if not missing:
                return f"queried {here} instances received", ()
            if not is_over:
                return None, ()
            return reason, (_incomplete(here, here + missing, series.calling_ae_title),)
        if fetched is not None:
            there = fetched[1].instances
            return reason, ((_incomplete(here, there, fetched[0].node),) if here < there else ())
        if not is_over and (gap := self._gap(series, evidence)) is not None:
            log.debug("series %s waits: %s", series.series_instance_uid, gap.text)
            return None, ()
        return reason, ()

    def _has_answered(self, series: ArrivingSeries, evidence: _Evidence) -> bool:
        """Whether all is known that the series' node can say of it as it is now; if not, it is being asked."""
        if evidence.is_asking:
            return False
        now = time.monotonic()
        again = evidence.missing and now - evidence.asked_at >= _ASK_AGAIN_S
        if evidence.asked_at >= series.last_arrival and not again:
            return True
        evidence.asked_at = now
        try:
            archive = counting_archive(series.calling_ae_title, self._settings)
        except ConfigurationError as error:
            log.warning("series %s is not counted at its node: %s", series.series_instance_uid, error)
            return True
        if archive is None:
            return True
        evidence.is_asking = True
        here = frozenset(series.sop_instance_uids)
        threading.Thread(target=_ask, args=(archive, series, evidence, here), name="count", daemon=True).start()
        return False

    def _gap(self, series: ArrivingSeries, evidence: _Evidence) -> Reason | None:
        """That slices are missing between those that are here. Each header is read once."""
        heights_mm = self._heights_mm(series, evidence)
        return None if heights_mm is None else missing_slices(heights_mm)

    def is_whole_chest(self, series: ArrivingSeries) -> bool:
        """Whether what is here is an even stack as long as lungs are: no scout, no first slices of many.

        Call with the series' lock held.
        """
        heights_mm = self._heights_mm(series, self._evidence.setdefault(series, _Evidence()))
        return heights_mm is not None and bool(np.ptp(heights_mm) >= _CHEST_MM) and is_even_stack(heights_mm)

    def _heights_mm(self, series: ArrivingSeries, evidence: _Evidence) -> NDArray[np.float64] | None:
        """Of the slices that lie as most do, along their normal; None where no image has a place."""
        for uid in series.sop_instance_uids - evidence.places.keys():
            evidence.places[uid] = self._place(series, uid)
        placed = [place for place in evidence.places.values() if place is not None]
        if not placed:
            return None
        planes = Counter(tuple(np.round(normal, 2)) for _, normal in placed)
        (normal, _), *_ = planes.most_common(1)
        return np.array([position @ own for position, own in placed if tuple(np.round(own, 2)) == normal])

    def _place(self, series: ArrivingSeries, sop_instance_uid: str) -> _Place | None:
        path = self._store.instance_path(
            series.study_instance_uid, series.series_instance_uid, sop_instance_uid, tenant=series.tenant
        )
        try:
            header = read_header(path, keywords=_PLACE_KEYWORDS)
        except InputError:
            return None  # said when the series is judged
        position = numbers(header, "ImagePositionPatient", 3)
        cosines = numbers(header, "ImageOrientationPatient", 6)
        if position is None or cosines is None or "LOCALIZER" in text(header, "ImageType").upper():
            return None
        return position, np.cross(cosines[:3], cosines[3:])


def _ask(archive: Archive, series: ArrivingSeries, evidence: _Evidence, here: frozenset[str]) -> None:
    study_instance_uid, uid = series.study_instance_uid, series.series_instance_uid
    try:
        found = archive.series(study_instance_uid, uid)
        if not found:
            raise NodeUnavailable(f"{series.calling_ae_title} does not know the series")
        if found[0].instances == len(here):
            evidence.missing = frozenset()
        else:
            missing = archive.instances(study_instance_uid, uid) - here
            evidence.missing = missing - other_than_ct(archive, study_instance_uid, uid, missing)
    except NodeUnavailable as error:
        log.warning("series %s is not counted at its node, its quiet time decides: %s", uid, error)
    except Exception as error:  # noqa: BLE001  outermost of this thread: the series must not wait for ever
        trace = where_raised(error)
        log.error("counting series %s: %s\n%s", uid, type(error).__name__, trace)
    finally:
        evidence.is_asking = False


def _incomplete(here: int, there: int, node: str) -> Reason:
    return Reason(INCOMPLETE, f"{here} of the {there} instances that {node} has were received")
