"""When inputs and results are taken from the disk: by age, and where it fills up. Nothing that nobody configured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from imaging.errors import ConfigurationError
from services.audit.events import Peer, Subject, study_deleted
from services.audit.subjects import subject_in, subject_of_job
from services.audit.trail import AuditTrail
from services.delivery.destinations import AVAILABILITY, Destinations, Node
from services.settings import Settings
from services.store.database import Database
from services.store.directory_lock import lock_directory
from services.store.jobs import utc_now
from services.store.purge import LOCK, Purge, Purgeable, What
from services.store.study_store import StudyStore

log = logging.getLogger(__name__)

_BY_AGE_EVERY_S = 3600.0
_BY_WATERMARK_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Decision:
    """`size_bytes` is 0 of what stays."""

    one: Purgeable
    goes: bool
    because: str
    size_bytes: int = 0


class Retention:
    """Run by the relay; harmless when several relays do it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: StudyStore,
        *,
        is_stopping: Callable[[], bool] = lambda: False,
        asked_by: Peer | None = None,
    ) -> None:
        """`asked_by` is who the audit trail says has purged; None: the rules.

        Raises:
            ConfigurationError: the watermarks make no sense.
        """
        if settings.purge_at_percent and settings.purge_to_percent >= settings.purge_at_percent:
            raise ConfigurationError(
                f"purging from {settings.purge_at_percent:g} % of the disk to {settings.purge_to_percent:g} %",
                remedy="set EMBOLENS_PURGE_TO_PERCENT below EMBOLENS_PURGE_AT_PERCENT",
            )
        self._settings = settings
        self._database = database
        self._store = store
        self._audit = AuditTrail(settings, "retention")
        self._is_stopping = is_stopping
        self._asked_by = asked_by
        self._by_age_at = -_BY_AGE_EVERY_S
        self._by_watermark_at = -_BY_WATERMARK_EVERY_S

    def run(self) -> None:
        """Purge where it is time to."""
        now = time.monotonic()
        by_age = now - self._by_age_at >= _BY_AGE_EVERY_S
        by_watermark = self._excess_bytes() > 0 and now - self._by_watermark_at >= _BY_WATERMARK_EVERY_S
        if not (by_age or by_watermark):
            return
        self._by_watermark_at = now
        if by_age:
            self._by_age_at = now
        self.purge_now()

    def purge_now(self) -> list[Decision]:
        """What is gone. Nothing while a backup is being made."""
        try:
            lock = lock_directory(self._store.data_dir, LOCK, "purge or backup")
        except ConfigurationError:
            log.info("nothing is purged while a backup, or another purge, goes on")
            return []
        gone = []
        with lock:
            purge = self._purge()
            purge.finish()
            for decision in self.plan():
                if self._is_stopping():
                    break
                if decision.goes and self._purge_audited(purge, decision.one):
                    log.info("purged the %s of %s: %s", decision.one.what, decision.one.name, decision.because)
                    gone.append(decision)
        return gone

    def _purge_audited(self, purge: Purge, one: Purgeable) -> bool:
        subject = self._subject_of(one)  # while there are files that say it
        is_gone = purge.purge(one)
        if is_gone:
            study_deleted(self._audit, subject, self._asked_by)
        return is_gone

    def _subject_of(self, one: Purgeable) -> Subject:
        newest = one.jobs[0]
        if (subject := subject_of_job(self._store, newest.id)).study_instance_uid:
            return subject
        in_files = (subject_in(path) for path in one.directory.glob("*.dcm"))  # of a job cancelled while receiving
        subject = next((found for found in in_files if found is not None), Subject(newest.study_instance_uid or ""))
        return replace(subject, job_id=newest.id)

    def plan(self, *, whole: bool = False) -> Iterator[Decision]:
        """What would be purged now, what would not, and why; `whole`: also of kinds of which nothing can go."""
        purge, excess_bytes = self._purge(), self._excess_bytes()
        for what in What:
            if not (whole or self._days(what) or excess_bytes > 0):
                continue
            for one in purge.candidates(what):
                if (kept := purge.why_kept(one)) is not None:
                    yield Decision(one, False, kept)
                elif (because := self._by_age(one)) is not None:
                    size = one.size_bytes()
                    excess_bytes -= size
                    yield Decision(one, True, because, size)
                elif excess_bytes > 0 and self._may_make_room(purge, one):
                    size = one.size_bytes()
                    excess_bytes -= size
                    yield Decision(one, True, f"the disk is over {self._settings.purge_at_percent:g} % full", size)
                else:
                    days = self._days(what)
                    yield Decision(one, False, f"kept for {days:g} days" if days else "kept for ever")

    def _purge(self) -> Purge:
        destinations = Destinations.load(self._settings.destinations)

        def asks_for_commitment(name: str) -> bool:
            node = None if name.startswith(AVAILABILITY) else destinations.find(name)
            return isinstance(node, Node) and node.commitment

        return Purge(self._database, self._store, asks_for_commitment)

    def _days(self, what: What) -> float:
        settings = self._settings
        return settings.retention_input_days if what is What.INPUTS else settings.retention_result_days

    def _by_age(self, one: Purgeable) -> str | None:
        days = self._days(one.what)
        return f"kept for {days:g} days" if days and utc_now() - one.ended_at > timedelta(days=days) else None

    def _may_make_room(self, purge: Purge, one: Purgeable) -> bool:
        """What is worth something only here stays: what may be tried again, and a result that nobody was sent."""
        return one.is_completed and (one.what is What.INPUTS or purge.is_delivered(one))

    def _excess_bytes(self) -> float:
        """How much has to go: nothing until the upper mark is passed."""
        settings, room = self._settings, self._store.room()
        if not settings.purge_at_percent or room.used_percent <= settings.purge_at_percent:
            return 0.0
        return (room.used_percent - settings.purge_to_percent) / 100.0 * room.total
