"""Asking a DICOM node what it has, and having it sent: C-FIND, C-GET and C-MOVE (PS3.4 Annex C, Study Root)."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from imaging.errors import NodeUnavailable
from services.delivery.destinations import Node
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES, CT_STORAGE_SOP_CLASSES
from services.retrieve.found import (
    FoundSeries,
    FoundStudy,
    Receiver,
    RunningFetch,
    Suboperations,
    ct_instances,
    found_series,
    found_study,
)

_FIND = StudyRootQueryRetrieveInformationModelFind
_GET = StudyRootQueryRetrieveInformationModelGet
_MOVE = StudyRootQueryRetrieveInformationModelMove
_QUERY_TRANSFER_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)

# PS3.4 Tables C.4-1, C.4-2, C.4-3
_SUCCESS = 0x0000
_PENDING = (0xFF00, 0xFF01)
_SUBOPERATIONS_FAILED = 0xB000
_CANCELLED = 0xFE00
_MEANINGS = {
    0x0122: "it does not support this way of fetching",
    0x0124: "it does not authorise us",
    0xA701: "it is out of resources",
    0xA702: "it is out of resources, or none of it could be sent",
    0xA801: "it does not know our AE title as a destination",
    0xA900: "it does not understand the query",
}

_CONNECTION_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 30.0
# A node need not say anything while it looks for slices on slow storage.
_FETCH_TIMEOUT_S = 300.0
_MAX_PDU_BYTES = 1024**2
# In explicit VR a value has at most 65,534 bytes, a UID with its backslash 65 (PS3.5 section 6.2).
_UIDS_IN_A_REQUEST = 1000


class DicomArchive:
    """One node. Each question is an association of its own."""

    def __init__(self, node: Node, *, our_ae_title: str, tls: ssl.SSLContext | None = None) -> None:
        self._node = node
        self._our_ae_title = our_ae_title
        self._tls = tls

    def studies(self, *, modality: str, study_dates: str) -> list[FoundStudy]:
        keys = {"ModalitiesInStudy": modality, "StudyDate": study_dates, "StudyInstanceUID": "", "StudyDescription": ""}
        return [found_study(answer) for answer in self._find("STUDY", keys)]

    def study(self, study_instance_uid: str) -> FoundStudy | None:
        answers = self._find("STUDY", {"StudyInstanceUID": study_instance_uid, "StudyDescription": ""})
        return found_study(answers[0]) if answers else None

    def series(self, study_instance_uid: str, series_instance_uid: str | None = None) -> list[FoundSeries]:
        keys = {
            "StudyInstanceUID": study_instance_uid,
            "SeriesInstanceUID": series_instance_uid or "",
            "Modality": "",
            "SeriesDescription": "",
            "ContrastBolusAgent": "",
            "NumberOfSeriesRelatedInstances": "",
        }
        return [found_series(answer) for answer in self._find("SERIES", keys)]

    def ct_instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        keys = {
            "StudyInstanceUID": study_instance_uid,
            "SeriesInstanceUID": series_instance_uid,
            "SOPInstanceUID": "",
            "SOPClassUID": "",
        }
        return ct_instances(self._find("IMAGE", keys))

    def fetch(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uids: Sequence[str] | None,
        *,
        receiver: Receiver,
        on_progress: Callable[[Suboperations], bool],
        running: RunningFetch,
    ) -> Suboperations:
        """Over this association (C-GET), or to our listener (C-MOVE)."""
        total = Suboperations(0, 0)
        for request in _requests(study_instance_uid, series_instance_uid, sop_instance_uids):
            done = self._fetch(request, receiver, on_progress, running)
            total = Suboperations(total.completed + done.completed, total.failed + done.failed)
        return total

    def _fetch(
        self,
        request: Dataset,
        receiver: Receiver,
        on_progress: Callable[[Suboperations], bool],
        running: RunningFetch,
    ) -> Suboperations:
        counts = Suboperations(0, 0)
        is_get = self._node.retrieve == "c-get"
        with self._associated(
            _GET if is_get else _MOVE, store=receiver.answer_store if is_get else None
        ) as association:
            running.can_be_broken_off_by(association.abort)
            answers = (
                association.send_c_get(request, _GET)
                if is_get
                else association.send_c_move(request, self._our_ae_title, _MOVE)
            )
            cancelling = False
            for status, _ in answers:
                if "Status" not in status:
                    raise self._broke_off()
                counts = Suboperations(
                    # a warning about an instance means that it was stored
                    completed=(status.get("NumberOfCompletedSuboperations") or 0)
                    + (status.get("NumberOfWarningSuboperations") or 0),
                    failed=status.get("NumberOfFailedSuboperations") or 0,
                )
                if not on_progress(counts) and not cancelling and status.Status in _PENDING:
                    cancelling = True
                    association.send_c_cancel(1, query_model=_GET if is_get else _MOVE)
                if status.Status not in (_SUCCESS, _SUBOPERATIONS_FAILED, _CANCELLED, *_PENDING) and not counts.failed:
                    raise self._refused(status.Status)
        return counts

    def _find(self, level: str, keys: dict[str, str]) -> list[Dataset]:
        request = Dataset()
        request.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(request, keyword, value)
        found = []
        with self._associated(_FIND) as association:
            for status, answer in association.send_c_find(request, _FIND):
                if "Status" not in status:
                    raise self._broke_off()
                if status.Status in _PENDING and answer is not None:
                    found.append(answer)
                elif status.Status in _PENDING:
                    raise NodeUnavailable(f"{self._node.ae_title} sent an answer that cannot be read")
                elif status.Status != _SUCCESS:
                    raise self._refused(status.Status)
        return found

    @contextmanager
    def _associated(
        self, sop_class_uid: str, *, store: Callable[[Event], Dataset] | None = None
    ) -> Iterator[Association]:
        node = self._node
        ae = AE(ae_title=self._our_ae_title)
        ae.connection_timeout = ae.acse_timeout = _CONNECTION_TIMEOUT_S
        ae.dimse_timeout = ae.network_timeout = _ANSWER_TIMEOUT_S if sop_class_uid == _FIND else _FETCH_TIMEOUT_S
        ae.maximum_pdu_size = _MAX_PDU_BYTES
        ae.add_requested_context(sop_class_uid, list(_QUERY_TRANSFER_SYNTAXES))
        handlers: list[evt.EventHandlerType] = []
        roles = []
        if store is not None:
            handlers.append((evt.EVT_C_STORE, store))
            for ct_class in CT_STORAGE_SOP_CLASSES.values():
                roles.append(build_role(ct_class, scp_role=True))
                for transfer_syntax in ACCEPTED_TRANSFER_SYNTAXES:  # each alone: the node has what it has
                    ae.add_requested_context(ct_class, transfer_syntax)
        association = ae.associate(
            node.host,
            node.port,
            ae_title=node.ae_title,
            ext_neg=roles,  # type: ignore[arg-type]  # a list of one of the kinds that it may hold
            evt_handlers=handlers,
            tls_args=None if self._tls is None else (self._tls, node.host),
        )
        if association.is_rejected:
            raise NodeUnavailable(f"{node.ae_title} rejected the association", remedy="does it know our AE title?")
        if not association.is_established:
            remedy = "is it running, with TLS and a certificate that is trusted here?" if node.tls else "is it running?"
            raise NodeUnavailable(f"no association with {node.ae_title} at {node.host}:{node.port}", remedy=remedy)
        try:
            if not _accepts(association.accepted_contexts, sop_class_uid):
                raise NodeUnavailable(
                    f"{node.ae_title} does not support {_name(sop_class_uid)}",
                    remedy="allow it there, or choose the other way with `retrieve` in destinations.toml",
                )
            yield association
        except RuntimeError as error:  # raised by pynetdicom where the association has ended
            raise self._broke_off() from error
        finally:
            if association.is_established:
                association.release()
            else:
                association.abort()

    def _broke_off(self) -> NodeUnavailable:
        return NodeUnavailable(f"{self._node.ae_title} broke off or did not answer in time")

    def _refused(self, status: int) -> NodeUnavailable:
        meaning = f": {_MEANINGS[status]}" if status in _MEANINGS else ""
        return NodeUnavailable(f"{self._node.ae_title} refused with 0x{status:04X}{meaning}")


def _requests(
    study_instance_uid: str, series_instance_uid: str, sop_instance_uids: Sequence[str] | None
) -> Iterator[Dataset]:
    request = Dataset()
    request.QueryRetrieveLevel = "SERIES"
    request.StudyInstanceUID = study_instance_uid
    request.SeriesInstanceUID = series_instance_uid
    if sop_instance_uids is None:
        yield request
        return
    request.QueryRetrieveLevel = "IMAGE"
    for start in range(0, len(sop_instance_uids), _UIDS_IN_A_REQUEST):
        request.SOPInstanceUID = list(sop_instance_uids[start : start + _UIDS_IN_A_REQUEST])
        yield request


def _accepts(contexts: Sequence[PresentationContext], sop_class_uid: str) -> bool:
    return any(context.abstract_syntax == sop_class_uid for context in contexts)


def _name(sop_class_uid: str) -> str:
    return {_FIND: "C-FIND", _GET: "C-GET", _MOVE: "C-MOVE"}[sop_class_uid]
