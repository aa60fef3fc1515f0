"""The acceptor's end of an association with every wait and every buffer bounded, whatever the peer does, and without
polling: a thread runs when there is something to do.

By itself pynetdicom reads a PDU of any length into memory, waits for its last byte for ever, gathers a data set of any
length in memory, queues requests without end, starts two threads for every connection, and looks for news a thousand
times a second in each. Here a PDU is as long as was announced and has a time to come in, a data set goes to a nameless
file, and what breaks a bound is aborted. Plain C-STORE requests do not go through pynetdicom's layers (`store_reader`).
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_EVENT_REPORT_RQ
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from services.dicom.headers import MALFORMED
from services.ingest.arriving_data_set import ArrivingDataSet
from services.ingest.bounded_reading import BoundedReading
from services.ingest.bounds import BoundedMessage, Bounds
from services.ingest.handover import Handover
from services.ingest.proposed_contexts import with_refusals, without_unsupported
from services.ingest.store_reader import StoreReader
from services.ingest.store_shortcut import AssociatedSender, StoreShortcut

log = logging.getLogger(__name__)

_HEADER_BYTES = 6  # PDU type, a reserved byte, the length of the rest (PS3.8 section 9.3)
_PDU_TYPES = range(0x01, 0x08)
_ASSOCIATE_RQ = b"\x01"
_ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x06"  # A-ABORT by the provider, invalid parameter (PS3.8 9.3.8)
_UNANSWERED_MAX = 8  # requests at once; one is negotiated (PS3.7 D.3.3.3)
_SILENT_MAX = 200
_LOOK_S = 0.2


class BoundedServer(ThreadedAssociationServer):
    """Accepts connections, and of those on which nobody has asked for an association, not more than 200 at once: then
    the one that has been silent for longest makes room."""

    request_queue_size = 256

    def __init__(self, *arguments: Any, bounds: Bounds, shortcut: StoreShortcut | None = None, **keywords: Any) -> None:
        """Without a `shortcut` every C-STORE takes pynetdicom's way, to the handler of its event."""
        self.bounds = bounds
        self.shortcut = shortcut
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
                    cast(_BoundedSocket, silent.dul.socket).hang_up("silent for longest of too many connections")
        return True

    def hang_up_on_all(self) -> None:
        """Of those that are still there, none is waited for any longer."""
        with self.opened_lock:
            left = [one for one in self.opened if one.is_alive()]
        for association in left:
            cast(_BoundedSocket, association.dul.socket).hang_up("the listener ends")


class _BoundedHandler(RequestHandler):
    def _create_association(self) -> Association:
        association = super()._create_association()
        server = cast(BoundedServer, self.server)
        dul = association.dul = _BoundedDul(association)
        dimse = association.dimse = _BoundedDimse(association, server.bounds, dul.has_news)
        connection = _BoundedSocket(association, cast(socket.socket, self.request), server.bounds)
        association.set_socket(connection)
        if server.shortcut is not None:
            sender = AssociatedSender(association, server.shortcut.in_hand)
            if server.shortcut.receivers is not None:
                dul.handover = Handover(
                    association, sender, connection, dimse, server.shortcut, server.bounds.directory, dul.is_called
                )
            dul.stores = StoreReader(
                sender,
                connection,
                dimse.arriving,
                dimse,
                partial(server.shortcut.answer, association),
                partial(ArrivingDataSet, server.bounds.directory),
                server.bounds.pdu_bytes,
            )
        association.acse_timeout, association.network_timeout = self.ae.acse_timeout, self.ae.network_timeout
        with server.opened_lock:
            server.opened.append(association)
        return association


class _BoundedSocket(AssociationSocket):
    def __init__(self, association: Association, client_socket: socket.socket, bounds: Bounds) -> None:
        super().__init__(association, client_socket=client_socket)
        self._bounds = bounds
        self._pdu_due: float | None = None
        self.reading = BoundedReading(client_socket, bounds.timeout_s)

    @property
    def ready(self) -> bool:
        """Whether there is something to read, or the end of the connection."""
        return self.is_ahead or super().ready

    @property
    def is_ahead(self) -> bool:
        """Whether there is something to read that the kernel does not know of."""
        return self.socket is not None and self._is_connected and self.reading.is_ahead

    def recv(self, nr_bytes: int) -> bytearray:
        """First the header of a PDU, then, asked for by its length, the rest; both before the PDU is due.

        Raises:
            OSError: too long, or too late.
        """
        is_header = self._pdu_due is None
        due = self.next_due() if self._pdu_due is None else self._pdu_due
        self._pdu_due = None
        if not is_header and nr_bytes > self._bounds.pdu_bytes:
            self.refuse(f"a PDU of {nr_bytes} bytes, {self._bounds.pdu_bytes} were announced")
            raise ConnectionAbortedError(errno.ECONNABORTED, "the PDU is too long")
        received = bytearray(nr_bytes)
        with memoryview(received) as room:
            got = self.receive(room, nr_bytes, due)
        if is_header and got == _HEADER_BYTES and received[0] in _PDU_TYPES:
            self._pdu_due = due
        return received[:got]

    def next_due(self) -> float:
        """When a PDU that begins now has to be here."""
        return self.reading.next_due()

    def receive(self, room: memoryview, least: int, due: float) -> int:
        """Bytes received: fewer than `least` where the peer has hung up, more where they are there already.

        Raises:
            OSError: too late.
        """
        try:
            got = self.reading.receive(room, least, due)
        except TimeoutError:
            log.warning("cut off %s: a PDU took too long to come in", self._peer)
            raise
        if got < least:  # the peer has hung up
            self._break_off()
        return got

    def put_back(self, content: bytes) -> None:
        self.reading.put_back(content)

    def send(self, bytestream: bytes) -> None:
        if self.socket is not None and not self.reading.kernel_waits:
            with suppress(OSError):  # another thread has closed it, as pynetdicom's own `send` will notice
                self.socket.settimeout(self._bounds.timeout_s)
        super().send(bytestream)

    def close(self) -> None:
        super().close()
        self._break_off()

    def refuse(self, why: str) -> None:
        """Abort the association at once. Call from the thread that reads and sends."""
        log.warning("aborted the association with %s: %s", self._peer, why)
        self.send(_ABORT)
        self.close()

    def hang_up(self, why: str) -> None:
        """From any thread: the reading one notices."""
        log.warning("hung up on %s: %s", self._peer, why)
        self._shutdown_socket()

    def _break_off(self) -> None:
        cast(_BoundedDimse, self.assoc.dimse).break_off()
        if (stores := cast(_BoundedDul, self.assoc.dul).stores) is not None:
            stores.break_off()

    @property
    def _peer(self) -> str:
        return str(self.assoc.requestor.address)


class _Announced(queue.Queue[Any]):
    """A queue that says when something is put into it."""

    def __init__(self, announce: Callable[[], None]) -> None:
        super().__init__()
        self._announce = announce

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._announce()


class _BoundedDul(DULServiceProvider):
    """Waits for the peer and for what is to be sent to it, both at once."""

    def __init__(self, association: Association) -> None:
        super().__init__(association)
        self.stores: StoreReader | None = None
        self.handover: Handover | None = None
        self.has_news = threading.Event()  # for the association's own thread
        self.to_user_queue = _Announced(self.has_news.set)
        self.to_provider_queue = _Announced(self._wake)
        self._run_loop_delay = 0.0  # it waits in `_is_transport_event`
        self._refusals = b""  # of presentation contexts that pynetdicom is not bothered with
        self._waker: int | None = None
        self._waker_lock = threading.Lock()

    def _decode_pdu(self, bytestream: bytearray) -> Any:
        if bytestream[:1] == _ASSOCIATE_RQ:
            supported = {str(one.abstract_syntax).encode() for one in self.assoc.acceptor.supported_contexts}
            request, self._refusals = without_unsupported(bytes(bytestream), supported)
            bytestream = bytearray(request)
        return super()._decode_pdu(bytestream)

    def _send(self, pdu: Any) -> None:
        if self._refusals and isinstance(pdu, A_ASSOCIATE_AC) and self.socket is not None:
            self.socket.send(with_refusals(pdu.encode(), self._refusals))
            evt.trigger(self.assoc, evt.EVT_PDU_SENT, {"pdu": pdu})
        else:
            super()._send(pdu)

    def run_reactor(self) -> None:
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            super().run_reactor()
        except InvalidEventError as error:  # an answer that was under way when the association was aborted
            log.warning("ended the association with %s: %s", self.assoc.requestor.address, error)
            cast(_BoundedSocket, self.socket).close()
        finally:
            with self._waker_lock:
                os.close(self._waker)
                self._waker = None
            self.has_news.set()

    def kill_dul(self) -> None:
        super().kill_dul()
        self._wake()

    def stop_dul(self) -> bool:
        """As pynetdicom's, without looking for the thread's end again and again."""
        if self.state_machine.current_state != "Sta1":
            return False
        self.kill_dul()
        if self.ident is not None and threading.current_thread() is not self:
            self.join()
        return True

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """As pynetdicom's, without waiting for a peer that has hung up."""
        due = None if timeout is None else time.monotonic() + timeout
        while wait and self.is_alive() and (due is None or time.monotonic() < due):
            if (primitive := super().receive_pdu(True, _LOOK_S)) is not None:
                return primitive
        return super().receive_pdu(False)

    def _is_transport_event(self) -> bool:
        """Read a PDU, having waited for it; False where something else is to be looked at first."""
        if self.state_machine.current_state == "Sta13":  # what the peer still says is read, and then hung up
            return super()._is_transport_event()
        if self.event_queue.queue:  # the reactor has something to do
            return False
        while self._is_readable():
            if not self._has_read_store():
                return super()._is_transport_event()
            self._idle_timer.restart()
            if self.is_called():
                return True
        return False

    def _has_read_store(self) -> bool:
        """Whether there was a part of a C-STORE: the rest of its data set, or as much as is to be read now."""
        if self.stores is None or self.state_machine.current_state != "Sta6":
            return False
        self._idle_timer.stop()  # storing an instance is not silence
        connection = cast(_BoundedSocket, self.socket)
        try:
            if self.handover is not None and self.handover.took_place(self.stores):
                return True
            while self.stores.read_pdu(connection.next_due()):
                if not self.stores.is_receiving or self.is_called():
                    return True
        except OSError as error:
            log.warning("the connection of %s broke off: %s", self.assoc.requestor.address, error)
            self.event_queue.put("Evt17")  # transport connection closed (PS3.8 9.2)
            return True
        return False

    def is_called(self) -> bool:
        """Whether the reactor has something else to do. To look whether a queue holds something needs no lock."""
        return self._kill_thread or bool(self.to_provider_queue.queue) or bool(self.event_queue.queue)

    def _is_readable(self) -> bool:
        """Wait for the peer, for something to send, or for a while."""
        connection = cast(_BoundedSocket, self.socket)
        if connection.is_ahead or (self.stores is not None and self.stores.is_receiving):
            return True
        waiting = select.poll()
        assert self._waker is not None
        waiting.register(self._waker, select.POLLIN)
        if connection.socket is not None and connection.socket.fileno() >= 0:
            waiting.register(connection.socket, select.POLLIN)
        happened = waiting.poll(_LOOK_S * 1000)
        if not happened and self.stores is not None:
            self.stores.rest()
        if any(descriptor == self._waker for descriptor, _ in happened):
            with suppress(BlockingIOError):
                os.eventfd_read(self._waker)
            return False
        return bool(happened)

    def _wake(self) -> None:
        with self._waker_lock:
            if self._waker is not None:
                os.eventfd_write(self._waker, 1)


class _BoundedDimse(DIMSEServiceProvider):
    def __init__(self, association: Association, bounds: Bounds, has_news: threading.Event) -> None:
        super().__init__(association)
        self.arriving = BoundedMessage(bounds)
        self.msg_queue = _Announced(has_news.set)
        self._has_news = has_news
        self._bounds = bounds
        self._refused = False

    def get_msg(self, block: bool = False) -> Any:
        """As pynetdicom's; where its loop only looks, it waits for news: a message, a release, the end."""
        if not block:
            self._has_news.wait(_LOOK_S)
            self._has_news.clear()
        return super().get_msg(block)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """The fragments of a P-DATA one by one: a PDU may hold the end of one message and the next (PS3.8 E.2)."""
        for fragment in primitive.presentation_data_value_list:
            if self._refused:
                return
            if self.message is None:
                self.arriving.begin()
            if (why := self._breaks_a_bound(len(fragment[1]))) is not None:
                self._abort(why)
                return
            one = P_DATA()
            one.presentation_data_value_list.append(fragment)
            try:
                super().receive_primitive(one)
            except MALFORMED as error:  # of a command; the thread would end with it
                self._abort(f"a message that cannot be read ({type(error).__name__})")
                return
            if isinstance(self.message, C_STORE_RQ) and self.message._data_set_file is None:
                self.message._data_set_file = cast(Any, ArrivingDataSet(self._bounds.directory))

    def is_receiving(self) -> bool:
        return self.message is not None

    def continue_with(self, data_set: ArrivingDataSet) -> None:
        """The message that it has the command of has this much of its data set already."""
        if isinstance(self.message, C_STORE_RQ):
            self.message._data_set_file = cast(Any, data_set)
            self.arriving.grow(data_set.length, is_instance=True)
        else:
            data_set.close()

    def break_off(self) -> None:
        """Nothing of the message that is coming in will come any more. Call from the thread that reads."""
        message, self.message = self.message, None
        if message is not None and message._data_set_file is not None:
            message._data_set_file.close()

    def _abort(self, why: str) -> None:
        self._refused = True
        self.message = None
        cast(_BoundedSocket, self.dul.socket).refuse(why)

    def _breaks_a_bound(self, count: int) -> str | None:
        if (why := self.arriving.grow(count, is_instance=isinstance(self.message, C_STORE_RQ))) is not None:
            return why
        if self.msg_queue.qsize() > _UNANSWERED_MAX:
            return f"more than {_UNANSWERED_MAX} requests before an answer"
        # Each of these reports is answered in a thread of its own.
        if isinstance(self.message, N_EVENT_REPORT_RQ) and threading.active_count() > self._threads_max:
            return "too many reports at once"
        return None

    @property
    def _threads_max(self) -> int:
        return 3 * (self._bounds.associations + _SILENT_MAX)
