"""A C-STORE that is read straight off the connection ends as one that goes through pynetdicom's layers: same answers,
same files, same rows; in counted work it costs what it moves and no more."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode, encode_file_meta
from pynetdicom.dul import DULServiceProvider
from sqlalchemy import event

from imaging.errors import InputError
from services.dicom.file_meta import FILE_PREFIX, NamedFileMeta
from services.ingest.arriving_data_set import ArrivingDataSet, InMemory
from services.ingest.bounded_reading import BoundedReading
from services.ingest.identifiers import read_identifiers
from services.ingest.intake_rules import IntakeRules
from services.ingest.receiver_pool import ReceiverPool
from services.ingest.store_message import StoreRequest, parse_store_request, store_response
from services.ingest.store_reader import StoreReader
from services.settings import Settings
from services.store.database import Database
from tests.faults.hostile_dicom import (
    ACCEPT,
    CONTEXT_ID,
    DATA,
    HostilePeer,
    data_set_of,
    echo_request,
    fragment,
    pdu,
    store_command,
)
from tests.services.ingest.peers import Receiving, ct_series, wait_until

_RELEASE = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
_COMMAND_BEGINS = 12  # behind the headers of PDU and fragment


class Pair:
    """Two listeners: one takes the short way, maybe by other processes; in the other every C-STORE goes through
    pynetdicom."""

    def __init__(self, own: Settings, rules: IntakeRules, directory: Path, stack: ExitStack) -> None:
        self.listeners = []
        for name in ("short", "usual"):
            database = Database(f"sqlite:///{directory / name / 'jobs.sqlite'}")
            database.upgrade()
            data = own.model_copy(update={"data_dir": directory / name, "series_quiet_s": 600.0})
            receivers = stack.enter_context(ReceiverPool(data, start_method="spawn"))
            self.listeners.append(Receiving(data, database, rules, receivers=receivers))
            stack.callback(database.close)
            stack.callback(self.listeners[-1].stop)
        assert self.listeners[1].listener._server is not None
        self.listeners[1].listener._server.shortcut = None

    def say(self, sent: bytes, *, answers: int, pieces: int = 1 << 20) -> tuple[list[bytes], ...]:
        """What each answers to these bytes, which follow an ordinary instance (after which receivers take over); after
        so many answers the association is released."""
        (first,) = ct_series(1, size=8)
        return tuple(_answers(one.port, first, sent, pieces, answers) for one in self.listeners)

    def files(self) -> tuple[dict[str, bytes], ...]:
        return tuple(
            {str(path.relative_to(one.store.data_dir)): path.read_bytes() for path in one.store.data_dir.rglob("*.dcm")}
            for one in self.listeners
        )

    def jobs(self, instance: Dataset) -> list[list[tuple[str, str | None, str | None]]]:
        return [
            [(j.state, j.calling_ae_title, j.calling_address) for j in one.jobs_of(instance)] for one in self.listeners
        ]


@pytest.fixture(scope="module", params=[0, 2], ids=["own process", "receivers"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    own = Settings(
        data_dir=directory, redis_url=redis_url, dicom_port=0, network_timeout_s=5.0, dicom_receivers=request.param
    )
    with ExitStack() as stack:
        yield Pair(own, IntakeRules(min_slices=2), directory, stack)


def _answers(port: int, first: Dataset, sent: bytes, pieces: int, release_after: int) -> list[bytes]:
    """Until the listener hangs up, which it does when nothing was said for a while."""
    peer = HostilePeer(port)
    assert peer.associate()[:1] == ACCEPT
    peer.send(store_command(first) + pdu(4, fragment(data_set_of(first), is_last=True)))
    assert peer.receive_pdu()[:1] == DATA
    answers: list[bytes] = []
    with suppress(ConnectionError):  # aborted while we were still sending
        for at in range(0, len(sent), pieces):
            peer.send(sent[at : at + pieces])
        while answer := peer.receive_pdu():
            answers.append(answer)
            if len(answers) == release_after:
                peer.send(_RELEASE)
    peer.close()
    return answers


def _command(instance: Dataset) -> bytes:
    return store_command(instance)[_COMMAND_BEGINS:]


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Pieces of these sizes in turn, over and over."""
    found, at, number = [], 0, 0
    while at < len(data):
        found.append(data[at : at + sizes[number % len(sizes)]])
        at, number = at + len(found[-1]), number + 1
    return found


def _fragments(instance: Dataset, command_sizes: list[int], data_sizes: list[int]) -> list[bytes]:
    command, data = _cut(_command(instance), command_sizes), _cut(data_set_of(instance), data_sizes)
    return [fragment(one, is_command=True, is_last=n == len(command) - 1) for n, one in enumerate(command)] + [
        fragment(one, is_last=n == len(data) - 1) for n, one in enumerate(data)
    ]


_SIZES = st.lists(st.sampled_from([1, 2, 7, 64, 100, 512, 1000, 5000]), min_size=1, max_size=4)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command_sizes=_SIZES,
    data_sizes=_SIZES,
    in_one_pdu=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    pieces=st.sampled_from([100, 1000, 1 << 20]),
)
def test_an_instance_in_any_fragments_ends_the_same_both_ways(
    pair: Pair, command_sizes: list[int], data_sizes: list[int], in_one_pdu: list[int], pieces: int
) -> None:
    """Two instances, one after the other, so that a PDU may hold the end of one and the beginning of the next."""
    slices = ct_series(2, size=8)
    fragments = [one for instance in slices for one in _fragments(instance, command_sizes, data_sizes)]
    sent, at, number = b"", 0, 0
    while at < len(fragments):
        count = in_one_pdu[number % len(in_one_pdu)]
        sent += pdu(4, b"".join(fragments[at : at + count]))
        at, number = at + count, number + 1

    short, usual = pair.say(sent, answers=2, pieces=pieces)

    assert short == usual
    assert [answer[:1] for answer in short] == [DATA, DATA, b"\x06"]
    files = pair.files()
    assert files[0] == files[1]
    for instance in slices:
        (path,) = [path for path in files[0] if str(instance.SOPInstanceUID) in path]
        assert files[0][path].endswith(data_set_of(instance))
    jobs = pair.jobs(slices[0])
    assert jobs[0] == jobs[1] == [("receiving", "PACS", "127.0.0.1")]


_ECHO_THEN_ABORT = "a C-ECHO between two halves of a data set"


def _oddities(instance: Dataset) -> dict[str, bytes]:
    """What no ordinary sender says, by name."""
    command, data = _command(instance), data_set_of(instance)
    whole_command = pdu(4, fragment(command, is_command=True, is_last=True))
    half, rest = data[: len(data) // 2], data[len(data) // 2 :]
    other = CONTEXT_ID + 2
    return {
        _ECHO_THEN_ABORT: whole_command + pdu(4, fragment(half)) + echo_request()
        + pdu(4, fragment(rest, is_last=True)),
        "the rest of the data set under another context": whole_command + pdu(4, fragment(half))
        + pdu(4, fragment(rest, is_last=True, context_id=other)),
        "the data set under a context that there is not": whole_command
        + pdu(4, fragment(data, is_last=True, context_id=99)),
        "a command under a context that there is not": pdu(
            4, fragment(command, is_command=True, is_last=True, context_id=99)
        ) + pdu(4, fragment(data, is_last=True, context_id=99)),
        "an instance under the context of C-ECHO": pdu(
            4, fragment(command, is_command=True, is_last=True, context_id=other)
        ) + pdu(4, fragment(data, is_last=True, context_id=other)),
        "a data set without a command": pdu(4, fragment(data, is_last=True)),
        "an empty data set": whole_command + pdu(4, fragment(b"", is_last=True)),
        "an empty last fragment": whole_command + pdu(4, fragment(data)) + pdu(4, fragment(b"", is_last=True)),
        "a fragment longer than its PDU": whole_command + pdu(4, fragment(half) + struct.pack(">LBB", 9999, 1, 0)),
        "a fragment of no length": whole_command + pdu(4, struct.pack(">LBB", 0, 1, 0)),
        "an empty PDU": whole_command + pdu(4, b""),
        "a PDU of nobody's type in the data set": whole_command + pdu(4, fragment(half)) + pdu(9, b"x"),
        "a second association request": whole_command + pdu(4, fragment(half)) + pdu(1, bytes(100)),
        "an abort in the data set": whole_command + pdu(4, fragment(half)) + pdu(7, bytes(4)),
        "a release in the data set": whole_command + pdu(4, fragment(half)) + _RELEASE,
        "a command cut short": pdu(4, fragment(command[:-9], is_command=True, is_last=True)),
        "a command of noise": pdu(4, fragment(bytes(range(64)), is_command=True, is_last=True)),
        "a priority that there is not": pdu(
            4, fragment(command.replace(_us(0x0700, 2), _us(0x0700, 9)), is_command=True, is_last=True)
        ) + pdu(4, fragment(data, is_last=True)),
        "another SOP class than the context's": pdu(
            4, fragment(command.replace(b"5.1.4.1.1.2\0", b"5.1.4.1.1.4\0"), is_command=True, is_last=True)
        ) + pdu(4, fragment(data, is_last=True)),
        "another instance than the data set's": pdu(
            4, fragment(command.replace(b".1", b".2"), is_command=True, is_last=True)
        ) + pdu(4, fragment(data, is_last=True)),
        "a data set of noise": whole_command + pdu(4, fragment(bytes(range(256)) * 4, is_last=True)),
        "two requests at once": (whole_command + pdu(4, fragment(data, is_last=True))) * 2,
        "C-ECHO before and after": echo_request() + whole_command + pdu(4, fragment(data, is_last=True))
        + echo_request(),
    }  # fmt: skip


def _us(element: int, value: int) -> bytes:
    return struct.pack("<HHIH", 0, element, 2, value)


_SAMPLE = ct_series(1, size=8)[0]


def test_what_is_odd_is_answered_as_pynetdicom_answers_it(pair: Pair) -> None:
    said = [(name, sent) for name, sent in _oddities(_SAMPLE).items()]
    instances = ct_series(len(said), size=8)
    said = [(name, _oddities(instance)[name]) for (name, _), instance in zip(said, instances, strict=True)]
    with ThreadPoolExecutor(len(said)) as peers:
        ended = list(peers.map(lambda one: pair.say(one[1], answers=-1), said))
    for (name, _), (short, usual) in zip(said, ended, strict=True):
        # Two threads answer a C-ECHO and a C-STORE; an abort may be lost with the connection that it ends.
        if name == _ECHO_THEN_ABORT:  # one thread answers while the other aborts: whichever is first
            assert {len(_data(short)), len(_data(usual))} <= {0, 1}
        else:
            assert _data(short) == _data(usual), name
    files = pair.files()
    assert files[0] == files[1]


def _data(answers: list[bytes]) -> list[bytes]:
    return sorted(one for one in answers if one[:1] == DATA)


def test_bytes_are_moved_once_and_the_database_is_left_alone(
    receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 slices of 0.5 MB in five PDUs each: two receiving calls per PDU, one write per instance, and statements
    only for the first slice of the series."""
    slices = ct_series(40, size=512)
    counted: Counter[str] = Counter()
    receive, write, parse = BoundedReading._receive_into, os.writev, StoreReader._finish

    def counting_receive(self, room, left_s, waits_for_all):  # type: ignore[no-untyped-def]
        counted["receive"] += 1
        got = receive(self, room, left_s, waits_for_all)
        counted["received bytes"] += got
        return got

    def counting_write(descriptor, pieces):  # type: ignore[no-untyped-def]
        counted["write"] += 1
        counted["written bytes"] += sum(map(len, pieces))
        return write(descriptor, pieces)

    def counting_finish(self):  # type: ignore[no-untyped-def]
        counted["finished"] += 1
        counted["statements at"] = counted["statements"]
        parse(self)

    def counting_statement(*_: object) -> None:
        counted["statements"] += isinstance(threading.current_thread(), DULServiceProvider)

    monkeypatch.setattr(BoundedReading, "_receive_into", counting_receive)
    monkeypatch.setattr(os, "writev", counting_write)
    monkeypatch.setattr(StoreReader, "_finish", counting_finish)
    event.listen(receiving.database.engine, "before_cursor_execute", counting_statement)

    peer = HostilePeer(receiving.port)
    assert peer.associate()[:1] == ACCEPT
    pdus = 0
    after_first = 0
    for instance in slices:
        pieces = _cut(data_set_of(instance), [128 * 1024 - 6])
        pdus += 1 + len(pieces)
        peer.send(store_command(instance))
        for number, piece in enumerate(pieces):
            peer.send(pdu(4, fragment(piece, is_last=number == len(pieces) - 1)))
        assert peer.receive_pdu()[:1] == DATA
        after_first = after_first or counted["statements"]
    peer.close()

    data_bytes = sum(len(data_set_of(one)) for one in slices)
    assert counted["finished"] == len(slices)
    assert counted["receive"] <= 2 * pdus + 4
    assert counted["received bytes"] < 1.01 * data_bytes
    assert counted["write"] == len(slices)
    assert counted["written bytes"] < 1.01 * data_bytes
    assert counted["statements"] == after_first <= 20


def test_an_instance_longer_than_the_memory_is_kept_byte_for_byte(pair: Pair) -> None:
    (instance,) = ct_series(1, size=1024)  # 2 MiB of pixels
    fragments = _fragments(instance, [1000], [100_000])
    short, usual = pair.say(b"".join(pdu(4, one) for one in fragments), answers=1)
    assert short == usual
    files = pair.files()
    assert files[0] == files[1]
    assert any(content.endswith(data_set_of(instance)) for content in files[0].values())


@given(st.lists(st.tuples(st.integers(1, 400_000), st.booleans()), max_size=12))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_data_set_is_the_sum_of_its_fragments(tmp_path: Path, pieces: list[tuple[int, bool]]) -> None:
    """However they come: as a PDU of their own, or beside others; in memory, or grown into a file."""
    data_set, expected = ArrivingDataSet(tmp_path, bytearray(b"of an earlier one" * 100)), b""
    for number, (count, fills_a_pdu) in enumerate(pieces):
        piece = bytes([number]) * count
        if fills_a_pdu:
            with data_set.room_for(count + 6) as room:
                room[:] = piece + b"header"  # of the next one
            data_set.keep(count)
        else:
            data_set.write(piece)
        expected += piece
    assert data_set.whole().read() == expected
    assert data_set.length == len(expected)
    data_set.close()


@given(
    st.integers(0, 0xFFFF),
    st.sampled_from([0x0000, 0xA700, 0xA900, 0xC000, 0x0122, 0xC211]),
    st.text("abc._", max_size=64),
    st.sampled_from(["1.2.3", "1.2.34", "2.25." + "1" * 59]),
)
@settings(deadline=None)
def test_responses_and_file_meta_are_the_bytes_that_pynetdicom_writes(
    message_id: int, status: int, comment: str, uid: str
) -> None:
    request = StoreRequest(message_id, "1.2.840.10008.5.1.4.1.1.2", uid)
    response = C_STORE()
    response.MessageIDBeingRespondedTo, response.Status = message_id, status
    response.AffectedSOPClassUID, response.AffectedSOPInstanceUID = request.sop_class_uid, uid
    if comment:
        response.ErrorComment = comment
    message = C_STORE_RSP()
    message.primitive_to_message(response)
    assert store_response(request, 1, status, comment)[12:] == encode(message.command_set, True, True)

    meta = create_file_meta(
        sop_class_uid=request.sop_class_uid, sop_instance_uid=uid, transfer_syntax=ExplicitVRLittleEndian
    )  # type: ignore[arg-type]
    ours = NamedFileMeta.of_c_store(request.sop_class_uid, uid, ExplicitVRLittleEndian)
    assert ours.encoded == FILE_PREFIX + encode_file_meta(meta)
    assert replace(NamedFileMeta.of(meta), encoded=b"") == replace(ours, encoded=b"")


@given(st.binary(max_size=80) | st.just(_command(_SAMPLE)), st.integers(0, 200), st.binary(max_size=4))
@settings(deadline=None)
def test_any_bytes_are_a_request_or_left_to_pynetdicom(command: bytes, at: int, change: bytes) -> None:
    parsed = parse_store_request(command[:at] + change + command[at + len(change) :])
    assert parsed is None or parsed.sop_class_uid


@given(
    st.dictionaries(
        st.sampled_from(["StudyDate", "AccessionNumber", "PatientName", "StudyDescription", "ReferencedStudySequence"]),
        st.text("ab 12", max_size=9),
    ),
    st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
    st.booleans(),
    st.none() | st.integers(0, 300),
    st.binary(min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_identifiers_are_found_as_pydicom_finds_them(
    more: dict[str, str], syntax: str, undefined: bool, at: int | None, change: bytes
) -> None:
    """In sound data sets and in some with bytes changed."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    header.StudyInstanceUID, header.SeriesInstanceUID, header.InstanceNumber = "1.2", "1.2.33", 7
    for keyword, value in more.items():
        if keyword.endswith("Sequence"):
            item = Dataset()
            item.ReferencedSOPInstanceUID, item.is_undefined_length_sequence_item = generate_uid(), undefined
            setattr(header, keyword, [item, Dataset()])
            header[keyword].is_undefined_length = undefined
        else:
            setattr(header, keyword, value.strip() if "Date" not in keyword else "20260101")
    encoded = encode(header, syntax == ImplicitVRLittleEndian, True)
    assert encoded is not None
    if at is not None:
        encoded = encoded[:at] + change + encoded[at + len(change) :]

    def found(content: object) -> object:
        try:
            return read_identifiers(content, syntax, with_announcement=False)  # type: ignore[arg-type]
        except InputError as error:
            return error.code

    assert found(InMemory(memoryview(encoded))) == found(BytesIO(encoded))


def test_an_open_association_on_which_nothing_is_said_waits(receiving: Receiving) -> None:
    """pynetdicom's own threads look a thousand times a second each."""
    peer = HostilePeer(receiving.port)
    assert peer.associate()[:1] == ACCEPT
    (dul,) = [one for one in threading.enumerate() if isinstance(one, DULServiceProvider)]
    looks: list[float] = []
    look = dul._is_transport_event

    def counting() -> bool:
        looks.append(time.monotonic())
        return look()

    dul._is_transport_event = counting  # type: ignore[method-assign]
    wait_until(lambda: len(looks) >= 4)
    assert looks[3] - looks[1] > 0.3
    peer.close()


@pytest.mark.parametrize("command", [_us(0x0110, 7) + _us(0x0800, 0x0101), _us(0x0100, 0x7777)])
def test_a_command_that_is_none_aborts_its_own_association(
    receiving: Receiving, command: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a Command Field, or with one that is nobody's; not by an exception that ends pynetdicom's thread."""
    peer = HostilePeer(receiving.port)
    assert peer.associate()[:1] == ACCEPT
    peer.send(pdu(4, fragment(command, is_command=True, is_last=True)))
    assert peer.receive_pdu()[:1] == b"\x07"  # A-ABORT
    peer.close()
    assert "a message that cannot be read" in caplog.text
    other = HostilePeer(receiving.port)
    assert other.associate()[:1] == ACCEPT
    other.send(echo_request())
    assert other.receive_pdu()[:1] == DATA
    other.close()
