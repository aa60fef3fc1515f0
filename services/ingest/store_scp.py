"""The Storage SCP: what a PACS pushes lies on disk, byte for byte, before it hears Success (PS3.4 Annex B).

CT, Enhanced CT and Legacy Converted Enhanced CT are accepted in every transfer syntax the reader reads. Storage of
anything else (MR, SR, secondary capture) is refused when the presentation contexts are negotiated, so the sender's log
shows it at once and nothing of it comes here.
"""

from __future__ import annotations

import logging
from io import BytesIO
from typing import cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode_file_meta
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is loaded
from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, EmbolensError
from services.dicom.file_meta import FILE_PREFIX
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES, CT_STORAGE_SOP_CLASSES
from services.ingest.arriving_series import ArrivingSeriesRegister, Calling
from services.ingest.completion import CompletionWatcher
from services.ingest.held_instances import HeldInstances, check_is_ct, check_is_named
from services.ingest.identifiers import Identifiers, read_identifiers
from services.ingest.intake_rules import IntakeRules
from services.ingest.storage_status import SUCCESS, storage_status
from services.settings import Settings
from services.store.jobs import JobStore
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.transport_security import listener_context

log = logging.getLogger(__name__)

_REJECTED = (0x01, 0x01, 0x01)  # permanently, by the service user, no reason given (PS3.8 9.3.4)
_MAX_PDU_BYTES = 1024**2
_NETWORK_TIMEOUT_S = 60  # a peer that is silent for longer has gone; its association is aborted


class Listener:
    """A DICOM listener and the completion of what it receives. One per data directory."""

    def __init__(
        self,
        settings: Settings,
        store: StudyStore,
        jobs: JobStore,
        queue: TaskQueue,
        rules: IntakeRules,
    ) -> None:
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._register = ArrivingSeriesRegister(store, jobs)
        self._watcher = CompletionWatcher(
            self._register, store, jobs, queue, rules, series_quiet_s=settings.series_quiet_s
        )
        self._ae = AE(ae_title=settings.ae_title)
        self._ae.maximum_associations = settings.max_associations
        self._ae.maximum_pdu_size = _MAX_PDU_BYTES
        self._ae.network_timeout = _NETWORK_TIMEOUT_S
        self._ae.add_supported_context(Verification)
        for sop_class_uid in CT_STORAGE_SOP_CLASSES.values():
            self._ae.add_supported_context(sop_class_uid, list(ACCEPTED_TRANSFER_SYNTAXES))
        self._allowed = rules.associations
        self._ae.require_called_aet = self._allowed.called_ae_title_must_match
        self._ae.require_calling_aet = list(self._allowed.calling_ae_titles)
        self._port: int | None = None
        self._held = HeldInstances(store, jobs)

    @property
    def port(self) -> int:
        """The port listened on; known once started."""
        assert self._port is not None, "not started"
        return self._port

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
            (evt.EVT_C_STORE, self._answer_store),
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

    def _answer_store(self, event: Event) -> Dataset:
        """One C-STORE request: Success only after the file lies under its final name."""
        status = Dataset()
        try:
            self._store_instance(event)
        except (EmbolensError, SQLAlchemyError, OSError) as error:
            status.Status = storage_status(error)
            code = error.code if isinstance(error, EmbolensError) else type(error).__name__
            status.ErrorComment = code[:64]
            calling = event.assoc.requestor.ae_title
            log.warning("refused %s from %s: %s", _request(event).AffectedSOPInstanceUID, calling, code)
        else:
            status.Status = SUCCESS
        return status

    def _store_instance(self, event: Event) -> None:
        requestor = event.assoc.requestor
        calling = Calling(requestor.ae_title.strip(), requestor.address, event.assoc)
        encoded = cast(BytesIO, _request(event).DataSet)
        transfer_syntax_uid = UID(event.context.transfer_syntax)
        named = self._identify(event, encoded, transfer_syntax_uid, with_announcement=False)
        study, series, sop = named.study_instance_uid, named.series_instance_uid, named.sop_instance_uid
        path = self._store.instance_path(study, series, sop)
        arriving = self._register.find(study, series)
        if self._held.holds(named, encoded.getbuffer(), is_arriving=arriving is not None):
            if arriving is not None:
                self._register.touch(arriving, calling)
            return
        announced = None
        if arriving is None:
            first = self._identify(event, encoded, transfer_syntax_uid, with_announcement=True)
            announced = first.announced_instances
        with self._register.storing(study, series, sop, calling) as receiving, self._store.arriving_file(path) as file:
            receiving.announced_instances = announced or receiving.announced_instances
            file.write(FILE_PREFIX)
            file.write(encode_file_meta(event.file_meta))
            file.write(encoded.getbuffer())
        if len(receiving.sop_instance_uids) == receiving.announced_instances:
            self._watcher.look_now()

    def _identify(
        self, event: Event, encoded: BytesIO, transfer_syntax_uid: UID, *, with_announcement: bool
    ) -> Identifiers:
        request = _request(event)
        check_is_ct(str(request.AffectedSOPClassUID))
        encoded.seek(0)
        found = read_identifiers(encoded, transfer_syntax_uid, with_announcement=with_announcement)
        check_is_named(found, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        return found


def _request(event: Event) -> C_STORE:
    return cast(C_STORE, event.request)


def _answer_echo(event: Event) -> int:
    return SUCCESS
