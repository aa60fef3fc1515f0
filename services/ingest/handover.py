"""An association in the hands of a process that receives for the listener, and what comes of it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import P_DATA

from services.ingest.arriving_data_set import ArrivingDataSet
from services.ingest.bounded_reading import BoundedReading
from services.ingest.identifiers import Identifiers
from services.ingest.receiver import WrittenInstance
from services.ingest.receiver_channel import Message
from services.ingest.receiver_pool import Receiver
from services.ingest.store_message import StoreRequest, store_response
from services.ingest.store_reader import ReceivedInstance, StoreReader, Usual, answer_whatever_happens
from services.ingest.store_shortcut import AssociatedSender, StoreShortcut


class Connection(Protocol):
    """The listener's end of the transport."""

    socket: socket.socket | None
    reading: BoundedReading

    @property
    def is_ahead(self) -> bool:
        """Whether there is something to read that the kernel does not know of."""

    def send(self, bytestream: bytes) -> None: ...

    def refuse(self, why: str) -> None:
        """Abort the association at once."""


class Handover:
    """Of one association to a process of the pool, for as long as C-STOREs come in."""

    def __init__(
        self,
        association: Association,
        sender: AssociatedSender,
        connection: Connection,
        usual: Usual,
        shortcut: StoreShortcut,
        directory: Path,
        is_called: Callable[[], bool],
    ) -> None:
        """
        Args:
            usual: pynetdicom's way, for what a receiver gives back.
            directory: where data sets lie while they arrive.
            is_called: whether the listener wants the association back.
        """
        assert shortcut.receivers is not None
        self._association = association
        self._sender = sender
        self._connection = connection
        self._usual = usual
        self._shortcut = shortcut
        self._receivers = shortcut.receivers
        self._directory = directory
        self._is_called = is_called

    def took_place(self, stores: StoreReader) -> bool:
        """False where none of them is free, or the free one is gone, or the association, which `stores` reads from, is
        nothing for them: it has yet to send a C-STORE, or is in the middle of a message.

        Raises:
            OSError: the connection broke off.
        """
        connection, peer = self._connection, self._connection.socket
        if not stores.took_last or connection.is_ahead or not connection.reading.kernel_waits or peer is None:
            return False
        if not self._sender.is_established or (receiver := self._receivers.take()) is None:
            return False
        try:
            own = tempfile.mkdtemp(dir=self._directory)  # processes that make files in the same one wait for each other
        except OSError:  # no room: the listener tells the peer
            self._receivers.give_back(receiver)
            return False
        try:
            return self._was_received_by(receiver, peer, own, stores)
        finally:
            with suppress(OSError):  # not empty: the process is gone, and what it was writing is removed with time
                os.rmdir(own)

    def _was_received_by(
        self, receiver: Receiver, peer: socket.socket, own_directory: str, stores: StoreReader
    ) -> bool:
        try:
            is_taken = receiver.takes(peer, self._sender.syntaxes, own_directory)
        except OSError:  # another thread has closed the connection
            self._receivers.give_back(receiver)
            raise
        if not is_taken:
            self._receivers.lose(receiver)
            return False
        self._sender.begin()
        try:
            back = receiver.answer_all(self._answer)
        except BaseException:
            self._receivers.lose(receiver)
            raise
        if back is None:
            self._receivers.lose(receiver)
            self._connection.refuse("the process that received from it is gone")
            return True
        self._receivers.give_back(receiver)
        self._take_back(back, stores)
        return True

    def _answer(self, message: Message) -> bool:
        """Whether the process may go on with the association."""
        said = message.said
        request, context_id, syntax = StoreRequest(*said["request"]), said["context_id"], UID(said["syntax"])
        if said["kind"] == "written":
            named = Identifiers(request.sop_class_uid, request.sop_instance_uid, said["study"], said["series"])
            written = WrittenInstance(said["path"], named, syntax)
            answer = answer_whatever_happens(partial(self._shortcut.answer_written, self._association, written))
        else:
            data_set = ArrivingDataSet.passed_on(self._directory, message.descriptor, said["data_set_bytes"])
            received = ReceivedInstance(request, context_id, syntax, data_set)
            answer = answer_whatever_happens(partial(self._shortcut.answer, self._association, received))
            data_set.close()
        if self._sender.is_established:
            self._connection.send(store_response(request, context_id, *answer))
        return not (self._is_called() or self._shortcut.in_hand.is_ending)

    def _take_back(self, back: Message, stores: StoreReader) -> None:
        if why := back.said["refused"]:
            self._connection.refuse(why)
            return
        if why := back.said["broke_off"]:
            raise ConnectionError(why)
        content = memoryview(back.content)
        for context_id, length in back.said["pieces"]:
            if context_id is None:
                self._usual.continue_with(ArrivingDataSet.passed_on(self._directory, back.descriptor, length))
                continue
            primitive = P_DATA()
            primitive.presentation_data_value_list.append((context_id, bytes(content[:length])))
            self._usual.receive_primitive(primitive)
            content = content[length:]
        self._connection.reading.resume(bytes(content))
        stores.took_last = back.said["took_last"]
        if not back.said["pieces"]:
            self._sender.answered()
