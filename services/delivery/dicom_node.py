"""Sending result objects to a DICOM node: C-STORE SCU (PS3.4 Annex B)."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association

from imaging.errors import DeliveryError, DeliveryRefused
from services.delivery.association import REPLY_TIMEOUT_S, association_with
from services.delivery.destinations import Node
from services.delivery.sent_object import DUPLICATE, WARNINGS, SentObject, status_text
from services.dicom.headers import MALFORMED

_SUCCESS = 0x0000
_OUT_OF_RESOURCES = range(0xA700, 0xA800)
# What an object is sent in where its own transfer syntax is not taken. Every node must take the last (PS3.5 10.1).
_FALLBACKS = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


def send_to_node(
    node: Node, paths: Sequence[Path], *, calling_ae_title: str, tls: ssl.SSLContext | None = None
) -> Iterator[SentObject]:
    """Send the objects over one association, in TLS where that is given, telling of each as soon as the node has
    answered. Where a node does not take an object's own transfer syntax it gets the object without compression.

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
    proposed = [one for presentation in presentations.values() for one in proposed_for(*presentation)]
    try:
        with association_with(node, proposed, calling_ae_title=calling_ae_title, tls=tls) as association:
            while left:
                sent = _send(association, node, left[0])
                left.pop(0)
                yield sent
    except DeliveryError as error:
        for path in left:
            yield SentObject(path, error)


def proposed_for(sop_class_uid: str, own_syntax: str) -> list[tuple[str, str]]:
    """The presentation contexts that an object stored in `own_syntax` can be sent in."""
    return [(sop_class_uid, syntax) for syntax in dict.fromkeys((own_syntax, *_FALLBACKS))]


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
        instance = _as_accepted(dcmread(path), association)
        answer = association.send_c_store(instance)
    except DeliveryError as error:
        return SentObject(path, error)
    except OSError as error:
        return SentObject(path, DeliveryError(f"cannot read the result file {path.name}: {error.strerror}"))
    except ValueError as error:  # no presentation context was accepted for it
        return SentObject(path, DeliveryRefused(f"{node.ae_title} does not take this object: {error}"))
    except RuntimeError as error:
        raise DeliveryError(f"{node.ae_title} ended the association") from error
    status, comment = answer.get("Status"), str(answer.get("ErrorComment") or "")
    if status is None:
        raise DeliveryError(f"{node.ae_title} did not answer within {REPLY_TIMEOUT_S:g} s or broke off")
    return SentObject(path, _refusal(node, status), status, comment)


def _refusal(node: Node, status: int) -> DeliveryError | None:
    if status in _OUT_OF_RESOURCES:
        return DeliveryError(f"{node.ae_title} is out of resources ({status_text(status)})")
    if status in (_SUCCESS, DUPLICATE) or status in WARNINGS:
        return None
    return DeliveryRefused(f"{node.ae_title} refused the object ({status_text(status)})")


def _as_accepted(instance: Dataset, association: Association) -> Dataset:
    """The object without compression, where the node does not take it as it is."""
    own = UID(instance.file_meta.TransferSyntaxUID)
    accepted = {
        context.transfer_syntax[0]
        for context in association.accepted_contexts
        if context.abstract_syntax == instance.SOPClassUID
    }
    if own.is_compressed and own not in accepted and accepted:
        if own.is_encapsulated:
            try:
                instance.decompress(generate_instance_uid=False)  # the same picture, so the same instance
            except (*MALFORMED, RuntimeError, NotImplementedError) as error:  # RuntimeError: no decoder is installed
                raise DeliveryRefused(f"{own.name}, which is not taken, cannot be decompressed here") from error
        else:  # deflated; pydicom has inflated it
            instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return instance
