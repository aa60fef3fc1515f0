"""A process that receives instances for the listener: of one association at a time it reads plain C-STOREs and writes
their files, and whatever else it meets it gives back.

The listener's threads take turns, since one interpreter runs one of them at a time; several processes do not. All that
is known of an association, a series or a job stays with the listener. Here a data set is read, looked into and written
to a file that nobody knows of yet; the listener gives the file its name, counts the instance and says what to answer.
"""

from __future__ import annotations

import logging
import select
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from pydicom.uid import UID
from pynetdicom.pdu_primitives import P_DATA

from imaging.errors import EmbolensError
from services.dicom.file_meta import NamedFileMeta
from services.ingest.arriving_data_set import ArrivingDataSet, InMemory
from services.ingest.bounded_reading import BoundedReading
from services.ingest.bounds import BoundedMessage, Bounds
from services.ingest.identifiers import Identifiers, identify
from services.ingest.receiver_channel import Channel, Message
from services.ingest.store_reader import ReceivedInstance, StoreReader
from services.parent_death import die_with_parent
from services.process_log import where_raised
from services.settings import Settings
from services.store.study_store import StudyStore

log = logging.getLogger(__name__)

_SILENCE_S = 0.2  # after which the association is given back, for another one to be received here


class WrittenInstance(NamedTuple):
    """An instance whose file is complete, under a name that nobody reads.

    Attributes:
        path: the file.
        named: what the data set says of itself: a CT, and the instance that the request names.
    """

    path: str
    named: Identifiers
    transfer_syntax_uid: UID


def run_receiver(connection: socket.socket, settings: Settings, parent_pid: int) -> None:
    """Until the listener, whose process `parent_pid` is, closes its end. What it has in hand at SIGTERM it finishes."""
    die_with_parent(parent_pid, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(connection)
    store: StudyStore | None = None
    try:
        while (handed := channel.receive()) is not None:
            if handed.descriptor is not None:  # else it asks for the one that was given back just before
                store = store or StudyStore.of(settings)
                _Turn(channel, store, Bounds.of(settings, store), handed).run()
    except Exception as error:  # noqa: BLE001  its text may quote a header; the listener notices that this process ends
        log.error("cannot receive: unexpected %s\n%s", type(error).__name__, where_raised(error))
        sys.exit(1)


@dataclass(slots=True)
class _Sender:
    """The association, as the listener tells of it."""

    syntaxes: Mapping[int, UID]
    is_established: bool = True

    def transfer_syntax(self, context_id: int) -> UID | None:
        return self.syntaxes.get(context_id)

    def begin(self) -> None:
        """The listener keeps an association in hand that it has handed over."""

    def answered(self) -> None:
        """As above."""


class _Back:
    """Collects, in order, what pynetdicom, which runs in the listener, is to be given.

    Attributes:
        pieces: context id and length of each fragment, and the length of the data set without a context id.
        content: of the fragments.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[int | None, int]] = []
        self.content = b""
        self.data_set: ArrivingDataSet | None = None

    def is_receiving(self) -> bool:
        return False

    def receive_primitive(self, primitive: P_DATA) -> None:
        for context_id, data in primitive.presentation_data_value_list:
            self.pieces.append((context_id, len(data)))
            self.content += data

    def continue_with(self, data_set: ArrivingDataSet) -> None:
        self.pieces.append((None, data_set.length))
        self.data_set = data_set


class _Connection:
    """The peer's, of which this process has a descriptor of its own."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self.reading = BoundedReading(connection, timeout_s)
        self.refused = ""
        self._connection = connection

    def receive(self, room: memoryview, least: int, due: float) -> int:
        return self.reading.receive(room, least, due)

    def put_back(self, content: bytes) -> None:
        self.reading.put_back(content)

    def send(self, bytestream: bytes) -> None:
        self._connection.sendall(bytestream)

    def refuse(self, why: str) -> None:
        self.refused = why


class _Turn:
    """From an association's being handed over to its being given back."""

    def __init__(self, channel: Channel, store: StudyStore, bounds: Bounds, handed: Message) -> None:
        assert handed.descriptor is not None
        self._channel = channel
        self._store = store
        self._socket = socket.socket(fileno=handed.descriptor)
        self._connection = _Connection(self._socket, bounds.timeout_s)
        self._waiting = select.poll()
        self._waiting.register(self._socket, select.POLLIN)
        self._waiting.register(channel, select.POLLIN)
        self._back = _Back()
        self._directory = handed.said["directory"]
        self._reader = StoreReader(
            _Sender({int(key): UID(uid) for key, uid in handed.said["syntaxes"].items()}),
            self._connection,
            BoundedMessage(bounds),
            self._back,
            self._pass_on,
            partial(ArrivingDataSet, bounds.directory),
            bounds.pdu_bytes,
        )

    def run(self) -> None:
        broke_off = ""
        with self._socket:
            try:
                self._receive()
            except OSError as error:
                broke_off = type(error).__name__
            self._reader.break_off()  # it keeps nothing of what is given back
            said: dict[str, Any] = {"broke_off": broke_off, "refused": self._connection.refused}
        self._give_back(said)

    def _receive(self) -> None:
        while not self._connection.refused:
            if self._reader.is_between_messages and not self._goes_on():
                return
            if not self._reader.read_pdu(self._connection.reading.next_due()):
                return

    def _goes_on(self) -> bool:
        """Whether there is another message to read, and the listener has not asked for the association."""
        if self._connection.reading.is_ahead:
            return True
        return [descriptor for descriptor, _ in self._waiting.poll(_SILENCE_S * 1000)] == [self._socket.fileno()]

    def _give_back(self, said: dict[str, Any]) -> None:
        said["pieces"], said["took_last"] = self._back.pieces, self._reader.took_last
        content = self._back.content + self._connection.reading.take_ahead()
        self._send("back", said, content, self._back.data_set)
        if self._back.data_set is not None:
            self._back.data_set.close()

    def _pass_on(self, received: ReceivedInstance) -> None:
        """To the listener, who answers it."""
        request = received.request
        said: dict[str, Any] = {
            "context_id": received.context_id,
            "syntax": received.transfer_syntax_uid,
            "request": (request.message_id, request.sop_class_uid, request.sop_instance_uid),
        }
        try:
            written = self._write(received)
        except (EmbolensError, OSError) as error:
            log.debug("%s is the listener's to judge: %s", request.sop_instance_uid, type(error).__name__)
            written = None
        if written is None:
            said["data_set_bytes"] = received.data_set.length
            self._send("judge", said, data_set=received.data_set)
        else:
            path, named = written
            said["path"], said["study"], said["series"] = path, named.study_instance_uid, named.series_instance_uid
            self._send("written", said)

    def _write(self, received: ReceivedInstance) -> tuple[str, Identifiers] | None:
        """The file's path; None where it is not just a new instance of moderate length."""
        request, encoded = received.request, received.data_set.whole()
        if not isinstance(encoded, InMemory):
            return None
        meta = NamedFileMeta.of_c_store(request.sop_class_uid, request.sop_instance_uid, received.transfer_syntax_uid)
        named = identify(encoded, meta, with_announcement=False)
        self._store.check_room(len(encoded.content))
        return self._store.write_arriving([meta.encoded, encoded.content], self._directory), named

    def _send(
        self, kind: str, said: dict[str, Any], content: bytes = b"", data_set: ArrivingDataSet | None = None
    ) -> None:
        descriptor = None if data_set is None else data_set.pass_on()
        try:
            self._channel.send({"kind": kind, **said}, content, descriptor=descriptor)
        except OSError as error:
            # It is gone. There is nobody to ask, and no answer that would be true.
            raise SystemExit("the listener is gone") from error
