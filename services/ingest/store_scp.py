"""The Storage SCP: what a PACS pushes lies on disk, byte for byte, before it hears Success (PS3.4 Annex B).

CT, Enhanced CT and Legacy Converted Enhanced CT are accepted in every transfer syntax the reader reads. Storage of
anything else (MR, SR, secondary capture) is refused when the presentation contexts are negotiated, so the sender's log
shows it at once and nothing of it comes here.
"""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, evt
from pynetdicom.association import Association, ServiceUser
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import AssociationSocket
from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, EmbolensError
from services.audit.association_audit import AssociationAudit
from services.audit.events import Peer
from services.audit.trail import AuditTrail
from services.delivery.storage_commitment import CommitmentReports
from services.dicom.file_meta import NamedFileMeta, mapped
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES, CT_STORAGE_SOP_CLASSES
from services.ingest.arriving_data_set import ArrivingDataSet, InMemory, view
from services.ingest.arriving_series import ArrivingSeriesRegister, Calling
from services.ingest.association_drain import AssociationDrain
from services.ingest.bounded_association import BoundedServer
from services.ingest.bounds import MAX_PDU_BYTES, Bounds
from services.ingest.completeness import Completeness
from services.ingest.completion import CompletionWatcher
from services.ingest.held_instances import HeldInstances
from services.ingest.identifiers import Identifiers, identify
from services.ingest.intake_rules import IntakeRules
from services.ingest.known_peers import COME_AGAIN, KnownPeers, Refusal
from services.ingest.receiver import WrittenInstance
from services.ingest.receiver_pool import ReceiverPool
from services.ingest.storage_status import SUCCESS, storage_status
from services.ingest.store_reader import ReceivedInstance, StoreAnswer
from services.ingest.store_shortcut import StoreShortcut
from services.process_log import where_raised
from services.settings import Settings
from services.store.jobs import JobStore
from services.store.retrievals import RetrievalStore
from services.store.rows import DEFAULT_TENANT
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.transport_security import listener_context

log = logging.getLogger(__name__)

_LOCAL_LIMIT_EXCEEDED = (0x02, 0x03, 0x02)  # for the moment, by the provider (PS3.8 9.3.4)
ASSOCIATION_REQUEST_TIMEOUT_S = 30.0
_COPIED_AT_ONCE_BYTES = 1024**2
_NO_LIMIT_OF_ITS_OWN = 1_000_000
_DRAIN_S = 10.0


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
        receivers: ReceiverPool | None = None,
    ) -> None:
        """Without `receivers` it receives everything in this process."""
        self._receivers = receivers
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._register = ArrivingSeriesRegister(store, jobs)
        completeness = Completeness(settings, store, retrievals)
        self._watcher = CompletionWatcher(
            self._register,
            store,
            jobs,
            queue,
            rules,
            completeness,
            series_quiet_s=settings.series_quiet_s,
            series_released_quiet_s=settings.series_released_quiet_s,
            has_open_association=self._has_open_association,
        )
        self._ae = AE(ae_title=settings.ae_title)
        self._ae.maximum_associations = _NO_LIMIT_OF_ITS_OWN  # it counts connections that never asked for one too
        self._ae.maximum_pdu_size = MAX_PDU_BYTES
        self._ae.network_timeout = settings.network_timeout_s
        self._ae.acse_timeout = min(ASSOCIATION_REQUEST_TIMEOUT_S, settings.network_timeout_s)
        self._ae.supported_contexts = supported_contexts()
        self._ae.require_called_aet = rules.associations.called_ae_title_must_match
        self._reports = reports
        self._tenants = rules.tenants
        self._peers = KnownPeers(rules, settings)
        self._admitted: list[Association] = []
        self._admitting = threading.Lock()
        self._drain = AssociationDrain()
        self._server: BoundedServer | None = None
        self._port: int | None = None
        self._held = HeldInstances(store, jobs)
        self.audit = AssociationAudit(AuditTrail(settings, "listener"))

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
            (evt.EVT_REQUESTED, self._admit),
            (evt.EVT_C_ECHO, _answer_echo),
            (evt.EVT_C_STORE, self.answer_store),
            (evt.EVT_N_EVENT_REPORT, self._answer_report),
            *self.audit.handlers(),
            *self._drain.handlers,
        ]
        try:
            server = self._ae.make_server(
                address,
                evt_handlers=handlers,
                ssl_context=tls,
                server_class=BoundedServer,
                bounds=Bounds.of(self._settings, self._store),
                shortcut=StoreShortcut(
                    self._answer_received,
                    self._answer_written,
                    self._drain,
                    self._receivers,
                ),
            )
        except OSError as error:
            self._watcher.stop()
            raise ConfigurationError(
                f"cannot listen on {address[0]}:{address[1]}: {error.strerror}",
                remedy="set EMBOLENS_DICOM_HOST and EMBOLENS_DICOM_PORT",
            ) from error
        assert isinstance(server, BoundedServer)
        self._server, self._port = server, int(server.server_address[1])
        self._ae._servers.append(server)  # for its shutdown
        threading.Thread(target=server.serve_forever, name="AcceptorServer", daemon=True).start()
        self._peers.warn_of_open_doors()

    def stop(self) -> None:
        """End the associations and the watcher. What was acknowledged lies on disk; its job is taken up again.

        An instance that is being received is answered first.
        """
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            self._drain.end(self._ae.active_associations, within_s=_DRAIN_S)
            server.hang_up_on_all()
        self._watcher.stop()
        self.audit.end_all()

    def _admit(self, event: Event) -> None:
        """Reject whom the rules do not let in, and who would be one too many; the called AE title is pynetdicom's."""
        association = event.assoc
        request, connection = association.requestor.primitive, cast(AssociationSocket, association.dul.socket).socket
        if request is None or connection is None:  # it has gone already
            association.kill()
            return
        calling, address = request.calling_ae_title.strip(), association.requestor.address
        try:
            refusal = self._refusal(association, calling, connection)
        except Exception as error:  # noqa: BLE001  pynetdicom would note it and let the peer in
            log.error("could not judge an association: unexpected %s\n%s", type(error).__name__, where_raised(error))
            refusal = Refusal(COME_AGAIN, "of the error above")
        if refusal is not None:
            log.warning("rejected an association from %r at %s: %s", calling, address, refusal.why)
            association.acse.send_reject(*refusal.reason)
            association.kill()

    def _refusal(self, association: Association, calling: str, connection: socket.socket) -> Refusal | None:
        certificate = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
        address = association.requestor.address
        refusal = self._peers.refusal(calling, address, connection.getsockname()[0], certificate)
        if refusal is None and not self._has_room_for(association):
            return Refusal(_LOCAL_LIMIT_EXCEEDED, f"{self._settings.max_associations} are open already")
        return refusal

    def _has_room_for(self, association: Association) -> bool:
        with self._admitting:
            self._admitted = [one for one in self._admitted if one.is_alive()]
            if len(self._admitted) >= self._settings.max_associations:
                return False
            self._admitted.append(association)
            return True

    def _has_open_association(self, calling_ae_title: str) -> bool:
        with self._admitting:
            titles = [str(one.requestor.ae_title).strip() for one in self._admitted if one.is_alive()]
        return calling_ae_title in titles

    def answer_store(self, event: Event) -> Dataset:
        """One C-STORE request, on an association of theirs or of ours (C-GET): Success only after the file lies under
        its final name."""
        answer = self._answered(
            str(_request(event).AffectedSOPInstanceUID), _peer(event), lambda: self._take_in_of(event)
        )
        status = Dataset()
        status.Status = answer.status
        if answer.comment:
            status.ErrorComment = answer.comment
        return status

    def _answer_received(self, association: Association, received: ReceivedInstance) -> StoreAnswer:
        """The same, for a request that did not go through pynetdicom."""
        request, peer = received.request, association.requestor
        meta = NamedFileMeta.of_c_store(request.sop_class_uid, request.sop_instance_uid, received.transfer_syntax_uid)
        calling = Calling(peer.ae_title.strip(), peer.address, association)
        return self._answered(
            request.sop_instance_uid, peer, lambda: self._keep(received.data_set.whole(), meta, calling)
        )

    def _answer_written(self, association: Association, written: WrittenInstance) -> StoreAnswer:
        """The same, for one whose file a receiver has written."""
        peer = association.requestor
        calling = Calling(peer.ae_title.strip(), peer.address, association)
        return self._answered(written.named.sop_instance_uid, peer, lambda: self._keep_written(written, calling))

    def _answered(self, sop_instance_uid: str, peer: ServiceUser, keep: Callable[[], None]) -> StoreAnswer:
        try:
            keep()
        except (EmbolensError, SQLAlchemyError, OSError) as error:
            code = error.code if isinstance(error, EmbolensError) else type(error).__name__
            log.warning("refused %s from %s: %s", sop_instance_uid, peer.ae_title, code)
            return StoreAnswer(storage_status(error), code[:64])
        return StoreAnswer(SUCCESS)

    def _answer_report(self, event: Event) -> tuple[int, None]:
        return self._reports.answer(event, event.assoc.requestor.ae_title.strip())

    def _take_in_of(self, event: Event) -> None:
        peer = _peer(event)
        calling = Calling(peer.ae_title.strip(), peer.address, event.assoc)
        request = _request(event)
        arrived = cast(ArrivingDataSet | None, request._dataset_file)  # None where it came by our C-GET
        encoded = cast(BytesIO, request.DataSet) if arrived is None else arrived.whole()
        self.take_in(encoded, event.file_meta, calling)

    def take_in(self, encoded: BinaryIO, file_meta: FileMetaDataset, calling: Calling) -> None:
        """Keep one instance, byte for byte, as part of its series.

        Raises:
            InputError: no CT, not the instance that the file meta names, or not readable.
            StorageFull: the disk has no room, or only what is reserved.
        """
        self._keep(encoded, NamedFileMeta.of(file_meta), calling)

    def _keep(self, encoded: BinaryIO, meta: NamedFileMeta, calling: Calling) -> None:
        named = identify(encoded, meta, with_announcement=False)
        study, series, sop = named.study_instance_uid, named.series_instance_uid, named.sop_instance_uid
        tenant = self._tenants.of(calling.ae_title)
        path = self._store.instance_path(study, series, sop, tenant=tenant)
        arriving = self._register.find(study, series, tenant)
        content = view(encoded)
        if self._held.holds(path, named, content, is_arriving=arriving is not None, tenant=tenant):
            if arriving is not None:
                self._register.touch(arriving, calling)
            self._note_taken_in(named, calling, path)
            return
        self._store.check_room(len(content))
        announced = None
        if arriving is None:
            announced = identify(encoded, meta, with_announcement=True).announced_instances
        with self._register.storing(study, series, sop, calling, tenant) as receiving:
            receiving.announced_instances = announced or receiving.announced_instances
            if isinstance(encoded, InMemory):
                self._store.put(path, [meta.encoded, content])
            else:
                self._copy(encoded, meta, path)
        self._note_taken_in(named, calling, path)
        if len(receiving.sop_instance_uids) == receiving.announced_instances:
            self._watcher.look_now()

    def _keep_written(self, written: WrittenInstance, calling: Calling) -> None:
        named = written.named
        study, series, sop = named.study_instance_uid, named.series_instance_uid, named.sop_instance_uid
        tenant = self._tenants.of(calling.ae_title)
        path = self._store.instance_path(study, series, sop, tenant=tenant)
        try:
            if self._register.find(study, series, tenant) is None or path.exists():
                self._keep_copy(written, calling)
                return
            with self._register.storing(study, series, sop, calling, tenant) as receiving:
                self._store.put_arrived(written.path, path)
        except BaseException:
            Path(written.path).unlink(missing_ok=True)
            raise
        self._note_taken_in(named, calling, path)
        if len(receiving.sop_instance_uids) == receiving.announced_instances:
            self._watcher.look_now()

    def _keep_copy(self, written: WrittenInstance, calling: Calling) -> None:
        """Of one whose content is to be looked into."""
        named = written.named
        meta = NamedFileMeta.of_c_store(named.sop_class_uid, named.sop_instance_uid, written.transfer_syntax_uid)
        data_set = InMemory(mapped(Path(written.path))[len(meta.encoded) :])
        self._keep(cast(BinaryIO, data_set), meta, calling)
        Path(written.path).unlink()

    def _copy(self, encoded: BinaryIO, meta: NamedFileMeta, path: Path) -> None:
        with self._store.arriving_file(path) as file:
            file.write(meta.encoded)
            encoded.seek(0)
            shutil.copyfileobj(encoded, file, _COPIED_AT_ONCE_BYTES)

    def _note_taken_in(self, named: Identifiers, calling: Calling, path: Path) -> None:
        peer = Peer(calling.ae_title, calling.address)
        self.audit.took_in(calling.association, peer, named.study_instance_uid, named.sop_class_uid, path)

    def held(self, study_instance_uid: str, series_instance_uid: str, tenant: str = DEFAULT_TENANT) -> set[str]:
        """SOP Instance UIDs that are here and belong to a job of the tenant, or will."""
        if (arriving := self._register.find(study_instance_uid, series_instance_uid, tenant)) is not None:
            with arriving.lock:
                if not arriving.is_closed:
                    return set(arriving.sop_instance_uids)
        inputs = self._held.inputs_of_jobs(study_instance_uid, series_instance_uid, tenant)
        return {path.stem for path in inputs if path.exists()}


def _request(event: Event) -> C_STORE:
    return cast(C_STORE, event.request)


def _peer(event: Event) -> ServiceUser:
    return event.assoc.acceptor if event.assoc.is_requestor else event.assoc.requestor


def _answer_echo(event: Event) -> int:
    return SUCCESS
