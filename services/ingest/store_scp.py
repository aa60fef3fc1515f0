"""The Storage SCP: what a PACS pushes lies on disk, byte for byte, before it hears Success (PS3.4 Annex B).

CT, Enhanced CT and Legacy Converted Enhanced CT are accepted in every transfer syntax the reader reads. Storage of
anything else (MR, SR, secondary capture) is refused when the presentation contexts are negotiated, so the sender's log
shows it at once and nothing of it comes here.
"""

from __future__ import annotations

import logging
from io import BytesIO
from typing import cast

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import ServiceUser
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer
from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, EmbolensError
from services.delivery.storage_commitment import CommitmentReports
from services.dicom.file_meta import FILE_PREFIX
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES, CT_STORAGE_SOP_CLASSES
from services.ingest.arriving_series import ArrivingSeriesRegister, Calling
from services.ingest.association_drain import AssociationDrain
from services.ingest.completeness import Completeness
from services.ingest.completion import CompletionWatcher
from services.ingest.held_instances import HeldInstances, check_is_ct, check_is_named
from services.ingest.identifiers import Identifiers, read_identifiers
from services.ingest.intake_rules import IntakeRules
from services.ingest.storage_status import SUCCESS, storage_status
from services.settings import Settings
from services.store.jobs import JobStore
from services.store.retrievals import RetrievalStore
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.transport_security import listener_context

log = logging.getLogger(__name__)

_REJECTED = (0x01, 0x01, 0x01)  # permanently, by the service user, no reason given (PS3.8 9.3.4)
_MAX_PDU_BYTES = 1024**2
_DRAIN_S = 10.0
_NETWORK_TIMEOUT_S = 60  # a peer that is silent for longer has gone; its association is aborted


def supported_contexts() -> list[PresentationContext]:
    """What is accepted when a peer opens an association."""
    ae = AE()
    ae.add_supported_context(Verification)
    for sop_class_uid in CT_STORAGE_SOP_CLASSES.values():
        ae.add_supported_context(sop_class_uid, list(ACCEPTED_TRANSFER_SYNTAXES))
    # A node that reports on its storage commitment is the SCP, though it opens the association (PS3.4 J.3.3).
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    return ae.supported_contexts


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
        self._ae.supported_contexts = supported_contexts()
        self._reports = reports
        self._allowed = rules.associations
        self._ae.require_called_aet = self._allowed.called_ae_title_must_match
        self._ae.require_calling_aet = list(self._allowed.calling_ae_titles)
        self._drain = AssociationDrain()
        self._server: ThreadedAssociationServer | None = None
        self._held = HeldInstances(store, jobs)

    @property
    def port(self) -> int:
        """The port listened on; known once started."""
        assert self._server is not None, "not started"
        return int(self._server.server_address[1])

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
            *self._drain.handlers,
        ]
        try:
            self._server = self._ae.start_server(address, block=False, evt_handlers=handlers, ssl_context=tls)
        except OSError as error:
            self._watcher.stop()
            raise ConfigurationError(
                f"cannot listen on {address[0]}:{address[1]}: {error.strerror}",
                remedy="set EMBOLENS_DICOM_HOST and EMBOLENS_DICOM_PORT",
            ) from error

    def stop(self) -> None:
        """End the associations and the watcher. What was acknowledged lies on disk; its job is taken up again.

        An instance that is being received is answered first.
        """
        if self._server is not None:
            self._server.shutdown()
            self._drain.end(self._ae.active_associations, within_s=_DRAIN_S)
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
            status.Status = storage_status(error)
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
        if self._held.holds(named, encoded.getbuffer(), is_arriving=arriving is not None):
            if arriving is not None:
                self._register.touch(arriving, calling)
            return
        announced = None
        if arriving is None:
            first = _identify(encoded, file_meta, with_announcement=True)
            announced = first.announced_instances
        with self._register.storing(study, series, sop, calling) as receiving, self._store.arriving_file(path) as file:
            receiving.announced_instances = announced or receiving.announced_instances
            file.write(FILE_PREFIX)
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
        inputs = self._held.inputs_of_jobs(study_instance_uid, series_instance_uid)
        return {path.stem for path in inputs if path.exists()}


def _identify(encoded: BytesIO, file_meta: FileMetaDataset, *, with_announcement: bool) -> Identifiers:
    sop_class_uid, sop_instance_uid = file_meta.MediaStorageSOPClassUID, file_meta.MediaStorageSOPInstanceUID
    check_is_ct(str(sop_class_uid))
    encoded.seek(0)
    found = read_identifiers(encoded, UID(file_meta.TransferSyntaxUID), with_announcement=with_announcement)
    check_is_named(found, str(sop_class_uid), str(sop_instance_uid))
    return found


def _request(event: Event) -> C_STORE:
    return cast(C_STORE, event.request)


def _peer(event: Event) -> ServiceUser:
    return event.assoc.acceptor if event.assoc.is_requestor else event.assoc.requestor


def _answer_echo(event: Event) -> int:
    return SUCCESS
