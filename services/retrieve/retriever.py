"""Fetching: claims retrievals and sees each to its end, in threads of the listener's process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.exc import InterfaceError, OperationalError

from imaging.errors import (
    Cancelled,
    ConfigurationError,
    EmbolensError,
    NodeUnavailable,
    NotFound,
    NothingToRetrieve,
    StateConflict,
    StorageFull,
)
from services.delivery.destinations import Destinations
from services.ingest.intake_rules import IntakeRules
from services.ingest.store_scp import Listener
from services.process_log import where_raised
from services.retrieve.archives import archive_named
from services.retrieve.rule_run import request_studies
from services.retrieve.schedule import Schedule
from services.retrieve.study_fetch import Stopping, StudyFetch
from services.settings import Settings
from services.store.retrievals import RetrievalStore
from services.store.rows import RetrievalRow

log = logging.getLogger(__name__)

# Not every SQLAlchemyError: one that comes again whenever it is tried has to count as a failed attempt.
_DATABASE_AWAY = (OperationalError, InterfaceError)

_PAUSE_S = 0.5
_SCHEDULE_EVERY_S = 5.0
_STOP_TIMEOUT_S = 10.0


class Retriever:
    """One per listener. Instances that a retrieval brings in go through the listener as pushed ones do."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        retrievals: RetrievalStore,
        rules: IntakeRules,
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._retrievals = retrievals
        self._rules = rules
        self._schedule = Schedule(retrievals, now, rules.tenants)
        self._scheduled_at = -_SCHEDULE_EVERY_S
        self._stopping = threading.Event()
        self._running: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._work, name="retriever", daemon=True)

    def start(self) -> None:
        """Take up what was under way when the process ended, then go on."""
        if taken_up := self._retrievals.take_up_again():
            log.info("%d retrievals are taken up again", taken_up)
        self._thread.start()

    def stop(self) -> None:
        """End what is under way at its node's next answer; it is taken up again at the next start, as is what a silent
        node keeps waiting."""
        self._stopping.set()
        self._thread.join()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for thread in self._running:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self._stopping.wait(_PAUSE_S):
            try:
                self._request_scheduled()
                self._start_due()
            except Exception as error:  # noqa: BLE001  the thread's outermost loop
                trace = where_raised(error)
                log.error("%s; going on\n%s", type(error).__name__, trace)

    def _request_scheduled(self) -> None:
        if time.monotonic() - self._scheduled_at < _SCHEDULE_EVERY_S:
            return
        self._scheduled_at = time.monotonic()
        self._retrievals.bring_forward(longest_s=self._settings.retrieve_max_backoff_s)
        try:
            self._schedule.request_due(Destinations.load(self._settings.destinations))
        except ConfigurationError as error:
            log.error("no rule runs: %s", error)

    def _start_due(self) -> None:
        self._running = [thread for thread in self._running if thread.is_alive()]
        while len(self._running) < self._settings.retrieve_at_once and (row := self._retrievals.claim()) is not None:
            thread = threading.Thread(target=self._run, args=(row,), name=f"retrieval {row.id}", daemon=True)
            self._running.append(thread)
            thread.start()

    def _run(self, row: RetrievalRow) -> None:
        """One attempt, and what becomes of the retrieval by it."""
        while True:
            try:
                self._attempt(row)
                return
            except StateConflict:
                return  # somebody else ended it
            except _DATABASE_AWAY as error:
                log.error("retrieval %s: the database does not answer (%s)", row.id, type(error).__name__)
                if self._stopping.wait(_SCHEDULE_EVERY_S):
                    return

    def _attempt(self, row: RetrievalRow) -> None:
        try:
            archive = archive_named(row.node, Destinations.load(self._settings.destinations), self._settings)
            if row.study_instance_uid is None:
                request_studies(row, archive, self._retrievals, self._rules)
            else:
                StudyFetch(row, archive, self._listener, self._retrievals, self._rules, self._stopping.is_set).run()
        except Stopping:
            self._retrievals.give_back(row.id)
        except Cancelled:
            log.info("retrieval %s was cancelled", row.id)
            self._retrievals.end_cancelled(row.id)
        except (NothingToRetrieve, NotFound) as error:
            log.warning("retrieval %s failed: %s", row.id, error)
            self._retrievals.fail(row.id, error)
        except (NodeUnavailable, ConfigurationError, StorageFull) as error:
            self._try_again(row, error)
        except _DATABASE_AWAY:
            raise
        except Exception as error:  # noqa: BLE001  outermost of this thread
            trace = where_raised(error)
            log.error("retrieval %s: unexpected %s\n%s", row.id, type(error).__name__, trace)
            self._try_again(row, EmbolensError(f"unexpected {type(error).__name__}"))
        else:
            log.info("retrieval %s is complete", row.id)
            self._retrievals.complete(row.id)

    def _try_again(self, row: RetrievalRow, error: EmbolensError) -> None:
        if self._stopping.is_set():
            self._retrievals.give_back(row.id)
            return
        attempts = row.attempts + 1
        if attempts >= self._settings.retrieve_max_attempts:
            log.error("retrieval %s failed after %d attempts: %s", row.id, attempts, error)
            self._retrievals.fail(row.id, error)
            return
        doubled = self._settings.retrieve_first_backoff_s * 2.0 ** min(attempts - 1, 32)
        wait_s = min(doubled, self._settings.retrieve_max_backoff_s)
        log.warning("retrieval %s failed, again in %g s: %s", row.id, wait_s, error)
        self._retrievals.try_again(row.id, error, wait_s=wait_s)
