"""One attempt to fetch a study: what the node has of it, what of that is wanted and not here yet, and getting it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from imaging.errors import Cancelled, NodeUnavailable, NothingToRetrieve
from services.ingest.arriving_series import Expected
from services.ingest.intake_rules import IntakeRules
from services.ingest.store_scp import Listener
from services.retrieve.found import Archive, FoundSeries, FoundStudy, other_than_ct
from services.retrieve.rules import StudyQuery
from services.store.retrievals import RetrievalStore, RetrievedSeries
from services.store.rows import Priority, RetrievalRow

NO_SUCH_STUDY = "retrieve.no_such_study"
NO_SUCH_SERIES = "retrieve.no_such_series"
NOTHING_TO_SEGMENT = "retrieve.nothing_to_segment"
INCOMPLETE = "retrieve.incomplete"
# Why a series is not fetched
NO_CT_INSTANCES = "retrieve.no_ct_instances"
NOT_OF_THE_RULE = "retrieve.not_of_the_rule"
_LOOK_EVERY_S = 0.2


class Stopping(Exception):
    """The process ends; what was under way is taken up again."""


def why_skipped(
    series: FoundSeries, study: FoundStudy, rules: IntakeRules, query: StudyQuery | None, *, named: bool = False
) -> str | None:
    """The code of why a series is not fetched; None where the intake rules could take it, as far as the node tells.

    Args:
        query: of the rule that asks; None where a study was asked for.
        named: the series itself was asked for; its description is judged when it is here.
    """
    if series.modality and series.modality != rules.modality:
        return "intake.modality"
    # An empty description is what nodes give that do not return it.
    if not named and series.description and (reason := rules.description.reason(series.description)) is not None:
        return reason.code
    if query is not None and not query.wants(series, study.description):
        return NOT_OF_THE_RULE
    return None


@dataclass
class StudyFetch:
    """`run` ends without an exception when all that is wanted of the study is here."""

    row: RetrievalRow
    archive: Archive
    listener: Listener
    retrievals: RetrievalStore
    rules: IntakeRules
    is_stopping: Callable[[], bool]
    _series: dict[str, RetrievedSeries] = field(default_factory=dict)
    _there: dict[str, int] = field(default_factory=dict)
    _looked_at: float = 0.0
    _is_cancelled: bool = False

    def run(self) -> None:
        """Raises:
        NothingToRetrieve: the node knows no such study or series, or none of it could be segmented.
        NodeUnavailable: the node does not answer, or did not send all.
        Cancelled: somebody asked for the retrieval to stop.
        Stopping: the process ends.
        """
        wanted = self._look()
        unavailable: NodeUnavailable | None = None
        for uid, there in wanted.items():
            self._go_on_or_raise()
            try:
                self._fetch_series(uid, there)
            except NodeUnavailable as error:  # of another series it may still get something
                self._go_on_or_raise()
                unavailable = error
        fetched = [one for one in self._series.values() if one.skipped is None]
        if not fetched:
            codes = sorted({one.skipped for one in self._series.values() if one.skipped})
            raise NothingToRetrieve(
                f"none of the {len(self._series)} series can be segmented ({', '.join(codes)})", code=NOTHING_TO_SEGMENT
            )
        missing = sum(one.missing for one in fetched)
        if missing:
            total = sum(one.instances for one in fetched)
            cause = unavailable.message if unavailable else f"{self.row.node} sent no more"
            raise NodeUnavailable(
                f"{missing} of {total} instances are missing: {cause}",
                code=INCOMPLETE if unavailable is None or missing < total else unavailable.code,
                remedy="" if unavailable is None else unavailable.remedy,
            )

    def _look(self) -> dict[str, frozenset[str]]:
        """Ask the node, and note down what it has; returns the instances of each series that is wanted."""
        study_instance_uid = self._study_instance_uid
        study = self.archive.study(study_instance_uid)
        if study is None:
            raise NothingToRetrieve(f"{self.row.node} has no study {study_instance_uid}", code=NO_SUCH_STUDY)
        query = None if self.row.rule is None else StudyQuery.model_validate(self.row.rule)
        found = self.archive.series(
            study_instance_uid,
            self.row.series_instance_uid,
            with_contrast=query is not None and query.contrast,
        )
        if not found:
            of = f"series {self.row.series_instance_uid}" if self.row.series_instance_uid else "series"
            raise NothingToRetrieve(f"{self.row.node} has no {of} of {study_instance_uid}", code=NO_SUCH_SERIES)
        wanted = {}
        for series in found:
            uid = series.series_instance_uid
            named = self.row.series_instance_uid is not None
            skipped = why_skipped(series, study, self.rules, query, named=named)
            there: frozenset[str] = frozenset()
            if skipped is None:
                there = self.archive.instances(study_instance_uid, uid)
                skipped = None if there else NO_CT_INSTANCES
            if skipped is None:
                wanted[uid] = there
                self._there[uid] = len(there)
                self._series[uid] = RetrievedSeries(uid, len(there), received=len(there & self._held(uid)))
            else:
                self._series[uid] = RetrievedSeries(uid, series.instances or 0, skipped=skipped)
        self._record()
        return wanted

    def _fetch_series(self, uid: str, there: frozenset[str]) -> None:
        """What is missing of one series. Objects in it that are no CT are found out when something did not come: to ask
        for them beforehand would make archives read every file."""
        unavailable: NodeUnavailable | None = None
        try:
            self._fetch(uid, there)
        except NodeUnavailable as error:
            unavailable = error
        self._go_on_or_raise()
        left = there - self._held(uid)
        if others := other_than_ct(self.archive, self._study_instance_uid, uid, left):
            images = there - others
            skipped = None if images else NO_CT_INSTANCES
            self._series[uid] = replace(self._series[uid], instances=len(images), failed=0, skipped=skipped)
            self._record()
            self._fetch(uid, images)  # some nodes give up at the first object that is not taken
        elif unavailable is not None:
            raise unavailable

    def _fetch(self, uid: str, images: frozenset[str]) -> None:
        held = self._held(uid)
        missing = sorted(images - held)
        if not missing:
            return
        failed = 0

        def on_progress(failed_now: int) -> bool:
            nonlocal failed
            failed = failed_now
            return self._goes_on(uid, images, failed)

        expected = Expected(images, self.row.node, Priority(self.row.priority), self.row.tenant)
        is_whole = len(missing) == self._there[uid]
        try:
            with self.listener.register.expecting(self._study_instance_uid, uid, expected):
                self.archive.fetch(
                    self._study_instance_uid,
                    uid,
                    None if is_whole else missing,
                    receiver=self.listener,
                    on_progress=on_progress,
                )
        finally:
            self._count(uid, images, failed)
            self.listener.audit.fetched(self._study_instance_uid)

    @property
    def _study_instance_uid(self) -> str:
        assert self.row.study_instance_uid is not None
        return self.row.study_instance_uid

    def _held(self, uid: str) -> set[str]:
        return self.listener.held(self._study_instance_uid, uid, self.row.tenant)

    def _count(self, uid: str, there: frozenset[str], failed: int) -> None:
        received = len(there & self._held(uid))
        self._series[uid] = self._series[uid].with_progress(received=received, failed=failed)
        self._record()

    def _record(self) -> None:
        self.retrievals.record_series(self.row.id, list(self._series.values()))

    def _goes_on(self, uid: str, there: frozenset[str], failed: int) -> bool:
        """Noting down, now and then, how far the series is."""
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            self._count(uid, there, failed)
            self._is_cancelled = self.retrievals.is_cancel_requested(self.row.id)
        return not (self._is_cancelled or self.is_stopping())

    def _go_on_or_raise(self) -> None:
        if self.is_stopping():
            raise Stopping
        if self.retrievals.is_cancel_requested(self.row.id):
            raise Cancelled(f"retrieval {self.row.id} was cancelled")
