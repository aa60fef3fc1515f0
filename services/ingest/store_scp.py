"""The Storage SCP: what a PACS pushes lies on disk, byte for byte, before it hears Success (PS3.4 Annex B).

CT, Enhanced CT and Legacy Converted Enhanced CT are accepted in every transfer syntax the reader reads. Storage of
anything else (MR, SR, secondary capture) is refused when the presentation contexts are negotiated, so the sender's log
shows it at once and nothing of it comes here.

The same SOP instance again is answered with Success and changes nothing: an instance that a job may have read already
stays what it was, since a corrected instance has to have a new SOP Instance UID (PS3.5 section 9). A copy that differs
is logged. A file that breaks off where the received bytes go on was torn by a power cut, and is replaced.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import cast

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import ServiceUser
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StorageCommitmentPushModel,
    Verification,
)
from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, EmbolensError, InputError, NotFound
from services.delivery.storage_commitment import CommitmentReports
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES, CT_STORAGE_SOP_CLASSES
from services.ingest.arriving_series import ArrivingSeriesRegister, Calling
from services.ingest.completeness import Completeness
from services.ingest.completion import CompletionWatcher
from services.ingest.identifiers import Identifiers, read_identifiers
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.jobs import JobStore
from services.store.retrievals import RetrievalStore
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.transport_security import listener_context

log = logging.getLogger(__name__)

# PS3.4 B.2.3 and PS3.7 Annex C
SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_REJECTED = (0x01, 0x01, 0x01)  # permanently, by the service user, no reason given (PS3.8 9.3.4)
_MISMATCH = "input.identifier_mismatch"
_UNSUPPORTED = "input.unsupported_sop_class"
_MAX_PDU_BYTES = 1024**2
_NETWORK_TIMEOUT_S = 60  # a peer that is silent for longer has gone; its association is aborted
_FILE_PREFIX = b"\x00" * 128 + b"DICM"  # PS3.10 section 7.1
_META_LENGTH = slice(140, 144)  # value of (0002,0000), the first element: how many bytes of file meta follow it
_REMEMBERED_SERIES = 64


def dimse_status(error: EmbolensError | SQLAlchemyError | OSError) -> int:
    """The error tree as a C-STORE status (PS3.4 Table B.2-1). A7xx asks the peer to come again."""
    if isinstance(error, InputError):
        return {_MISMATCH: DATA_SET_DOES_NOT_MATCH, _UNSUPPORTED: SOP_CLASS_NOT_SUPPORTED}.get(
            error.code, CANNOT_UNDERSTAND
        )
    return OUT_OF_RESOURCES


class Listener:
    """A DICOM listener and the completion of what it receives. One per data directory."""

    def __init__(
        self,
        settings: Settings,
        store: StudyStore,
        jobs: JobStore,
        queue: TaskQueue,
        rules: IntakeRules,
        retrievals: RetrievalStore,
        reports: CommitmentReports,
    ) -> None:
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._register = ArrivingSeriesRegister(store, jobs)
        completeness = Completeness(settings, store, retrievals)
        self._watcher = CompletionWatcher(
            self._register, store, jobs, queue, rules, completeness, series_quiet_s=settings.series_quiet_s
        )
        self._ae = AE(ae_title=settings.ae_title)
        self._ae.maximum_associations = settings.max_associations
        self._ae.maximum_pdu_size = _MAX_PDU_BYTES
        self._ae.network_timeout = _NETWORK_TIMEOUT_S
        self._ae.add_supported_context(Verification)
        for sop_class_uid in CT_STORAGE_SOP_CLASSES.values():
            self._ae.add_supported_context(sop_class_uid, list(ACCEPTED_TRANSFER_SYNTAXES))
        # A node that reports on its storage commitment is the SCP, though it opens the association (PS3.4 J.3.3).
        self._ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        self._reports = reports
        self._allowed = rules.associations
        self._ae.require_called_aet = self._allowed.called_ae_title_must_match
        self._ae.require_calling_aet = list(self._allowed.calling_ae_titles)
        self._port: int | None = None
        self._taken_in: dict[tuple[str, str], set[Path]] = {}

    @property
    def port(self) -> int:
        """The port listened on; known once started."""
        assert self._port is not None, "not started"
        return self._port

    @property
    def register(self) -> ArrivingSeriesRegister:
        return self._register

    def start(self) -> None:
        """Take up unfinished series, then accept associations.

        Raises:
            ConfigurationError: the port cannot be had, or a TLS certificate cannot be read.
        """
        tls = listener_context(self._settings)
        self._watcher.start()
        address = (self._settings.dicom_host, self._settings.dicom_port)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_REQUESTED, self._turn_away_strangers),
            (evt.EVT_C_ECHO, _answer_echo),
            (evt.EVT_C_STORE, self.answer_store),
            (evt.EVT_N_EVENT_REPORT, self._answer_report),
        ]
        try:
            server = self._ae.start_server(address, block=False, evt_handlers=handlers, ssl_context=tls)
        except OSError as error:
            self._watcher.stop()
            raise ConfigurationError(
                f"cannot listen on {address[0]}:{address[1]}: {error.strerror}",
                remedy="set EMBOLENS_DICOM_HOST and EMBOLENS_DICOM_PORT",
            ) from error
        assert server is not None
        self._port = int(server.server_address[1])

    def stop(self) -> None:
        """End the associations and the watcher. What was acknowledged lies on disk; its job is taken up again."""
        self._ae.shutdown()
        self._watcher.stop()

    def _turn_away_strangers(self, event: Event) -> None:
        """Reject associations from addresses that are not allowed; AE titles are pynetdicom's to check."""
        address = event.assoc.requestor.address
        if not self._allowed.allow_address(address):
            log.warning("rejected an association from %s, which is not among the allowed addresses", address)
            event.assoc.acse.send_reject(*_REJECTED)
            event.assoc.kill()

    def answer_store(self, event: Event) -> Dataset:
        """One C-STORE request, on an association of theirs or of ours (C-GET): Success only after the file lies under
        its final name."""
        status = Dataset()
        try:
            self._store_instance(event)
        except (EmbolensError, SQLAlchemyError, OSError) as error:
            status.Status = dimse_status(error)
            code = error.code if isinstance(error, EmbolensError) else type(error).__name__
            status.ErrorComment = code[:64]
            log.warning("refused %s from %s: %s", _request(event).AffectedSOPInstanceUID, _peer(event).ae_title, code)
        else:
            status.Status = SUCCESS
        return status

    def _answer_report(self, event: Event) -> tuple[int, None]:
        return self._reports.answer(event, event.assoc.requestor.ae_title.strip())

    def _store_instance(self, event: Event) -> None:
        peer = _peer(event)
        calling = Calling(peer.ae_title.strip(), peer.address, event.assoc)
        encoded = cast(BytesIO, _request(event).DataSet)
        self.take_in(encoded, event.file_meta, calling)

    def take_in(self, encoded: BytesIO, file_meta: FileMetaDataset, calling: Calling) -> None:
        """Keep one instance, byte for byte, as part of its series.

        Raises:
            InputError: no CT, not the instance that the file meta names, or not readable.
            StorageFull: the disk has no room.
        """
        named = _identify(encoded, file_meta, with_announcement=False)
        study, series, sop = named.study_instance_uid, named.series_instance_uid, named.sop_instance_uid
        path = self._store.instance_path(study, series, sop)
        arriving = self._register.find(study, series)
        stored = _data_set_of(path)
        if stored is not None and _breaks_off(stored, encoded.getvalue()):
            log.warning("instance %s lies torn on disk and is replaced", sop)
        elif stored is not None and (arriving is not None or self._was_taken_in(study, series, path)):
            if stored != encoded.getbuffer():
                log.warning("instance %s came again with different content; the first one stays", sop)
            if arriving is not None:
                self._register.touch(arriving, calling)
            return
        announced = None
        if arriving is None:
            first = _identify(encoded, file_meta, with_announcement=True)
            announced = first.announced_instances
        with self._register.storing(study, series, sop, calling) as receiving, self._store.arriving_file(path) as file:
            receiving.announced_instances = announced or receiving.announced_instances
            file.write(_FILE_PREFIX)
            file.write(encode_file_meta(file_meta))
            file.write(encoded.getbuffer())
        if len(receiving.sop_instance_uids) == receiving.announced_instances:
            self._watcher.look_now()

    def held(self, study_instance_uid: str, series_instance_uid: str) -> set[str]:
        """SOP Instance UIDs that are here and belong to a job, or will."""
        if (arriving := self._register.find(study_instance_uid, series_instance_uid)) is not None:
            with arriving.lock:
                if not arriving.is_closed:
                    return set(arriving.sop_instance_uids)
        found: set[str] = set()
        for job_id in self._jobs.that_took_in(study_instance_uid, series_instance_uid):
            with suppress(NotFound):  # its directory is gone
                found.update(path.stem for path in self._store.read_inputs(job_id) if path.exists())
        return found

    def _was_taken_in(self, study_instance_uid: str, series_instance_uid: str, path: Path) -> bool:
        """Whether a job has this file among its inputs. These only grow, so what was found once is remembered."""
        key = (study_instance_uid, series_instance_uid)
        if path not in self._taken_in.get(key, ()):
            if len(self._taken_in) >= _REMEMBERED_SERIES:
                self._taken_in.clear()
            self._taken_in[key] = set()
            for job_id in self._jobs.that_took_in(*key):
                with suppress(NotFound):  # its directory is gone
                    self._taken_in[key].update(self._store.read_inputs(job_id))
        return path in self._taken_in[key]


def _identify(encoded: BytesIO, file_meta: FileMetaDataset, *, with_announcement: bool) -> Identifiers:
    asked = (file_meta.MediaStorageSOPClassUID, file_meta.MediaStorageSOPInstanceUID)
    if asked[0] not in CT_STORAGE_SOP_CLASSES.values():
        raise InputError(f"not a CT: {asked[0]}", code=_UNSUPPORTED)
    encoded.seek(0)
    found = read_identifiers(encoded, UID(file_meta.TransferSyntaxUID), with_announcement=with_announcement)
    if asked != (found.sop_class_uid, found.sop_instance_uid):
        raise InputError("the data set is not the instance that the request names", code=_MISMATCH)
    return found


def _request(event: Event) -> C_STORE:
    return cast(C_STORE, event.request)


def _peer(event: Event) -> ServiceUser:
    return event.assoc.acceptor if event.assoc.is_requestor else event.assoc.requestor


def _answer_echo(event: Event) -> int:
    return SUCCESS


def _breaks_off(stored: bytes, received: bytes) -> bool:
    return len(stored) < len(received) and received.startswith(stored)


def _data_set_of(path: Path) -> bytes | None:
    """The file without its file meta, which names each sender's own software; None where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return content[_META_LENGTH.stop + int.from_bytes(content[_META_LENGTH], "little") :]
