"""The relay process: sends what is in the outbox until it has arrived, and sweeps."""

from __future__ import annotations

import logging
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from pydicom.uid import generate_uid
from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, DeliveryError, QueueUnavailable
from services.audit.delivery_audit import DeliveryAudit
from services.audit.forwarder import AuditForwarder
from services.audit.trail import AuditTrail
from services.delivery.association import abort_open_associations
from services.delivery.attempts import UNKNOWN_DESTINATION, park_if_hopeless, try_later
from services.delivery.availability import announce
from services.delivery.destinations import (
    AVAILABILITY,
    HL7,
    NODE,
    WEBHOOK,
    Destination,
    DicomWeb,
    Folder,
    Hl7,
    Node,
    Webhook,
)
from services.delivery.destinations_file import DestinationsFile
from services.delivery.dicom_node import send_to_node
from services.delivery.failure_report import FailureReports
from services.delivery.folder import copy_to_folder
from services.delivery.mllp import send_message
from services.delivery.retention import Retention
from services.delivery.sent_object import SentObject
from services.delivery.storage_commitment import CommitmentReports, request_commitment
from services.delivery.sweep import Sweep
from services.dicomweb.held_index import HeldIndex
from services.process_log import log_to_stderr, where_raised
from services.process_signals import stop_on_signal
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import CLAIM_S, Answer, Outbox
from services.store.rows import DeliveryState, OutboxRow
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.transport_security import sender_context

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
_AUDIT_PAUSE_S = 2.0
_BATCH = 16
ALIVE_FILE = "relay.alive"
# A destination that hangs keeps one thread; all others go on.
_DESTINATIONS_AT_ONCE = 32
_INDEXED_AT_ONCE = 20  # jobs; the rest is for the next sweep
_LAST_OBJECTS_S = 2.0  # at the end of the process, for what is being sent just then
_ABORT_S = 1.0
_LAST_SWEEP_S = 3.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one row; without an error it has arrived."""

    row: OutboxRow
    error: DeliveryError | None = None
    answer: Answer | None = None
    note: str = ""


class Relay:
    """Sends what is due, every destination in a thread of its own, so that a slow one holds up nobody else."""

    def __init__(self, settings: Settings, outbox: Outbox, store: StudyStore) -> None:
        """Raises ConfigurationError when the destinations cannot be read."""
        self._settings = settings
        self._outbox = outbox
        self._store = store
        self._audit = DeliveryAudit(AuditTrail(settings, "relay"), store)
        self._file = DestinationsFile(settings.destinations)
        self._destinations = self._file.current()
        self._reports = CommitmentReports(outbox, settings)
        self._threads = ThreadPoolExecutor(_DESTINATIONS_AT_ONCE, thread_name_prefix="delivery")
        self._busy: dict[str, Future[int]] = {}
        self._in_hand: dict[int, OutboxRow] = {}  # claimed, and what becomes of them is not written down yet
        self._renewed_at = time.monotonic()
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

    def renew_claims(self) -> None:
        """Call often: what is being sent stays ours, however long the destination takes."""
        if time.monotonic() - self._renewed_at < CLAIM_S / 3:
            return
        self._renewed_at = time.monotonic()
        if in_hand := list(self._in_hand.values()):
            self._outbox.renew(in_hand, lease_s=CLAIM_S)

    def bring_forward(self) -> None:
        """What a clock that was set back has put off for longer than anything is put off is due."""
        self._outbox.bring_forward(
            longest_s=max(self._settings.delivery_max_backoff_s, CLAIM_S),
            longest_commitment_s=max((node.commitment_limit_s for node in self._destinations.nodes), default=0.0),
        )

    def stop(self) -> bool:
        """Nothing else is begun; the object that is being sent just then may arrive yet. Associations that take longer
        are aborted, and what was not sent is due at once for the next relay.

        Returns False where a thread still waits for a silent peer: the process may end all the same.
        """
        self._stopping.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        _, silent = wait(self._busy.values(), timeout=_LAST_OBJECTS_S)
        if silent:
            abort_open_associations()
            _, silent = wait(silent, timeout=_ABORT_S)
        self._outbox.give_back(list(self._in_hand.values()))
        return not silent

    def _deliver_to(self, destination: str) -> int:
        attempts = 0
        try:
            while not self._stopping.is_set() and (
                due := self._outbox.claim_due(limit=_BATCH, lease_s=CLAIM_S, destination=destination)
            ):
                attempts += len(due)
                self._in_hand.update({row.id: row for row in due})
                try:
                    self._attempt(destination, due)
                finally:
                    if not self._stopping.is_set():  # else `stop` gives back what is left
                        self._put_down(due)
        except Exception as error:  # noqa: BLE001  the thread's outermost loop; what is left is claimed again in time
            _log_unexpected(destination, error)
        return attempts

    def _attempt(self, destination: str, due: Sequence[OutboxRow]) -> None:
        self._send(destination, [row for row in due if row.state == DeliveryState.PENDING])
        stored = sorted((row for row in due if row.state == DeliveryState.STORED), key=lambda row: row.job_id)
        for _, of_job in groupby(stored, key=lambda row: row.job_id):
            asked = list(of_job)
            self._ask_to_commit(destination, asked)
            self._put_down(asked)

    def _put_down(self, rows: Sequence[OutboxRow]) -> None:
        for row in rows:
            self._in_hand.pop(row.id, None)

    def _send(self, destination: str, rows: Sequence[OutboxRow]) -> None:
        left = {row.id: row for row in rows}
        audited = self._audit.attempt(destination, self._destinations.find(destination), rows)
        try:
            for outcome in self._outcomes(destination, rows):
                if self._stopping.is_set() and outcome.error is not None:
                    return  # no fault of the destination's; `stop` gives back what is in hand
                del left[outcome.row.id]
                audited.ended(outcome.row, outcome.error)
                self._write_down(destination, outcome)
                if self._stopping.is_set():
                    return
        except SQLAlchemyError:
            raise
        except Exception as error:  # noqa: BLE001  outermost loop: one destination must not stop the others
            _log_unexpected(destination, error)
            for row in left.values():
                self._write_down(destination, _Outcome(row, DeliveryError(f"unexpected {type(error).__name__}")))
        finally:
            audited.end()

    def _write_down(self, destination: str, outcome: _Outcome) -> None:
        row, answer = outcome.row, outcome.answer
        if outcome.error is not None:
            try_later(self._outbox, row, outcome.error, self._settings, answer=answer or Answer())
        elif self._is_to_commit(destination):
            self._outbox.stored(row, answer)
        else:
            self._outbox.delivered(row, answer)
        self._put_down([row])
        if outcome.error is None:
            what = row.sop_instance_uid or f"notification {row.message_id}"
            log.info("job %s: %s has %s %s", row.job_id, destination, what, outcome.note)

    def _outcomes(self, destination: str, rows: Sequence[OutboxRow]) -> Iterator[_Outcome]:
        if not rows:
            return
        listed = self._destinations.find(destination)
        if listed is None:
            unknown = self._unknown(destination)
            yield from (_Outcome(row, unknown) for row in rows)
        elif destination.startswith((WEBHOOK, HL7, AVAILABILITY)):
            for row in rows:
                try:
                    note = self._notify(listed, row)
                except DeliveryError as error:
                    yield _Outcome(row, error)
                else:
                    yield _Outcome(row, note=note)
        else:
            by_path = {self._path(row): row for row in rows}
            objects = {path: row.sop_instance_uid or "" for path, row in by_path.items()}
            for sent in self._send_objects(listed, objects):
                yield _Outcome(by_path[sent.path], sent.error, Answer(sent.status, sent.comment), sent.note)

    def _send_objects(self, destination: Destination, objects: Mapping[Path, str]) -> Iterator[SentObject]:
        """`objects`: path to SOP Instance UID."""
        if isinstance(destination, Folder):
            return (copy_to_folder(destination, path, uid, self._settings.durability) for path, uid in objects.items())
        if isinstance(destination, DicomWeb):
            from services.delivery.stow_rs import store_at  # and httpx, which every start would pay for

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
            from services.delivery.webhook import post_notification

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
        """So that a node can be added without a restart."""
        current = self._file.current()
        if current is not self._destinations:
            self._destinations = current
            self._outbox.make_due(current.names())


def _log_unexpected(destination: str, error: Exception) -> None:
    trace = where_raised(error)
    log.error("delivery to %s: unexpected %s\n%s", destination, type(error).__name__, trace)


def run_relay(settings: Settings) -> bool:
    """Deliver and sweep until SIGTERM or SIGINT, and keep the index of what is held up to date.

    `relay.alive` in the data directory is touched after every sweep.

    Returns False where threads are left that wait for a silent peer: the interpreter would wait for them.

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
    outbox = Outbox(database)
    relay = Relay(settings, outbox, store)
    sweep = Sweep(settings, store, JobStore(database), queue)
    failures = FailureReports(settings, store, JobStore(database))
    index = HeldIndex(database, store)
    retention = Retention(settings, database, store, is_stopping=stopping.is_set)

    def sweep_once() -> None:
        sweep.run()
        relay.bring_forward()
        (settings.data_dir / ALIVE_FILE).touch()
        index.update(most_jobs=_INDEXED_AT_ONCE)

    background = [
        threading.Thread(target=repeat, args=(work, stopping), kwargs={"pause_s": pause_s}, name=name)
        for name, work, pause_s in (
            ("sweep", sweep_once, settings.sweep_s),
            ("failures", partial(failures.write_due, stopping), settings.sweep_s),
            ("retention", retention.run, settings.sweep_s),  # removing a lot of files takes minutes
            *_forwarding(settings),
        )
    ]
    for thread in background:
        thread.start()

    def deliver() -> None:
        relay.start_due()
        relay.renew_claims()

    def pause(pause_s: float) -> None:
        try:
            queue.wait_for_bell(pause_s)
        except QueueUnavailable:  # the sweep says so
            stopping.wait(pause_s)

    log.info("ready: relay")
    repeat(deliver, stopping, pause_s=_PAUSE_S, pause=pause)
    all_ended = relay.stop()
    for thread in background:
        thread.join(_LAST_SWEEP_S)
    if not all_ended or any(thread.is_alive() for thread in background):
        log.info("the relay ends in the middle of what it was doing; the next one does it again")
        return False
    queue.close()
    database.close()
    return True


def _forwarding(settings: Settings) -> list[tuple[str, Callable[[], object], float]]:
    """What sends the audit trail to the syslog server, where there is one."""
    return [("audit", AuditForwarder(settings).forward, _AUDIT_PAUSE_S)] if settings.audit_syslog else []


def repeat(
    work: Callable[[], object],
    stopping: threading.Event,
    *,
    pause_s: float,
    pause: Callable[[float], object] | None = None,
) -> None:
    """Do `work` until `stopping`, with a pause after each time. A failure is logged and outlived.

    `pause` may end the pause sooner; without it, it lasts until `stopping`.
    """
    while not stopping.is_set():
        try:
            work()
        except Exception as error:  # noqa: BLE001  the process's outermost loop
            trace = where_raised(error)
            log.error("%s; going on\n%s", type(error).__name__, trace)
        (pause or stopping.wait)(pause_s)
