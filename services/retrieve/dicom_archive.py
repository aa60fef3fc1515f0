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
from services.requestor import Requestor
from services.retrieve.found import (
    FoundSeries,
    FoundStudy,
    Receiver,
    found_series,
    found_studies,
    sop_instance_uids,
    without_ct,
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
_MOST_REQUESTS = 64  # for the missing instances of one series, in one attempt
_COULD_NOT_PROCESS = (0xA702, *range(0xC000, 0xD000))


class _Refused(NodeUnavailable):
    def __init__(self, ae_title: str, status: int) -> None:
        meaning = f": {_MEANINGS[status]}" if status in _MEANINGS else ""
        super().__init__(f"{ae_title} refused with 0x{status:04X}{meaning}")
        self.status = status


def requested_contexts(sop_class_uid: str, *, with_storage: bool) -> list[PresentationContext]:
    """What is proposed to a node: a query or retrieve class and, for C-GET, the classes that come back."""
    ae = AE()
    ae.add_requested_context(sop_class_uid, list(_QUERY_TRANSFER_SYNTAXES))
    if with_storage:
        for ct_class in CT_STORAGE_SOP_CLASSES.values():
            for transfer_syntax in ACCEPTED_TRANSFER_SYNTAXES:  # each alone: the node has what it has
                ae.add_requested_context(ct_class, transfer_syntax)
    return ae.requested_contexts


class DicomArchive:
    """One node. Each question is an association of its own."""

    def __init__(self, node: Node, *, our_ae_title: str, tls: ssl.SSLContext | None = None) -> None:
        self._node = node
        self._our_ae_title = our_ae_title
        self._tls = tls

    def studies(self, *, modality: str, study_dates: str) -> list[FoundStudy]:
        keys = {"ModalitiesInStudy": modality, "StudyDate": study_dates, "StudyInstanceUID": "", "StudyDescription": ""}
        return found_studies(self._find("STUDY", keys))

    def study(self, study_instance_uid: str) -> FoundStudy | None:
        answers = self._find("STUDY", {"StudyInstanceUID": study_instance_uid, "StudyDescription": ""})
        return next(iter(found_studies(answers, study_instance_uid)), None)

    def series(
        self, study_instance_uid: str, series_instance_uid: str | None = None, *, with_contrast: bool = False
    ) -> list[FoundSeries]:
        keys = {
            "StudyInstanceUID": study_instance_uid,
            "SeriesInstanceUID": series_instance_uid or "",
            "Modality": "",
            "SeriesDescription": "",
            "NumberOfSeriesRelatedInstances": "",
            **({"ContrastBolusAgent": ""} if with_contrast else {}),
        }
        return found_series(self._find("SERIES", keys), series_instance_uid)

    def instances(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        keys = {
            "StudyInstanceUID": study_instance_uid,
            "SeriesInstanceUID": series_instance_uid,
            "SOPInstanceUID": "",
        }
        return sop_instance_uids(self._find("IMAGE", keys))

    def other_than_ct(self, study_instance_uid: str, series_instance_uid: str, uids: Sequence[str]) -> frozenset[str]:
        answers = []
        for some in _chunks(uids, _UIDS_IN_A_REQUEST):
            request = _request(study_instance_uid, series_instance_uid, some)
            request.SOPClassUID = ""
            answers += self._ask(request)
        return sop_instance_uids(without_ct(answers))

    def fetch(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        uids: Sequence[str] | None,
        *,
        receiver: Receiver,
        on_progress: Callable[[int], bool],
    ) -> None:
        """Over this association (C-GET), or to our listener (C-MOVE).

        Archives refuse a request as a whole where one file is lost. So a list of instances is halved when it is
        refused, until what is refused is one instance.
        """
        left: list[Sequence[str] | None] = [None] if uids is None else list(_chunks(uids, _UIDS_IN_A_REQUEST))
        failed = 0
        for _ in range(_MOST_REQUESTS):
            if not left:
                return
            some = left.pop()
            try:
                failed += self._fetch(
                    _request(study_instance_uid, series_instance_uid, some), failed, receiver, on_progress
                )
            except _Refused as error:
                if some is None or error.status not in _COULD_NOT_PROCESS:
                    raise
                if len(some) > 1:
                    left += _chunks(some, (len(some) + 1) // 2)
                else:
                    failed += 1
            if not on_progress(failed):
                return

    def _fetch(
        self, request: Dataset, failed_before: int, receiver: Receiver, on_progress: Callable[[int], bool]
    ) -> int:
        """How many of its sub-operations failed."""
        failed = 0
        is_get = self._node.retrieve == "c-get"
        model = _GET if is_get else _MOVE
        with self._associated(model, store=receiver.answer_store if is_get else None) as association:
            answers = (
                association.send_c_get(request, model)
                if is_get
                else association.send_c_move(request, self._our_ae_title, model)
            )
            cancelling = False
            for status, _ in answers:
                if "Status" not in status:
                    raise self._broke_off()
                failed = status.get("NumberOfFailedSuboperations") or 0
                if status.Status in _PENDING:
                    if not on_progress(failed_before + failed) and not cancelling:
                        cancelling = True
                        association.send_c_cancel(1, query_model=model)
                elif status.Status not in (_SUCCESS, _SUBOPERATIONS_FAILED, _CANCELLED) and not failed:
                    raise _Refused(self._node.ae_title, status.Status)
        return failed

    def _find(self, level: str, keys: dict[str, str]) -> list[Dataset]:
        request = Dataset()
        request.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(request, keyword, value)
        return self._ask(request)

    def _ask(self, request: Dataset) -> list[Dataset]:
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
                    raise _Refused(self._node.ae_title, status.Status)
        return found

    @contextmanager
    def _associated(
        self, sop_class_uid: str, *, store: Callable[[Event], Dataset] | None = None
    ) -> Iterator[Association]:
        node = self._node
        ae = Requestor(ae_title=self._our_ae_title)
        ae.connection_timeout = ae.acse_timeout = _CONNECTION_TIMEOUT_S
        ae.dimse_timeout = ae.network_timeout = _ANSWER_TIMEOUT_S if sop_class_uid == _FIND else _FETCH_TIMEOUT_S
        ae.maximum_pdu_size = _MAX_PDU_BYTES
        ae.requested_contexts = requested_contexts(sop_class_uid, with_storage=store is not None)
        handlers: list[evt.EventHandlerType] = []
        roles = []
        if store is not None:
            handlers.append((evt.EVT_C_STORE, store))
            roles += [build_role(ct_class, scp_role=True) for ct_class in CT_STORAGE_SOP_CLASSES.values()]
        association = ae.associate(
            node.host,
            node.port,
            ae_title=node.ae_title,
            ext_neg=roles,
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


def _chunks(uids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [uids[start : start + size] for start in range(0, len(uids), size)]


def _request(study_instance_uid: str, series_instance_uid: str, uids: Sequence[str] | None) -> Dataset:
    request = Dataset()
    request.QueryRetrieveLevel = "SERIES" if uids is None else "IMAGE"
    request.StudyInstanceUID = study_instance_uid
    request.SeriesInstanceUID = series_instance_uid
    if uids is not None:
        request.SOPInstanceUID = list(uids)
    return request


def _accepts(contexts: Sequence[PresentationContext], sop_class_uid: str) -> bool:
    return any(context.abstract_syntax == sop_class_uid for context in contexts)


def _name(sop_class_uid: str) -> str:
    return {_FIND: "C-FIND", _GET: "C-GET", _MOVE: "C-MOVE"}[sop_class_uid]
