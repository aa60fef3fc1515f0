"""Sending an HL7 v2 message and reading its acknowledgment: MLLP (HL7 v2 transport, release 1)."""

from __future__ import annotations

import socket

from imaging.errors import ConfigurationError, DeliveryError
from services.delivery.destinations import Hl7
from services.delivery.hl7_message import control_id
from services.settings import Settings
from services.transport_security import sender_context

_START, _END = b"\x0b", b"\x1c\r"
_CONNECTION_TIMEOUT_S = 10.0
_REPLY_TIMEOUT_S = 30.0
_MOST_ACKNOWLEDGMENT_BYTES = 1024**2
_ACCEPTED = frozenset({"AA", "CA"})  # HL7 table 0008
_REJECTED = {"AE": "error", "CE": "error", "AR": "reject", "CR": "reject"}


def send_message(engine: Hl7, message_id: str, message: str, settings: Settings) -> str:
    """Send it over a connection of its own; returns what there is to say of the answer.

    Raises:
        DeliveryError: no acknowledgment of this message came, or one that does not accept it.
    """
    try:
        with socket.create_connection((engine.host, engine.port), timeout=_CONNECTION_TIMEOUT_S) as plain:
            if engine.tls:
                with sender_context(settings).wrap_socket(plain, server_hostname=engine.host) as encrypted:
                    answer = _exchange(engine, encrypted, message)
            else:
                answer = _exchange(engine, plain, message)
    except ConfigurationError as error:
        raise DeliveryError(error.message, code=error.code) from error
    except OSError as error:
        raise DeliveryError(
            f"{engine.name} at {engine.host}:{engine.port}: {type(error).__name__}", remedy="is it running?"
        ) from error
    _check(engine, answer, control_id(message_id))
    return ""


def _exchange(engine: Hl7, connection: socket.socket, message: str) -> bytes:
    connection.settimeout(_REPLY_TIMEOUT_S)
    connection.sendall(_START + message.encode() + _END)
    received = b""
    while _END not in received:
        part = connection.recv(65536)
        received += part
        if not part or len(received) > _MOST_ACKNOWLEDGMENT_BYTES:
            raise DeliveryError(f"{engine.name} sent no whole acknowledgment")
    return received


def _check(engine: Hl7, answer: bytes, sent_control_id: str) -> None:
    """The texts of an acknowledgment may quote the message, and with it the patient: only its code is repeated."""
    segments = answer.split(_START)[-1].split(_END)[0].decode("utf-8", "replace").split("\r")
    acknowledged = next((segment for segment in segments if segment.startswith("MSA")), "")
    _, code, acknowledged_id, *_ = [*acknowledged.split(acknowledged[3:4] or "|"), "", "", ""]
    if acknowledged_id != sent_control_id:
        raise DeliveryError(f"{engine.name} acknowledged another message")
    if code not in _ACCEPTED:
        raise DeliveryError(f"{engine.name} answered {code[:2] or 'nothing'} ({_REJECTED.get(code, 'no known code')})")
