"""The relay process: sends what is in the outbox until it has arrived, and sweeps."""

from __future__ import annotations

import logging
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from pydicom.uid import generate_uid
from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, DeliveryError
from services.delivery.attempts import UNKNOWN_DESTINATION, park_if_hopeless, try_later
from services.delivery.availability import announce
from services.delivery.destinations import (
    AVAILABILITY,
    HL7,
    NODE,
    WEBHOOK,
    Destination,
    Destinations,
    DicomWeb,
    Folder,
    Hl7,
    Node,
    Webhook,
)
from services.delivery.dicom_node import send_to_node
from services.delivery.folder import copy_to_folder
from services.delivery.mllp import send_message
from services.delivery.retention import Retention
from services.delivery.sent_object import SentObject
from services.delivery.storage_commitment import CommitmentReports, request_commitment
from services.delivery.stow_rs import store_at
from services.delivery.sweep import Sweep
from services.delivery.webhook import post_notification
from services.dicomweb.held_index import HeldIndex
from services.process_log import log_to_stderr, where_raised
from services.process_signals import stop_on_signal
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.rows import DeliveryState, OutboxRow
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.transport_security import sender_context

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
_BATCH = 16
# Longer than sending a batch takes. What a relay that died had claimed is due again after it.
_CLAIM_S = 120.0
ALIVE_FILE = "relay.alive"
# A destination that hangs keeps one thread; all others go on.
_DESTINATIONS_AT_ONCE = 32
_INDEXED_AT_ONCE = 20  # jobs; the rest is for the next sweep


class Relay:
    """Sends what is due, every destination in a thread of its own, so that a slow one holds up nobody else."""

    def __init__(self, settings: Settings, outbox: Outbox, store: StudyStore) -> None:
        """Raises ConfigurationError when the destinations cannot be read."""
        self._settings = settings
        self._outbox = outbox
        self._store = store
        self._modified_at = _modified_at(settings.destinations)
        self._destinations = Destinations.load(settings.destinations)
        self._reports = CommitmentReports(outbox, settings)
        self._threads = ThreadPoolExecutor(_DESTINATIONS_AT_ONCE, thread_name_prefix="delivery")
        self._busy: dict[str, Future[int]] = {}
        self._stopping = threading.Event()

    def deliver_due(self) -> int:
        """Send everything that is due and wait for it; returns how many attempts that were."""
        self.start_due()
        return sum(attempted.result() for attempted in list(self._busy.values()))

    def start_due(self) -> None:
        """Start on every destination for which something is due, the most urgent first."""
        self._reload_changed_destinations()
        self._busy = {name: attempted for name, attempted in self._busy.items() if not attempted.done()}
        for destination in self._outbox.due_destinations():
            if destination not in self._busy:
                self._busy[destination] = self._threads.submit(self._deliver_to, destination)

    def stop(self) -> None:
        """Wait for what is being sent; nothing else is begun."""
        self._stopping.set()
        self._threads.shutdown(cancel_futures=True)

    def _deliver_to(self, destination: str) -> int:
        attempts = 0
        try:
            while not self._stopping.is_set() and (
                due := self._outbox.claim_due(limit=_BATCH, lease_s=_CLAIM_S, destination=destination)
            ):
                attempts += len(due)
                self._attempt(destination, due)
        except Exception as error:  # noqa: BLE001  the thread's outermost loop; what is left is claimed again in time
            _log_unexpected(destination, error)
        return attempts

    def _attempt(self, destination: str, due: Sequence[OutboxRow]) -> None:
        self._send(destination, [row for row in due if row.state == DeliveryState.PENDING])
        stored = sorted((row for row in due if row.state == DeliveryState.STORED), key=lambda row: row.job_id)
        for _, of_job in groupby(stored, key=lambda row: row.job_id):
            self._ask_to_commit(destination, list(of_job))

    def _send(self, destination: str, rows: Sequence[OutboxRow]) -> None:
        left = {row.id: row for row in rows}
        try:
            for row, error, note in self._outcomes(destination, rows):
                del left[row.id]
                if error is not None:
                    try_later(self._outbox, row, error, self._settings)
                    continue
                if self._is_to_commit(destination):
                    self._outbox.stored(row)
                else:
                    self._outbox.delivered(row)
                what = row.sop_instance_uid or f"notification {row.message_id}"
                log.info("job %s: %s has %s %s", row.job_id, destination, what, note)
        except SQLAlchemyError:
            raise
        except Exception as error:  # noqa: BLE001  outermost loop: one destination must not stop the others
            _log_unexpected(destination, error)
            for row in left.values():
                try_later(self._outbox, row, DeliveryError(f"unexpected {type(error).__name__}"), self._settings)

    def _outcomes(
        self, destination: str, rows: Sequence[OutboxRow]
    ) -> Iterator[tuple[OutboxRow, DeliveryError | None, str]]:
        """Each row with what went wrong, or else with what there is to say."""
        if not rows:
            return
        listed = self._destinations.find(destination)
        if listed is None:
            unknown = self._unknown(destination)
            yield from ((row, unknown, "") for row in rows)
        elif destination.startswith((WEBHOOK, HL7, AVAILABILITY)):
            for row in rows:
                try:
                    note = self._notify(listed, row)
                except DeliveryError as error:
                    yield row, error, ""
                else:
                    yield row, None, note
        else:
            by_path = {self._path(row): row for row in rows}
            objects = {path: row.sop_instance_uid or "" for path, row in by_path.items()}
            for sent in self._send_objects(listed, objects):
                yield by_path[sent.path], sent.error, sent.note

    def _send_objects(self, destination: Destination, objects: Mapping[Path, str]) -> Iterator[SentObject]:
        """`objects`: path to SOP Instance UID."""
        if isinstance(destination, Folder):
            return (copy_to_folder(destination, path, uid, self._settings.durability) for path, uid in objects.items())
        if isinstance(destination, DicomWeb):
            return store_at(destination, objects, self._settings)
        assert isinstance(destination, Node)
        try:
            tls = self._tls(destination)
        except DeliveryError as error:
            failed = error
            return (SentObject(path, failed) for path in objects)
        return send_to_node(destination, list(objects), calling_ae_title=self._settings.ae_title, tls=tls)

    def _notify(self, destination: Destination, row: OutboxRow) -> str:
        assert row.message_id is not None
        if isinstance(destination, Node):
            assert row.waits_for is not None
            return announce(
                destination,
                [self._path(one) for one in self._outbox.objects_at(row.job_id, row.waits_for)],
                row.waits_for.removeprefix(NODE),
                f"2.25.{uuid.UUID(row.message_id).int}",  # PS3.5 B.2
                calling_ae_title=self._settings.ae_title,
                tls=self._tls(destination),
            )
        assert row.message is not None
        if isinstance(destination, Webhook):
            return post_notification(destination, row.message_id, row.message, self._settings)
        assert isinstance(destination, Hl7)
        return send_message(destination, row.message_id, row.message, self._settings)

    def _ask_to_commit(self, destination: str, rows: Sequence[OutboxRow]) -> None:
        """Ask the node whether it keeps these objects of one job; what it was asked before and did not say again."""
        node = self._destinations.find(destination)
        if not isinstance(node, Node):
            for row in rows:
                try_later(self._outbox, row, self._unknown(destination), self._settings, state=DeliveryState.STORED)
            return
        if not node.commitment:  # no longer wanted of it
            for row in rows:
                self._outbox.delivered(row)
            return
        silence = f"{node.ae_title} did not report on storage commitment, and was asked again"
        asked_before = [row for row in rows if row.transaction_uid is not None]
        parked = [
            row
            for row in asked_before
            if park_if_hopeless(self._outbox, row, DeliveryError(row.last_error or silence), self._settings)
        ]
        asked = [row for row in rows if row not in parked]
        if not asked:
            return
        transaction_uid = generate_uid(prefix=None)
        self._outbox.asking(
            asked, transaction_uid, wait_s=node.commitment_limit_s, error=silence if asked_before else None
        )
        try:
            request_commitment(
                node,
                asked,
                transaction_uid,
                self._reports,
                calling_ae_title=self._settings.ae_title,
                tls=self._tls(node),
            )
        except DeliveryError as error:
            for row in asked:
                try_later(self._outbox, row, error, self._settings, state=DeliveryState.STORED)

    def _is_to_commit(self, destination: str) -> bool:
        node = self._destinations.find(destination)
        return isinstance(node, Node) and node.commitment and not destination.startswith(AVAILABILITY)

    def _tls(self, node: Node) -> ssl.SSLContext | None:
        try:
            return sender_context(self._settings) if node.tls else None
        except ConfigurationError as error:
            raise DeliveryError(error.message, code=error.code) from error

    def _unknown(self, destination: str) -> DeliveryError:
        kind, name = destination.replace(AVAILABILITY, NODE, 1).split(":", 1)
        return DeliveryError(f"no {kind} {name} in {self._settings.destinations.name}", code=UNKNOWN_DESTINATION)

    def _path(self, row: OutboxRow) -> Path:
        assert row.object_path is not None
        return self._store.data_dir / row.object_path

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


def _log_unexpected(destination: str, error: Exception) -> None:
    trace = where_raised(error)
    log.error("delivery to %s: unexpected %s\n%s", destination, type(error).__name__, trace)


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
    database = Database.of(settings)
    database.upgrade()
    store = StudyStore.of(settings)
    queue = TaskQueue(settings.redis_url)
    relay = Relay(settings, Outbox(database), store)
    sweep = Sweep(settings, store, JobStore(database), queue)
    index = HeldIndex(database, store)
    retention = Retention(settings, database, store, is_stopping=stopping.is_set)

    def sweep_once() -> None:
        sweep.run()
        (settings.data_dir / ALIVE_FILE).touch()
        index.update(most_jobs=_INDEXED_AT_ONCE)

    sweeping = threading.Thread(
        target=repeat, args=(sweep_once, stopping), kwargs={"pause_s": settings.sweep_s}, name="sweep"
    )
    # Removing a lot of files takes minutes, in which leases run out all the same.
    purging = threading.Thread(
        target=repeat, args=(retention.run, stopping), kwargs={"pause_s": settings.sweep_s}, name="retention"
    )
    sweeping.start()
    purging.start()
    log.info("ready: relay")
    repeat(relay.start_due, stopping, pause_s=_PAUSE_S)
    relay.stop()
    sweeping.join()
    purging.join()
    queue.close()
    database.close()


def repeat(work: Callable[[], object], stopping: threading.Event, *, pause_s: float) -> None:
    """Do `work` until `stopping`, with a pause after each time. A failure is logged and outlived."""
    while not stopping.is_set():
        try:
            work()
        except Exception as error:  # noqa: BLE001  the process's outermost loop
            trace = where_raised(error)
            log.error("%s; going on\n%s", type(error).__name__, trace)
        stopping.wait(pause_s)
