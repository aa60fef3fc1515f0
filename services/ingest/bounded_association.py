"""The acceptor's end of an association with every wait and every buffer bounded, whatever the peer does.

By itself pynetdicom reads a PDU of any length into memory, waits for its last byte for ever, gathers a data set of any
length in memory, queues requests without end, and starts two threads for every connection. Here a PDU is as long as
was announced and has a time to come in, a data set goes to a nameless file, and what breaks a bound is aborted.
"""

from __future__ import annotations

import errno
import logging
import mmap
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_EVENT_REPORT_RQ
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from services.store.disk_room import FULL_ERRNOS, no_room

log = logging.getLogger(__name__)

_HEADER_BYTES = 6  # PDU type, a reserved byte, the length of the rest (PS3.8 section 9.3)
_PDU_TYPES = range(0x01, 0x08)
_ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"  # A-ABORT by the provider, invalid parameter (PS3.8 9.3.8)
_RECEIVED_AT_ONCE_BYTES = 1 << 16
_IN_MEMORY_BYTES = 1 << 20  # of a data set; a slice of CT is smaller
_MESSAGE_MAX_BYTES = 1 << 20  # of anything but an instance: a command set, a report of storage commitment
_UNANSWERED_MAX = 8  # requests at once; one is negotiated (PS3.7 D.3.3.3)
_LEAST_BYTES_PER_S = 1024
_SILENT_MAX = 200
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one listener allows its peers.

    Attributes:
        timeout_s: for one PDU to come in whole, for one to be taken by the peer; after this a message that comes in at
            less than 1 KiB/s is given up.
        pdu_bytes: longest PDU, as announced.
        instance_bytes: longest data set of a C-STORE.
        associations: at once; beside them, connections on which nobody has asked for an association yet.
        directory: where data sets lie while they arrive.
    """

    timeout_s: float
    pdu_bytes: int
    instance_bytes: int
    associations: int
    directory: Path


class ArrivingDataSet:
    """A data set as it comes in fragments: the first MiB in memory, a longer one in a file that has no name, so that
    nothing is left of it when the association or this process ends. It stands in for pynetdicom's temporary file."""

    name = ""

    def __init__(self, directory: Path) -> None:
        self.content: BinaryIO = BytesIO()
        self._directory = directory
        self._full: OSError | None = None

    @property
    def file(self) -> ArrivingDataSet:
        return self

    def write(self, fragment: bytes) -> None:
        """A disk that is full is told of when the instance is complete: until then the peer would not listen."""
        try:
            if isinstance(self.content, BytesIO) and self.content.tell() + len(fragment) > _IN_MEMORY_BYTES:
                begun = self.content.getbuffer()
                self.content = cast(BinaryIO, TemporaryFile(dir=self._directory))  # noqa: SIM115  closed with the data set
                self.content.write(begun)
            if self._full is None:
                self.content.write(fragment)
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            self._full = error

    def flush(self) -> None:
        """Nobody reads before the end."""

    def whole(self) -> BinaryIO:
        """The content from its beginning.

        Raises:
            StorageFull: the disk had no room for it.
        """
        try:
            self.content.flush()
        except OSError as error:
            self._full = error
        if self._full is not None:
            raise no_room() from self._full
        self.content.seek(0)
        return self.content

    def close(self) -> None:
        self.content.close()


def view(content: BinaryIO) -> memoryview:
    """The bytes of a data set without reading a file into memory."""
    if isinstance(content, BytesIO):
        return content.getbuffer()
    return memoryview(mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ))


class BoundedServer(ThreadedAssociationServer):
    """Accepts connections, and of those on which nobody has asked for an association, not more than 200 at once: then
    the one that has been silent for longest makes room."""

    request_queue_size = 256

    def __init__(self, *arguments: Any, bounds: Bounds, **keywords: Any) -> None:
        self.bounds = bounds
        self.opened: list[Association] = []
        self.opened_lock = threading.Lock()
        super().__init__(*arguments, **keywords | {"request_handler": _BoundedHandler})

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self.opened_lock:
            self.opened = [one for one in self.opened if one.is_alive() or one.ident is None]
            if len(self.opened) >= self.bounds.associations + _SILENT_MAX:
                silent = next((one for one in self.opened if not one.is_established), None)
                if silent is not None:
                    self.opened.remove(silent)
                    cast(_BoundedSocket, silent.dul.socket).hang_up()
        return True


class _BoundedHandler(RequestHandler):
    def _create_association(self) -> Association:
        association = super()._create_association()
        server = cast(BoundedServer, self.server)
        association.dul = _BoundedDul(association)
        association.dimse = _BoundedDimse(association, server.bounds)
        association.set_socket(_BoundedSocket(association, cast(socket.socket, self.request), server.bounds))
        association.acse_timeout, association.network_timeout = self.ae.acse_timeout, self.ae.network_timeout
        with server.opened_lock:
            server.opened.append(association)
        return association


class _BoundedSocket(AssociationSocket):
    def __init__(self, association: Association, client_socket: socket.socket, bounds: Bounds) -> None:
        super().__init__(association, client_socket=client_socket)
        self._bounds = bounds
        self._pdu_due: float | None = None

    def recv(self, nr_bytes: int) -> bytearray:
        """First the header of a PDU, then, asked for by its length, the rest; both before the PDU is due.

        Raises:
            OSError: too long, or too late.
        """
        is_header = self._pdu_due is None
        due = time.monotonic() + self._bounds.timeout_s if self._pdu_due is None else self._pdu_due
        self._pdu_due = None
        if not is_header and nr_bytes > self._bounds.pdu_bytes:
            self.refuse(f"a PDU of {nr_bytes} bytes, {self._bounds.pdu_bytes} were announced")
            raise ConnectionAbortedError(errno.ECONNABORTED, "the PDU is too long")
        received = self._received(nr_bytes, due)
        if is_header and len(received) == _HEADER_BYTES and received[0] in _PDU_TYPES:
            self._pdu_due = due
        return received

    def _received(self, count: int, due: float) -> bytearray:
        received = bytearray()
        connection = cast(socket.socket, self.socket)
        while len(received) < count:
            left_s = due - time.monotonic()
            if left_s <= 0:
                log.warning("cut off %s: a PDU took too long to come in", self._peer)
                raise TimeoutError(errno.ETIMEDOUT, "the PDU took too long")
            connection.settimeout(left_s)
            piece = connection.recv(min(count - len(received), _RECEIVED_AT_ONCE_BYTES))
            if not piece:  # the peer has hung up
                cast(_BoundedDimse, self.assoc.dimse).break_off()
                break
            received += piece
        return received

    def send(self, bytestream: bytes) -> None:
        if self.socket is not None:
            with suppress(OSError):  # another thread has closed it, as pynetdicom's own `send` will notice
                self.socket.settimeout(self._bounds.timeout_s)
        super().send(bytestream)

    def close(self) -> None:
        super().close()
        cast(_BoundedDimse, self.assoc.dimse).break_off()

    def refuse(self, why: str) -> None:
        """Abort the association at once. Call from the thread that reads and sends."""
        log.warning("aborted the association with %s: %s", self._peer, why)
        self.send(_ABORT)
        self.close()

    def hang_up(self) -> None:
        """From any thread: the reading one notices."""
        log.warning("hung up on %s, silent for longest of too many connections", self._peer)
        self._shutdown_socket()

    @property
    def _peer(self) -> str:
        return str(self.assoc.requestor.address)


class _BoundedDul(DULServiceProvider):
    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """As pynetdicom's, without waiting for a peer that has hung up."""
        due = None if timeout is None else time.monotonic() + timeout
        while wait and self.is_alive() and (due is None or time.monotonic() < due):
            if (primitive := super().receive_pdu(True, _LOOK_S)) is not None:
                return primitive
        return super().receive_pdu(False)


class _BoundedDimse(DIMSEServiceProvider):
    def __init__(self, association: Association, bounds: Bounds) -> None:
        super().__init__(association)
        self._bounds = bounds
        self._bytes = 0
        self._began = 0.0
        self._refused = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """The fragments of a P-DATA one by one: a PDU may hold the end of one message and the next (PS3.8 E.2)."""
        for fragment in primitive.presentation_data_value_list:
            if self._refused:
                return
            if self.message is None:
                self._bytes, self._began = 0, time.monotonic()
            self._bytes += len(fragment[1])
            if (why := self._breaks_a_bound()) is not None:
                self._refused = True
                self.message = None
                cast(_BoundedSocket, self.dul.socket).refuse(why)
                return
            one = P_DATA()
            one.presentation_data_value_list.append(fragment)
            super().receive_primitive(one)
            if isinstance(self.message, C_STORE_RQ) and self.message._data_set_file is None:
                self.message._data_set_file = cast(Any, ArrivingDataSet(self._bounds.directory))

    def break_off(self) -> None:
        """Nothing of the message that is coming in will come any more. Call from the thread that reads."""
        message, self.message = self.message, None
        if message is not None and message._data_set_file is not None:
            message._data_set_file.close()

    def _breaks_a_bound(self) -> str | None:
        is_instance = isinstance(self.message, C_STORE_RQ)
        longest = self._bounds.instance_bytes if is_instance else _MESSAGE_MAX_BYTES
        seconds = time.monotonic() - self._began
        if self._bytes > longest:
            return f"a message of more than {longest} bytes"
        if seconds > self._bounds.timeout_s and self._bytes < seconds * _LEAST_BYTES_PER_S:
            return f"a message at less than {_LEAST_BYTES_PER_S} bytes per second"
        if self.msg_queue.qsize() > _UNANSWERED_MAX:
            return f"more than {_UNANSWERED_MAX} requests before an answer"
        # Each of these reports is answered in a thread of its own.
        if isinstance(self.message, N_EVENT_REPORT_RQ) and threading.active_count() > self._threads_max:
            return "too many reports at once"
        return None

    @property
    def _threads_max(self) -> int:
        return 3 * (self._bounds.associations + _SILENT_MAX)
