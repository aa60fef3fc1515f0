"""Storage commitment: a node says whether it keeps what it has taken (PS3.4 Annex J, Push Model)."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from imaging.errors import DeliveryError
from services.delivery.association import association_with
from services.delivery.attempts import try_later
from services.delivery.destinations import Node
from services.dicom.headers import MALFORMED
from services.dicom.sop_reference import reference_to
from services.settings import Settings
from services.store.outbox import Answer, Outbox
from services.store.rows import OutboxRow

PROPOSED = tuple((StorageCommitmentPushModel, syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian))
log = logging.getLogger(__name__)

_REQUEST_STORAGE_COMMITMENT = 1  # action type, PS3.4 Table J.3.2-1
_SUCCESS = 0x0000
_PROCESSING_FAILURE = 0x0110
_INVALID_ARGUMENT = 0x0115
_REPORT_WAIT_S = 3.0  # on the association of the request; later reports come to the listener


def request_commitment(
    node: Node,
    rows: Sequence[OutboxRow],
    transaction_uid: str,
    reports: CommitmentReports,
    *,
    calling_ae_title: str,
    tls: ssl.SSLContext | None = None,
) -> None:
    """N-ACTION for the objects of these rows, then a short wait for a report on the same association.

    Raises:
        DeliveryError: the node did not take the request.
    """
    taken, answered = threading.Event(), threading.Event()

    def take(event: Event) -> tuple[int, None]:
        answer = reports.answer(event, node.ae_title)
        taken.set()
        return answer

    def sent(event: Event) -> None:
        if taken.is_set():  # what is sent after that is our answer: only now may the association end
            answered.set()

    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = [reference_to(row.sop_class_uid, row.sop_instance_uid) for row in rows]  # type: ignore[arg-type]  # rows of objects
    with association_with(
        node,
        PROPOSED,
        calling_ae_title=calling_ae_title,
        tls=tls,
        handlers=[(evt.EVT_N_EVENT_REPORT, take), (evt.EVT_PDU_SENT, sent)],
    ) as association:
        try:
            answer, _ = association.send_n_action(
                request, _REQUEST_STORAGE_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
        except RuntimeError as error:
            raise DeliveryError(f"{node.ae_title} ended the association") from error
        status = answer.get("Status")
        if status is None:
            raise DeliveryError(f"{node.ae_title} did not answer the request for storage commitment")
        if status != _SUCCESS:
            raise DeliveryError(f"{node.ae_title} refused the request for storage commitment (0x{status:04X})")
        answered.wait(_REPORT_WAIT_S)


class CommitmentReports:
    """Takes N-EVENT-REPORT, on whichever association it comes."""

    def __init__(self, outbox: Outbox, settings: Settings) -> None:
        self._outbox = outbox
        self._settings = settings

    def answer(self, event: Event, ae_title: str) -> tuple[int, None]:
        """Note down what this node reports; the status to answer with, and no event reply.

        Only what the node was asked for counts: a report on another transaction, or by another AE title, is refused.
        """
        try:
            report = event.event_information
            transaction_uid = str(report.TransactionUID)
            committed = {str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence") or ()}
            failed = {
                str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or _PROCESSING_FAILURE)
                for item in report.get("FailedSOPSequence") or ()
            }
        except MALFORMED:
            log.warning("%s sent a report of storage commitment that cannot be read", ae_title)
            return _PROCESSING_FAILURE, None
        rows = self._outbox.of_transaction(f"node:{ae_title}", transaction_uid)
        if not rows:
            log.warning("%s reports on transaction %s, which it was not asked for", ae_title, transaction_uid)
            return _INVALID_ARGUMENT, None
        self._outbox.committed([row for row in rows if row.sop_instance_uid in committed - failed.keys()])
        for row in rows:
            if row.sop_instance_uid in failed:
                reason = failed[row.sop_instance_uid]
                error = DeliveryError(f"{ae_title} does not commit to keeping the object (0x{reason:04X})")
                try_later(self._outbox, row, error, self._settings, answer=Answer(reason))
        log.info("%s keeps %d objects and not %d others", ae_title, len(committed), len(failed))
        return _SUCCESS, None
