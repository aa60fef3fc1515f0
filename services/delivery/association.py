"""An association with a node that we open: to store, to ask for storage commitment, to announce."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association

from imaging.errors import DeliveryError
from services.delivery.destinations import Node
from services.requestor import Requestor

CONNECTION_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 60.0
_open: set[Association] = set()  # of this process, from the connection on


@contextmanager
def association_with(
    node: Node,
    presentations: Collection[tuple[str, str]],
    *,
    calling_ae_title: str,
    tls: ssl.SSLContext | None = None,
    handlers: Sequence[evt.EventHandlerType] = (),
) -> Iterator[Association]:
    """An association on which every wait is bounded, over TLS where that is given; released at the end.

    Args:
        presentations: SOP Class UID and transfer syntax; each pair becomes a presentation context of its own.

    Raises:
        DeliveryError: there is none to be had.
    """
    ae = Requestor(ae_title=calling_ae_title)
    ae.connection_timeout = CONNECTION_TIMEOUT_S
    ae.acse_timeout = CONNECTION_TIMEOUT_S
    ae.dimse_timeout = REPLY_TIMEOUT_S
    ae.network_timeout = REPLY_TIMEOUT_S
    for sop_class_uid, transfer_syntax_uid in sorted(set(presentations)):
        ae.add_requested_context(sop_class_uid, transfer_syntax_uid)
    tls_args = None if tls is None else (tls, node.host)
    kept: list[evt.EventHandlerType] = [
        (evt.EVT_CONN_OPEN, lambda event: _open.add(event.assoc)),
        (evt.EVT_CONN_CLOSE, lambda event: _open.discard(event.assoc)),
    ]
    association = ae.associate(
        node.host, node.port, ae_title=node.ae_title, tls_args=tls_args, evt_handlers=[*handlers, *kept]
    )
    if association.is_rejected:
        raise DeliveryError(
            f"{node.ae_title} rejected the association ({_rejection(association)})",
            remedy="does it know our AE title?",
        )
    if association.rejected_contexts and not association.accepted_contexts:
        refused = ", ".join(sorted({UID(sop_class_uid).name for sop_class_uid, _ in presentations}))
        raise DeliveryError(f"{node.ae_title} does not take: {refused}")
    if not association.is_established:
        remedy = "is it running?" if tls is None else "is it running, with TLS and a certificate that is trusted here?"
        raise DeliveryError(f"no association with {node.ae_title} at {node.host}:{node.port}", remedy=remedy)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        else:
            association.abort()


def abort_open_associations() -> None:
    """Tell every peer that this process ends its association (A-ABORT), without waiting for those who do not listen."""
    for association in list(_open):
        association.abort(block=False)


def _rejection(association: Association) -> str:
    """PS3.8 9.3.4: whether it may be tried again, and why."""
    said = association.acceptor.primitive
    return "no reason given" if said is None else f"{said.result_str}: {said.reason_str}".lower()
