"""What other processes receive for the listener is kept as what it receives itself; what they do with odd messages is
in test_store_reader."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from pydicom.dataset import Dataset

from services.ingest.intake_rules import IntakeRules
from services.ingest.receiver_pool import ReceiverPool
from services.ingest.store_reader import StoreReader
from services.settings import Settings
from services.store.database import Database
from services.store.rows import JobState
from tests.faults.hostile_dicom import ACCEPT, DATA, HostilePeer, data_set_of, fragment, pdu, store_command
from tests.services.ingest.peers import ListenerProcess, Receiving, association, ct_series, push, wait_until

RECEIVERS = 2


@pytest.fixture
def pool(settings: Settings) -> Iterator[ReceiverPool]:
    with ReceiverPool(settings.model_copy(update={"dicom_receivers": RECEIVERS}), start_method="spawn") as pool:
        yield pool


@pytest.fixture
def receiving(settings: Settings, database: Database, rules: IntakeRules, pool: ReceiverPool) -> Iterator[Receiving]:
    running = Receiving(settings, database, rules, receivers=pool)
    yield running
    running.stop()


@pytest.fixture
def received_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SOP Instance UIDs of what the listener's own process receives."""
    found: list[str] = []
    finish = StoreReader._finish

    def noting(self: StoreReader) -> None:
        assert self._request is not None
        found.append(self._request.sop_instance_uid)
        finish(self)

    monkeypatch.setattr(StoreReader, "_finish", noting)
    return found


def files_of(receiving: Receiving, one: Dataset) -> list[Path]:
    directory = receiving.store.series_directory(str(one.StudyInstanceUID), str(one.SeriesInstanceUID))
    return sorted(directory.glob("*.dcm"))


def is_idle(receiving: Receiving, pool: ReceiverPool) -> bool:
    return len(pool._free) == RECEIVERS and not list(receiving.store.arriving_path.iterdir())


def sending(port: int, slices: list[Dataset]) -> HostilePeer:
    """It has sent the first instance, which the listener receives itself, and the command of the second."""
    peer = HostilePeer(port)
    assert peer.associate()[:1] == ACCEPT
    peer.send(store_command(slices[0]) + rest_of(slices[0]))
    assert peer.receive_pdu()[:1] == DATA
    peer.send(store_command(slices[1]))
    return peer


def rest_of(instance: Dataset) -> bytes:
    return pdu(4, fragment(data_set_of(instance), is_last=True))


def test_series_side_by_side_are_whole(receiving: Receiving, pool: ReceiverPool, received_here: list[str]) -> None:
    series = [ct_series(20, size=64) for _ in range(RECEIVERS)]
    with ThreadPoolExecutor(RECEIVERS) as senders:
        list(senders.map(lambda slices: push(receiving.port, slices), series))
    for slices in series:
        (job,) = receiving.wait_for_state(slices[0], JobState.QUEUED)
        assert job.instance_count == len(slices)
        assert [path.read_bytes()[-64 * 64 * 2 :] for path in files_of(receiving, slices[0])] == [
            one.PixelData for one in sorted(slices, key=lambda one: f"{one.SOPInstanceUID}.dcm")
        ]
    assert sorted(received_here) == sorted(str(slices[0].SOPInstanceUID) for slices in series)
    wait_until(lambda: is_idle(receiving, pool))


def test_one_more_than_there_are_is_received_by_the_listener(
    receiving: Receiving, pool: ReceiverPool, received_here: list[str]
) -> None:
    others = [ct_series(2) for _ in range(RECEIVERS)]
    held = []
    for slices in others:
        held.append(sending(receiving.port, slices))
    wait_until(lambda: not pool._free)
    received_here.clear()
    last = ct_series(3)
    push(receiving.port, last)
    assert received_here == [one.SOPInstanceUID for one in last]
    for peer, slices in zip(held, others, strict=True):
        peer.send(rest_of(slices[1]))
        assert peer.receive_pdu()[:1] == DATA
        peer.close()
    assert len(received_here) == len(last)


def test_who_is_silent_makes_room(receiving: Receiving, pool: ReceiverPool) -> None:
    slices = ct_series(3)
    with association(receiving.port) as opened:
        for one in slices:
            assert opened.send_c_store(one).Status == 0x0000
            wait_until(lambda: len(pool._free) == RECEIVERS)
            assert opened.send_c_echo().Status == 0x0000  # by the listener, in between
    assert receiving.wait_for_state(slices[0], JobState.QUEUED)[0].instance_count == len(slices)


def test_a_copy_changes_nothing(receiving: Receiving, pool: ReceiverPool) -> None:
    slices = ct_series(3)
    push(receiving.port, slices)
    before = {path: path.stat().st_mtime_ns for path in files_of(receiving, slices[0])}
    push(receiving.port, slices)
    assert {path: path.stat().st_mtime_ns for path in files_of(receiving, slices[0])} == before
    assert receiving.wait_for_state(slices[0], JobState.QUEUED)[0].instance_count == len(slices)
    wait_until(lambda: is_idle(receiving, pool))


@pytest.mark.fault(
    "processes",
    "`kill -9` of a process that receives instances for the listener, in the middle of one",
    "its association is aborted, others and the listener go on; sent again, the series is whole, in one job",
)
def test_a_receiver_that_is_killed_takes_one_association_with_it(receiving: Receiving, pool: ReceiverPool) -> None:
    slices = ct_series(4)
    push(receiving.port, slices[:2])
    wait_until(lambda: is_idle(receiving, pool))
    peer = sending(receiving.port, slices[2:])
    wait_until(lambda: len(pool._free) == RECEIVERS - 1)
    for process in pool.processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    assert peer.receive_pdu()[:1] == b"\x07"  # A-ABORT
    peer.close()
    push(receiving.port, slices)
    (job,) = receiving.wait_for_state(slices[0], JobState.QUEUED)
    assert job.instance_count == len(slices)
    assert not list(receiving.store.arriving_path.iterdir())


def test_receivers_end_with_the_listener(settings: Settings, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        listener = ListenerProcess(settings, tmp_path)
        receivers = psutil.Process(listener.process.pid).children()
        assert len(receivers) == settings.dicom_receivers
        push(listener.port, ct_series(2))
        listener.end(number)
        _, left = psutil.wait_procs(receivers, timeout=5)
        assert not left
