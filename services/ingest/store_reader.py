"""C-STORE straight off the connection: what pynetdicom's layers would do with a P-DATA-TF, without them.

Whatever is not part of a plain C-STORE request - another command, an odd way of writing this one, a PDU that is not
well formed - is handed to pynetdicom with everything of its message that was read already, and takes the usual way.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from pydicom.uid import UID
from pynetdicom.pdu_primitives import P_DATA

from services.dicom.storage import CT_STORAGE_SOP_CLASSES
from services.ingest.arriving_data_set import ArrivingDataSet
from services.ingest.store_message import StoreRequest, parse_store_request, store_response
from services.process_log import where_raised

log = logging.getLogger(__name__)

PDU_HEADER = struct.Struct(">BBL")  # type, a reserved byte, the length of the rest (PS3.8 section 9.3)
_FRAGMENT_HEADER = struct.Struct(">LBB")  # length of the rest, presentation context, control (PS3.8 9.3.5.1, E.2)
_HEADERS_BYTES = PDU_HEADER.size + _FRAGMENT_HEADER.size
_FIRST_BYTES = 1024  # of a message: its command and the headers behind it are less
_P_DATA_TF = 0x04
_IS_COMMAND, _IS_LAST = 1, 2
TAKEN_AT_ONCE = frozenset(CT_STORAGE_SOP_CLASSES.values())
RESPONSE_MAX_BYTES = 1024  # four elements, two UIDs and 64 characters are less
_FAILED_UNEXPECTEDLY = 0xC211


_Answer = TypeVar("_Answer")


class StoreAnswer(NamedTuple):
    status: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """What a C-STORE request asks to be kept, complete; the response goes back on the same presentation context."""

    request: StoreRequest
    context_id: int
    transfer_syntax_uid: UID
    data_set: ArrivingDataSet


class Sender(Protocol):
    """The association, as far as a C-STORE has to know it."""

    @property
    def is_established(self) -> bool: ...

    def transfer_syntax(self, context_id: int) -> UID | None:
        """Of a presentation context on which plain C-STOREs of CT are taken; None of any other."""

    def begin(self) -> None:
        """A message has begun to come in, or goes on."""

    def answered(self) -> None:
        """It has its answer."""


class Connection(Protocol):
    """The transport, with every wait bounded; raises OSError."""

    def receive(self, room: memoryview, least: int, due: float) -> int:
        """Bytes received: fewer than `least` where the peer has hung up, more where they are there already."""

    def put_back(self, content: bytes) -> None:
        """To be received again, before what comes after it."""

    def send(self, bytestream: bytes) -> None: ...

    def refuse(self, why: str) -> None: ...


class ArrivingMessage(Protocol):
    """How much of the message that is coming in has come, whoever reads it."""

    def begin(self) -> None: ...

    def grow(self, count: int, *, is_instance: bool) -> str | None:
        """Which bound it breaks with so many bytes more."""


class Usual(Protocol):
    """pynetdicom's way."""

    def is_receiving(self) -> bool:
        """Whether it is in the middle of a message."""

    def receive_primitive(self, primitive: P_DATA) -> None: ...

    def continue_with(self, data_set: ArrivingDataSet) -> None:
        """The message that it has the command of has this much of its data set already."""


class _Fragment(NamedTuple):
    """One PDV; `control` is the message control header."""

    context_id: int
    control: int
    data: memoryview


class StoreReader:
    """Of one association. Call from the thread that reads and sends.

    Where `answer` returns None, somebody else sends the response.
    """

    def __init__(
        self,
        sender: Sender,
        connection: Connection,
        message: ArrivingMessage,
        usual: Usual,
        answer: Callable[[ReceivedInstance], StoreAnswer | None],
        new_data_set: Callable[[bytearray], ArrivingDataSet],
        longest_pdu: int,
    ) -> None:
        self._sender = sender
        self._connection = connection
        self._message = message
        self._usual = usual
        self._answer = answer
        self._new_data_set = new_data_set
        self._longest_pdu = longest_pdu
        self.took_last = False  # the last message was a plain C-STORE, and nothing has come of another one
        self._refused = False
        self._memory = bytearray()
        self._command: list[_Fragment] = []
        self._context_id = 0
        self._request: StoreRequest | None = None
        self._data_set: ArrivingDataSet | None = None

    @property
    def is_receiving(self) -> bool:
        """Whether a data set is coming in: then there is nothing to do but to read on."""
        return self._data_set is not None

    @property
    def is_between_messages(self) -> bool:
        return self._data_set is None and not self._command

    def read_pdu(self, due: float) -> bool:
        """Take the next PDU; False where it is pynetdicom's to read: then it has been put back.

        Raises:
            OSError: the connection broke off, or the PDU was not there in time.
        """
        if self._usual.is_receiving() or not self._sender.is_established:
            return False
        head = bytearray(_FIRST_BYTES if self._data_set is None else _HEADERS_BYTES)
        got = self._receive(head, 0, PDU_HEADER.size, due)
        kind, _, length = PDU_HEADER.unpack_from(head)
        if got < PDU_HEADER.size or kind != _P_DATA_TF or not _FRAGMENT_HEADER.size <= length <= self._longest_pdu:
            self._hand_over()
            self._connection.put_back(bytes(head[:got]))
            return False
        if got < _HEADERS_BYTES:
            got += self._receive(head, got, _HEADERS_BYTES - got, due)
        size, context_id, control = _FRAGMENT_HEADER.unpack_from(head, PDU_HEADER.size)
        if self._data_set is None:
            self.took_last = False
            self._sender.begin()
        elif size == length - 4 and context_id == self._context_id and not control & _IS_COMMAND:
            return self._took_next(size - 2, due, is_last=bool(control & _IS_LAST))
        self._connection.put_back(bytes(head[PDU_HEADER.size : got]))
        content = bytearray(length)
        got = self._receive(content, 0, length, due)
        return self._took(bytes(head[: PDU_HEADER.size]), bytes(content[:got]), length)

    def rest(self) -> None:
        """Nothing has come for a while: what the data sets lay in is given back."""
        if self._data_set is None:
            self._memory = bytearray()

    def break_off(self) -> None:
        """Nothing of the message that is coming in will come any more."""
        if self._data_set is not None:
            self._data_set.close()
        self._forget_message()

    def _receive(self, into: bytearray, at: int, least: int, due: float) -> int:
        with memoryview(into)[at:] as room:
            return self._connection.receive(room, least, due)

    def _took_next(self, count: int, due: float, *, is_last: bool) -> bool:
        """The next fragment of a data set, alone in its PDU, and the headers behind it as far as they are there."""
        assert self._data_set is not None
        with self._data_set.room_for(count + (0 if is_last else _HEADERS_BYTES)) as room:
            got = self._connection.receive(room, count, due)
            self._connection.put_back(bytes(room[count:got]))
        if self._data_set is None or got < count:  # it broke off
            return False
        self._data_set.keep(count)
        self._grew(count, is_last=is_last)
        return True

    def _took(self, header: bytes, content: bytes, length: int) -> bool:
        """A PDU that is not just the next fragment of a data set."""
        fragments = _fragments_of(content) if len(content) == length else []
        if not fragments or (not self._command and not fragments[0].control & _IS_COMMAND):
            self._hand_over()
            self._connection.put_back(header + content)
            return False
        for number, fragment in enumerate(fragments):
            if self._refused:
                break
            if not self._takes(fragment):
                self._hand_over()
                for one in fragments[number:]:
                    self._usual.receive_primitive(_primitive(one))
                break
        return True

    def _takes(self, fragment: _Fragment) -> bool:
        is_last = bool(fragment.control & _IS_LAST)
        if self._request is not None and self._data_set is not None:
            if fragment.control & _IS_COMMAND or fragment.context_id != self._context_id:
                return False
            self._data_set.write(fragment.data)
            self._grew(len(fragment.data), is_last=is_last)
            return True
        if not fragment.control & _IS_COMMAND:
            return False
        if not self._command:
            self._message.begin()
        if is_last:
            request = parse_store_request(b"".join([one.data for one in (*self._command, fragment)]))
            if request is None or not self._is_taken(request, fragment.context_id):
                return False
            self._request, self._context_id = request, fragment.context_id
            self._data_set = self._new_data_set(self._memory)
        self._command.append(fragment)
        self._keep_to_bounds(len(fragment.data), is_instance=False)
        return True

    def _is_taken(self, request: StoreRequest, context_id: int) -> bool:
        return request.sop_class_uid in TAKEN_AT_ONCE and self._sender.transfer_syntax(context_id) is not None

    def _grew(self, count: int, *, is_last: bool) -> None:
        self._keep_to_bounds(count, is_instance=True)
        if is_last and not self._refused:
            self._finish()

    def _keep_to_bounds(self, count: int, *, is_instance: bool) -> None:
        if (why := self._message.grow(count + 1, is_instance=is_instance)) is not None:
            self._refused = True
            self._connection.refuse(why)

    def _finish(self) -> None:
        request, data_set = self._request, self._data_set
        assert request is not None
        assert data_set is not None
        context_id, self.took_last = self._context_id, True
        syntax = self._sender.transfer_syntax(context_id)
        assert syntax is not None
        self._forget_message()
        answer = answer_whatever_happens(partial(self._answer, ReceivedInstance(request, context_id, syntax, data_set)))
        data_set.close()
        self._memory = data_set.memory
        if answer is not None and self._sender.is_established:
            self._connection.send(store_response(request, context_id, *answer))
            self._sender.answered()

    def _forget_message(self) -> None:
        self._command, self._request, self._data_set = [], None, None

    def _hand_over(self) -> None:
        """Give pynetdicom what was read of this message, as if it had read it."""
        self.took_last = False
        command, data_set = self._command, self._data_set
        self._forget_message()
        for fragment in command:
            self._usual.receive_primitive(_primitive(fragment))
        if data_set is not None:
            self._memory = bytearray()
            self._usual.continue_with(data_set)


def answer_whatever_happens(answer: Callable[[], _Answer]) -> _Answer | StoreAnswer:
    try:
        return answer()
    except Exception as error:  # noqa: BLE001  the peer waits for an answer; pynetdicom gives this one
        log.error("could not answer a C-STORE: unexpected %s\n%s", type(error).__name__, where_raised(error))
        return StoreAnswer(_FAILED_UNEXPECTEDLY)


def _fragments_of(content: bytes) -> list[_Fragment]:
    """The PDVs of a P-DATA-TF; none where they do not fill it exactly."""
    found, at, whole = [], 0, memoryview(content)
    while at < len(content):
        if at + _FRAGMENT_HEADER.size > len(content):
            return []
        size, context_id, control = _FRAGMENT_HEADER.unpack_from(content, at)
        end = at + 4 + size
        if size < 2 or end > len(content):
            return []
        found.append(_Fragment(context_id, control, whole[at + _FRAGMENT_HEADER.size : end]))
        at = end
    return found


def _primitive(fragment: _Fragment) -> P_DATA:
    one = P_DATA()
    one.presentation_data_value_list.append((fragment.context_id, bytes([fragment.control]) + fragment.data))
    return one
