"""Sending result objects to a DICOM node: C-STORE SCU (PS3.4 Annex B)."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from imaging.errors import DeliveryError, DeliveryRefused
from services.delivery.destinations import Node
from services.delivery.sent_object import SentObject
from services.dicom.headers import MALFORMED

_SUCCESS = 0x0000
_WARNINGS = frozenset({0xB000, 0xB006, 0xB007, 0x0001, 0x0107, 0x0116})  # PS3.4 Table B.2-1, PS3.7 C.2: it is stored
_DUPLICATE = 0x0111  # PS3.7 C.5.7: it has this instance; our UIDs are derived from content, so it is the same one
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_CONNECTION_TIMEOUT_S = 10.0
_REPLY_TIMEOUT_S = 60.0


def send_to_node(
    node: Node, paths: Sequence[Path], *, calling_ae_title: str, tls: ssl.SSLContext | None = None
) -> Iterator[SentObject]:
    """Send the objects over one association, in TLS where that is given, telling of each as soon as the node has
    answered.

    Every path is told of once. Every wait is bounded. What the node refuses for good is `DeliveryRefused`, everything
    else that goes wrong `DeliveryError`.
    """
    presentations: dict[Path, tuple[str, str]] = {}
    for path in paths:
        try:
            presentations[path] = _presentation_of(path)
        except DeliveryError as error:
            yield SentObject(path, error)
    left = list(presentations)
    if not left:
        return
    try:
        with _association(node, set(presentations.values()), calling_ae_title, tls) as association:
            while left:
                sent = _send(association, node, left[0])
                left.pop(0)
                yield sent
    except DeliveryError as error:
        for path in left:
            yield SentObject(path, error)


@contextmanager
def _association(
    node: Node, presentations: set[tuple[str, str]], calling_ae_title: str, tls: ssl.SSLContext | None
) -> Iterator[Association]:
    ae = AE(ae_title=calling_ae_title)
    ae.connection_timeout = _CONNECTION_TIMEOUT_S
    ae.acse_timeout = _CONNECTION_TIMEOUT_S
    ae.dimse_timeout = _REPLY_TIMEOUT_S
    ae.network_timeout = _REPLY_TIMEOUT_S
    for sop_class_uid, transfer_syntax_uid in sorted(presentations):
        ae.add_requested_context(sop_class_uid, transfer_syntax_uid)
        # The one transfer syntax that every node must take (PS3.5 section 10.1), in a context of its own.
        ae.add_requested_context(sop_class_uid, ImplicitVRLittleEndian)
    tls_args = None if tls is None else (tls, node.host)
    association = ae.associate(node.host, node.port, ae_title=node.ae_title, tls_args=tls_args)
    if association.is_rejected:
        raise DeliveryError(f"{node.ae_title} rejected the association", remedy="does it know our AE title?")
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


def _presentation_of(path: Path) -> tuple[str, str]:
    try:
        header = dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True)
        return str(header.SOPClassUID), str(header.file_meta.TransferSyntaxUID)
    except OSError as error:
        raise DeliveryError(f"cannot read the result file {path.name}: {error.strerror}") from error
    except MALFORMED as error:
        raise DeliveryError(f"the result file {path.name} is not DICOM") from error


def _send(association: Association, node: Node, path: Path) -> SentObject:
    if not association.is_established:
        raise DeliveryError(f"{node.ae_title} ended the association")
    try:
        status = association.send_c_store(dcmread(path)).get("Status")
    except OSError as error:
        return SentObject(path, DeliveryError(f"cannot read the result file {path.name}: {error.strerror}"))
    except ValueError as error:  # no presentation context was accepted for it
        return SentObject(path, DeliveryRefused(f"{node.ae_title} does not take this object: {error}"))
    except RuntimeError as error:
        raise DeliveryError(f"{node.ae_title} ended the association") from error
    if status is None:
        raise DeliveryError(f"{node.ae_title} did not answer within {_REPLY_TIMEOUT_S:g} s or broke off")
    if status == _SUCCESS:
        return SentObject(path)
    if status in _WARNINGS:
        return SentObject(path, note=f"stored with warning 0x{status:04X}")
    if status == _DUPLICATE:
        return SentObject(path, note=f"which it had already (0x{status:04X})")
    if status in _OUT_OF_RESOURCES:
        return SentObject(path, DeliveryError(f"{node.ae_title} is out of resources (0x{status:04X})"))
    return SentObject(path, DeliveryRefused(f"{node.ae_title} refused the object (0x{status:04X})"))
