"""DICOM peers that break off, stall, lie and flood, against the listener's real process: its memory and time are
bounded, and a scanner that pushes a study beside them notices nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from pydicom.dataset import Dataset

from services.settings import Settings
from services.store.study_store import StudyStore
from tests.faults.hostile_dicom import (
    ABORT,
    ABORT_PDU,
    ACCEPT,
    CONTEXT_ID,
    DATA,
    REJECT,
    HostilePeer,
    association_request,
    data_set_of,
    echo_request,
    fragment,
    one_byte_pdus,
    pdu,
    store_command,
)
from tests.services.ingest.peers import ListenerProcess, ct_series, save, wait_until

MIB = 1024**2
MOST_MEMORY_BYTES = 300_000_000
TIMEOUT_S = 2.0
SOON_S = 15.0  # on a busy machine; the bound itself is TIMEOUT_S
MAX_INSTANCE_BYTES = 100 * MIB
MAX_ASSOCIATIONS = 50

Beside = Callable[[], None]


class Watched(ListenerProcess):
    """The process with what /proc says of it."""

    def __init__(self, settings: Settings, directory: Path, *, timeout_s: float) -> None:
        super().__init__(
            settings,
            directory,
            associations='calling_ae_titles = ["PACS", "CT1"]',
            EMBOLENS_NETWORK_TIMEOUT_S=str(timeout_s),
            EMBOLENS_INSTANCE_MAX_BYTES=str(MAX_INSTANCE_BYTES),
            EMBOLENS_MAX_ASSOCIATIONS=str(MAX_ASSOCIATIONS),
        )
        self.store = StudyStore(settings.data_dir)
        self.idle_threads = self.threads()

    def highest_memory_bytes(self) -> int:
        """Of the process; and what its receivers have for themselves, now."""
        own = sum(one.memory_full_info().uss for one in self._receivers())
        return self._status("VmHWM") * 1024 + own

    def _receivers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def threads(self) -> int:
        return self._status("Threads")

    def has_let_go(self) -> bool:
        is_idle = self.threads() <= self.idle_threads
        return is_idle and not list(self.store.arriving_path.iterdir()) and not self.nameless_files()

    def nameless_files(self) -> list[str]:
        """Open ones, of data sets that are coming in."""
        opened = []
        for pid in (self.process.pid, *(one.pid for one in self._receivers())):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed since
                    opened.append(os.readlink(descriptor))
        return [target for target in opened if target.startswith(f"{self.store.arriving_path}/")]

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))


@contextmanager
def running(directory: Path, redis_url: str, *, timeout_s: float) -> Iterator[Watched]:
    watched = Watched(Settings(data_dir=directory / "data", redis_url=redis_url), directory, timeout_s=timeout_s)
    log = watched.process.stderr
    assert log is not None
    with ThreadPoolExecutor(1) as reader:  # of what it logs, so that it never waits for us
        reader.submit(log.read)
        yield watched
        watched.process.terminate()
        watched.process.wait(timeout=20)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Watched]:
    with running(tmp_path_factory.mktemp("listener"), redis_url, timeout_s=TIMEOUT_S) as listener:
        yield listener


@pytest.fixture
def listener(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Watched]:
    """One for all tests whose time-out is short; one with the shipped time-out for a test that asks for it."""
    if "patient" not in request.fixturenames:
        yield request.getfixturevalue("impatient")
        return
    with running(tmp_path, redis_url, timeout_s=60.0) as listener:
        yield listener


@pytest.fixture
def patient() -> None:
    """Asks for a listener with the shipped time-out."""


@pytest.fixture
def beside(listener: Watched, tmp_path: Path) -> Beside:
    """An ordinary push by dcmtk; it fails where the listener does not take every slice."""

    def push() -> None:
        files = [str(path) for path in save(ct_series(4, size=256), tmp_path / "beside")]
        command = ["storescu", "-aet", "CT1", "-aec", "EMBOLENS", "127.0.0.1", str(listener.port), *files]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    return push


@pytest.fixture(autouse=True)
def bounded(listener: Watched) -> Iterator[None]:
    """What holds after every one of these tests."""
    yield
    wait_until(listener.has_let_go, timeout_s=2 * SOON_S)
    assert listener.highest_memory_bytes() < MOST_MEMORY_BYTES


@pytest.fixture
def connect(listener: Watched) -> Iterator[Callable[..., HostilePeer]]:
    opened: list[HostilePeer] = []

    def connected(**how: int) -> HostilePeer:
        opened.append(HostilePeer(listener.port, **how))
        return opened[-1]

    yield connected
    for one in opened:
        one.close()


Connect = Callable[..., HostilePeer]


@pytest.fixture
def instance() -> Dataset:
    return ct_series(1, size=64)[0]


@pytest.mark.fault(
    "DICOM associations",
    "400 connections on which nothing is ever said",
    "a push beside them finishes; those beyond 250 are hung up on at once, the others after the time-out; under 300 MB",
)
def test_silent_connections_keep_nobody_out(connect: Connect, beside: Beside) -> None:
    silent = [connect() for _ in range(400)]
    beside()
    for one in silent:
        one.seconds_until_gone(SOON_S)


def _one_byte_at_a_time(peer: HostilePeer) -> None:
    began = time.monotonic()
    try:
        for byte in association_request():
            assert time.monotonic() - began < SOON_S, "still connected"
            peer.send(bytes([byte]))
            time.sleep(0.2)  # slower than the time that a PDU has
    except ConnectionError:
        pass


@pytest.mark.fault(
    "DICOM associations",
    "peers that send a byte now and then",
    "cut off when the time for one PDU is over, however alive they look; a push beside them finishes",
)
def test_slow_loris_is_cut_off(connect: Connect, beside: Beside) -> None:
    peers = [connect() for _ in range(20)]
    with ThreadPoolExecutor(len(peers)) as senders:
        dripping = [senders.submit(_one_byte_at_a_time, peer) for peer in peers]
        beside()
        for one in dripping:
            one.result()


@pytest.mark.fault(
    "DICOM associations",
    "a data set at a few bytes per second, in whole PDUs",
    "aborted after the time-out, since it is under 1 KiB/s; a push beside it finishes",
)
def test_a_data_set_that_trickles_is_cut_off(connect: Connect, beside: Beside, instance: Dataset) -> None:
    peer = connect()
    assert peer.associate()[:1] == ACCEPT
    peer.send(store_command(instance))
    beside()
    began = time.monotonic()
    with pytest.raises(ConnectionError):  # noqa: PT012  it comes when it comes
        while time.monotonic() - began < SOON_S:
            peer.send(next(one_byte_pdus(data_set_of(instance))))
            time.sleep(0.1)


@pytest.mark.fault(
    "DICOM associations",
    "a PDU that claims 4 GiB, before the association and in it, and one over the announced maximum",
    "aborted at its header: nothing of it is read",
)
@pytest.mark.parametrize(("kind", "claimed"), [(1, 0xFFFFFFFF), (4, 0xFFFFFFFF), (4, 128 * 1024 + 1)])
def test_pdus_that_are_too_long_are_not_read(connect: Connect, beside: Beside, kind: int, claimed: int) -> None:
    peer = connect()
    if kind == 4:
        assert peer.associate()[:1] == ACCEPT
    peer.send(pdu(kind, b"\0" * 100, claimed=claimed))
    assert peer.receive_pdu()[:1] in (ABORT, b"")
    peer.seconds_until_gone(SOON_S)
    beside()


@pytest.mark.fault(
    "DICOM associations",
    "HTTP, zeros, a later PDU or an unknown one instead of A-ASSOCIATE-RQ",
    "the connection is gone within the time-out",
)
@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", bytes(5000), echo_request(), pdu(9, b"x"), pdu(1, b"\xff" * 200)]
)
def test_garbage_instead_of_an_association(connect: Connect, said: bytes) -> None:
    peer = connect()
    peer.send(said)
    peer.seconds_until_gone(SOON_S)


@pytest.mark.fault(
    "DICOM associations",
    "a C-STORE whose data set never ends",
    "aborted at EMBOLENS_INSTANCE_MAX_BYTES; it lay in a file without a name, and nothing of it is left",
)
def test_a_data_set_without_end_is_cut_off(
    listener: Watched, connect: Connect, beside: Beside, instance: Dataset
) -> None:
    peer = connect()
    assert peer.associate()[:1] == ACCEPT
    peer.send(store_command(instance))
    piece = pdu(4, fragment(bytes(100_000)))
    sent = 0
    with ThreadPoolExecutor(1) as other:
        pushed = other.submit(beside)
        try:
            while sent < 2 * MAX_INSTANCE_BYTES:
                peer.send(piece)
                sent += len(piece)
        except ConnectionError:
            pass
        pushed.result()
    assert MAX_INSTANCE_BYTES < sent < 2 * MAX_INSTANCE_BYTES
    path = listener.store.instance_path(
        *(str(uid) for uid in (instance.StudyInstanceUID, instance.SeriesInstanceUID, instance.SOPInstanceUID))
    )
    assert not path.exists()


@pytest.mark.fault(
    "DICOM associations",
    "associations that end in the middle of a data set: aborted, closed, or half a PDU sent",
    "nothing half written is left, no thread and no open file stays",
)
@pytest.mark.parametrize("end", [ABORT_PDU, b"", pdu(4, b"half", claimed=10_000)])
def test_associations_that_break_off_leave_nothing(
    listener: Watched, connect: Connect, instance: Dataset, end: bytes
) -> None:
    for _ in range(5):
        peer = connect()
        assert peer.associate()[:1] == ACCEPT
        peer.send(store_command(instance) + pdu(4, fragment(bytes(100_000))) * 15)
        wait_until(listener.nameless_files)
        peer.send(end)
        peer.close()
        wait_until(lambda: not listener.nameless_files())


@pytest.mark.fault(
    "DICOM associations",
    "a peer that asks and asks and never reads an answer",
    "aborted; answers and requests do not pile up in memory; a push beside it finishes",
)
def test_a_peer_that_never_reads_is_cut_off(connect: Connect, beside: Beside) -> None:
    peer = connect(receive_buffer=4096)
    assert peer.associate()[:1] == ACCEPT
    beside()
    began = time.monotonic()
    requests = echo_request() * 100
    with pytest.raises(ConnectionError):  # noqa: PT012  it comes when it comes
        while time.monotonic() - began < 2 * SOON_S:
            peer.send(requests)


@pytest.mark.fault(
    "DICOM associations",
    "an instance in fragments of one byte, a PDU for each, then many in a PDU",
    "taken in, byte for byte",
)
def test_fragments_of_one_byte_are_put_together(listener: Watched, connect: Connect, beside: Beside) -> None:
    for instance, in_one_pdu in zip(ct_series(2, size=32), (False, True), strict=True):
        data = data_set_of(instance)
        peer = connect()
        assert peer.associate()[:1] == ACCEPT
        fragments = b"".join(
            fragment(data[at : at + 1], is_last=at == len(data) - 1, context_id=CONTEXT_ID) for at in range(len(data))
        )
        peer.send(store_command(instance) + (pdu(4, fragments) if in_one_pdu else b"".join(one_byte_pdus(data))))
        answer = peer.receive_pdu()
        assert answer[:1] == DATA
        path = listener.store.instance_path(
            *(str(uid) for uid in (instance.StudyInstanceUID, instance.SeriesInstanceUID, instance.SOPInstanceUID))
        )
        assert path.read_bytes().endswith(data)
        peer.close()
    beside()


@pytest.mark.fault(
    "DICOM associations",
    "200 associations at once, 50 allowed",
    "50 are accepted, 150 told `local limit exceeded, come again`; when some have gone, others come in; under 300 MB",
)
@pytest.mark.usefixtures("patient")
def test_200_associations_at_once(listener: Watched, connect: Connect, beside: Beside) -> None:
    peers = [connect() for _ in range(200)]
    for peer in peers:
        peer.send(association_request())
    answers = [(peer, peer.receive_pdu()) for peer in peers]
    accepted = [peer for peer, answer in answers if answer[:1] == ACCEPT]
    rejected = [answer for _, answer in answers if answer[:1] == REJECT]
    assert (len(accepted), len(rejected)) == (MAX_ASSOCIATIONS, 200 - MAX_ASSOCIATIONS)
    assert {answer[7:10] for answer in rejected} == {b"\x02\x03\x02"}  # transient, presentation: local limit exceeded
    for peer in accepted[:5]:
        peer.send(ABORT_PDU)
        peer.seconds_until_gone(SOON_S)
    beside()
    for peer in accepted[5:]:
        peer.send(ABORT_PDU)


@pytest.mark.fault(
    "DICOM associations",
    "a C-STORE of an instance whose UID is ../../../../etc",
    "refused with C000H or A900H; nothing is written",
)
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_a_uid_that_is_a_path_is_refused(listener: Watched, connect: Connect, instance: Dataset, keyword: str) -> None:
    uid, path = b"1.2.3.4.5.6.7.8", b"../../../../etc"
    setattr(instance, keyword, uid.decode())
    before = set(listener.store.data_dir.rglob("*.dcm"))
    peer = connect()
    assert peer.associate()[:1] == ACCEPT
    data_set = pdu(4, fragment(data_set_of(instance).replace(uid, path), is_last=True))
    peer.send(store_command(instance).replace(uid, path) + data_set)
    answer = peer.receive_pdu()
    assert answer[:1] == DATA
    status = answer[answer.index(b"\0\0\0\x09\x02\0\0\0") + 8 :][:2]  # (0000,0900)
    assert status in (b"\x00\xc0", b"\x00\xa9")
    assert set(listener.store.data_dir.rglob("*.dcm")) == before


@pytest.mark.fault(
    "DICOM associations", "a peer that falls silent on an open association", "aborted after the time-out"
)
def test_an_association_that_falls_silent_is_aborted(connect: Connect) -> None:
    peer = connect()
    assert peer.associate()[:1] == ACCEPT
    peer.seconds_until_gone(SOON_S)


@pytest.mark.fault("DICOM associations", "AE titles that nobody has named", "rejected: calling AE title not recognised")
def test_strangers_are_rejected(connect: Connect) -> None:
    assert connect().associate("STRANGER")[:1] == REJECT


@pytest.mark.fault("DICOM associations", "connections opened and closed again, 500", "no thread and no file stays")
def test_connections_that_close_at_once_leave_no_thread(listener: Watched) -> None:
    for _ in range(500):
        socket.create_connection(("127.0.0.1", listener.port)).close()
