"""A DICOM peer that says what it likes: PDUs as bytes over a socket of its own (PS3.8 section 9.3)."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

ACCEPT, REJECT, DATA, ABORT = b"\x02", b"\x03", b"\x04", b"\x07"
ABORT_PDU = b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00"
CONTEXT_ID = 1


class HostilePeer:
    """A connection; what it sends is the test's to choose."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def receive_pdu(self) -> bytes:
        """The next one, whole; empty at the end of the connection."""
        try:
            header = self._receive(6)
            return header + self._receive(struct.unpack(">L", header[2:])[0]) if header else b""
        except ConnectionError:
            return b""

    def associate(self, calling_ae_title: str = "PACS") -> bytes:
        """What was answered."""
        self.send(association_request(calling_ae_title))
        return self.receive_pdu()

    def seconds_until_gone(self, at_most_s: float) -> float:
        """Fails where the connection is still there after this."""
        began = time.monotonic()
        self.socket.settimeout(at_most_s)
        try:
            while self.socket.recv(1 << 16):
                assert time.monotonic() - began < at_most_s, "still connected"
        except ConnectionError:
            pass
        return time.monotonic() - began

    def close(self) -> None:
        self.socket.close()

    def _receive(self, count: int) -> bytes:
        received = b""
        while len(received) < count and (piece := self.socket.recv(count - len(received))):
            received += piece
        return received


def association_request(calling_ae_title: str = "PACS") -> bytes:
    request = A_ASSOCIATE()
    request.application_context_name = UID("1.2.840.10008.3.1.1.1")
    request.calling_ae_title, request.called_ae_title = calling_ae_title, "EMBOLENS"
    contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian), build_context("1.2.840.10008.1.1")]
    for number, context in enumerate(contexts):
        context.context_id = CONTEXT_ID + 2 * number
    request.presentation_context_definition_list = contexts
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = 16382
    implementation.implementation_class_uid = UID("1.2.3.4")
    request.user_information = [longest, implementation]
    return A_ASSOCIATE_RQ(request).encode()


def pdu(kind: int, content: bytes, *, claimed: int | None = None) -> bytes:
    return struct.pack(">BBL", kind, 0, len(content) if claimed is None else claimed) + content


def fragment(data: bytes, *, is_command: bool = False, is_last: bool = False, context_id: int = CONTEXT_ID) -> bytes:
    """One PDV (PS3.8 9.3.5.1)."""
    return struct.pack(">LBB", len(data) + 2, context_id, is_command | is_last << 1) + data


def store_command(instance: Dataset) -> bytes:
    """The P-DATA-TF with the command of a C-STORE; its data set has to follow."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    request.DataSet = BytesIO(b"follows")
    return pdu(4, fragment(_command(C_STORE_RQ(), request), is_command=True, is_last=True))


def echo_request() -> bytes:
    request = C_ECHO()
    request.MessageID, request.AffectedSOPClassUID = 1, UID("1.2.840.10008.1.1")
    command = _command(C_ECHO_RQ(), request)
    return pdu(4, fragment(command, is_command=True, is_last=True, context_id=CONTEXT_ID + 2))


def data_set_of(instance: Dataset) -> bytes:
    encoded = encode(instance, False, True)
    assert encoded is not None
    return encoded


def one_byte_pdus(data: bytes) -> Iterator[bytes]:
    """A PDU for every byte, the last one marked as such."""
    for at in range(len(data)):
        yield pdu(4, fragment(data[at : at + 1], is_last=at == len(data) - 1))


def _command(message: DIMSEMessage, request: object) -> bytes:
    message.primitive_to_message(request)
    encoded = encode(message.command_set, True, True)
    assert encoded is not None
    return encoded
