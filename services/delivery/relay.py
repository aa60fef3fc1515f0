"""The relay process: sends what is in the outbox until it has arrived, and sweeps."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, DeliveryError
from services.delivery.destinations import FOLDER, NODE, Destinations
from services.delivery.dicom_node import send_to_node
from services.delivery.folder import copy_to_folder
from services.delivery.sent_object import SentObject
from services.delivery.sweep import Sweep
from services.dicomweb.held_index import HeldIndex
from services.process_log import log_to_stderr
from services.process_signals import stop_on_signal
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore, utc_now
from services.store.outbox import Outbox
from services.store.rows import OutboxRow
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.transport_security import sender_context

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
_BATCH = 8
# Longer than sending a batch takes. What a relay that died had claimed is due again after it.
_CLAIM_S = 120.0
ALIVE_FILE = "relay.alive"
# A row may be old because nobody sent it (the relay was down): only one that was tried this often is parked.
_ATTEMPTS_BEFORE_PARKING = 20
_INDEXED_AT_ONCE = 20  # jobs; the rest is for the next sweep
_UNKNOWN = "delivery.unknown_destination"


class Relay:
    """One pass over the outbox at a time."""

    def __init__(self, settings: Settings, outbox: Outbox, store: StudyStore) -> None:
        """Raises ConfigurationError when the destinations cannot be read."""
        self._settings = settings
        self._outbox = outbox
        self._store = store
        self._modified_at = _modified_at(settings.destinations)
        self._destinations = Destinations.load(settings.destinations)

    @property
    def destinations(self) -> Destinations:
        return self._destinations

    def deliver_due(self) -> int:
        """Send everything that is due, one association per destination; returns how many objects were due."""
        self._reload_changed_destinations()
        due = self._outbox.claim_due(limit=_BATCH, lease_s=_CLAIM_S)
        by_destination: dict[str, list[OutboxRow]] = {}
        for row in due:
            by_destination.setdefault(row.destination, []).append(row)
        for destination, rows in by_destination.items():
            self._deliver(destination, rows)
        return len(due)

    def _deliver(self, destination: str, rows: Sequence[OutboxRow]) -> None:
        left = {self._store.data_dir / row.object_path: row for row in rows}
        try:
            for sent in self._send(destination, left):
                row = left.pop(sent.path)
                if sent.error is None:
                    self._outbox.delivered(row)
                    log.info("job %s: %s has %s %s", row.job_id, destination, row.sop_instance_uid, sent.note)
                else:
                    self._try_later(row, sent.error)
        except SQLAlchemyError:
            raise  # nothing can be noted down; what is left is claimed again in time
        except Exception as error:  # noqa: BLE001  outermost loop: one destination must not stop the others
            trace = "".join(traceback.format_tb(error.__traceback__))  # without the message, which may quote a header
            log.error("delivery to %s: unexpected %s\n%s", destination, type(error).__name__, trace)
            for row in left.values():
                self._try_later(row, DeliveryError(f"unexpected {type(error).__name__}"))

    def _send(self, destination: str, objects: Mapping[Path, OutboxRow]) -> Iterator[SentObject]:
        paths = list(objects)
        where = self._settings.destinations.name
        if destination.startswith(FOLDER):
            name = destination.removeprefix(FOLDER)
            if (folder := self._destinations.folder(name)) is not None:
                return (copy_to_folder(folder, path, row.sop_instance_uid) for path, row in list(objects.items()))
            unknown = DeliveryError(f"no folder {name} in {where}", code=_UNKNOWN)
        else:
            ae_title = destination.removeprefix(NODE)
            if (node := self._destinations.node(ae_title)) is not None:
                try:
                    tls = sender_context(self._settings) if node.tls else None
                except ConfigurationError as error:
                    failed = DeliveryError(error.message, code=error.code)
                    return (SentObject(path, failed) for path in paths)
                return send_to_node(node, paths, calling_ae_title=self._settings.ae_title, tls=tls)
            unknown = DeliveryError(f"no node {ae_title} in {where}", code=_UNKNOWN)
        return (SentObject(path, unknown) for path in paths)

    def _try_later(self, row: OutboxRow, error: DeliveryError) -> None:
        """With a wait that doubles; parked when it has failed too often for too long. Never dropped.

        What waits for its destination to be listed is never parked.
        """
        age_s = (utc_now() - row.created_at).total_seconds()
        tried_enough = row.attempts >= _ATTEMPTS_BEFORE_PARKING and age_s >= self._settings.delivery_park_after_s
        if tried_enough and error.code != _UNKNOWN:
            log.error("job %s: delivery to %s is parked: %s", row.job_id, row.destination, error.message)
            self._outbox.park(row, error.message)
            return
        wait_s = backoff_s(row.attempts, self._settings)
        log.warning(
            "job %s: delivery to %s failed, again in %g s: %s", row.job_id, row.destination, wait_s, error.message
        )
        self._outbox.postpone(row, error.message, wait_s=wait_s)

    def _reload_changed_destinations(self) -> None:
        """So that a node can be added without a restart; a file that is wrong changes nothing."""
        modified_at = _modified_at(self._settings.destinations)
        if modified_at == self._modified_at:
            return
        self._modified_at = modified_at
        try:
            self._destinations = Destinations.load(self._settings.destinations)
        except ConfigurationError as error:
            log.error("the destinations stay as they were: %s", error)
        else:
            log.info("destinations read again")
            self._outbox.make_due(self._destinations.names())


def backoff_s(attempts: int, settings: Settings) -> float:
    """Seconds to wait after so many failed attempts: the first backoff, doubled every time, up to the longest."""
    doubled = settings.delivery_first_backoff_s * 2.0 ** min(attempts - 1, 32)
    return min(doubled, settings.delivery_max_backoff_s)


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def run_relay(settings: Settings) -> None:
    """Deliver and sweep until SIGTERM or SIGINT, and keep the index of what is held up to date.

    `relay.alive` in the data directory is touched after every sweep.

    Raises:
        ConfigurationError: the destinations cannot be read.
    """
    stopping = stop_on_signal()
    log_to_stderr()
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what went wrong is in the outbox row and in our log
    database = Database(settings.resolved_database_url)
    database.upgrade()
    store = StudyStore(settings.data_dir)
    queue = TaskQueue(settings.redis_url)
    relay = Relay(settings, Outbox(database), store)
    sweep = Sweep(settings, store, JobStore(database), queue)

    index = HeldIndex(database, store)

    def sweep_once() -> bool:
        sweep.run()
        index.update(most_jobs=_INDEXED_AT_ONCE)
        (settings.data_dir / ALIVE_FILE).touch()
        return False

    sweeping = threading.Thread(
        target=repeat, args=(sweep_once, stopping), kwargs={"pause_s": settings.sweep_s}, name="sweep"
    )
    sweeping.start()
    log.info("ready: relay for %d nodes and folders", len(relay.destinations.nodes) + len(relay.destinations.folders))
    repeat(lambda: relay.deliver_due() > 0, stopping, pause_s=_PAUSE_S)
    sweeping.join()
    queue.close()
    database.close()


def repeat(work: Callable[[], bool], stopping: threading.Event, *, pause_s: float) -> None:
    """Do `work` until `stopping`, pausing when it says there was nothing to do. A failure is logged and outlived."""
    while not stopping.is_set():
        try:
            busy = work()
        except Exception as error:  # noqa: BLE001  the process's outermost loop
            trace = "".join(traceback.format_tb(error.__traceback__))  # without the message, which may quote a header
            log.error("%s; going on\n%s", type(error).__name__, trace)
            busy = False
        if not busy:
            stopping.wait(pause_s)
