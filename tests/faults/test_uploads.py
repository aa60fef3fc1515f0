"""HTTP clients that stall, flood and walk away, against the gateway's real process: its memory and time are bounded, it
answers others meanwhile, and nothing is left of what was not sent whole."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.faults.hostile_http import CONNECTIONS_MAX, WatchedGateway, seconds_until_gone, watched_gateway

MIB = 1024**2
MOST_MEMORY_BYTES = 250_000_000
SOON_S = 15.0  # on a busy machine; the bounds themselves are set to 2 s
ANSWERS_WITHIN_S = 5.0  # on a busy machine; on a quiet one it is under 1 s


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[WatchedGateway]:
    with watched_gateway(tmp_path_factory.mktemp("gateway"), redis_url, impatient=True) as running:
        yield running


@pytest.fixture
def gateway(impatient: WatchedGateway) -> Iterator[WatchedGateway]:
    yield impatient
    deadline = time.monotonic() + SOON_S
    while impatient.left_behind() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert impatient.left_behind() == []
    assert impatient.highest_memory_bytes() < MOST_MEMORY_BYTES


def dripped(connection: socket.socket, content: bytes) -> float:
    """Seconds until the gateway had enough of a byte now and then."""
    began = time.monotonic()
    try:
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
            assert time.monotonic() - began < SOON_S, "still connected"
    except ConnectionError:
        pass
    return time.monotonic() - began


@pytest.mark.fault(
    "HTTP gateway",
    "100 clients that send a byte of a header, or of a body, now and then, or nothing",
    "cut off within two windows of 20 s (2 s in the test); /health/ready answers meanwhile; nothing is left",
)
def test_slow_loris(gateway: WatchedGateway) -> None:
    heads = [gateway.upload_head(size) for size in (10**9, None)]
    begun = {b"": b"", b"GET / HT": b"TP/1.1" * 100} | dict.fromkeys(heads, b"\x00" * 1000)
    connections = [(gateway.connect(), head, rest) for head, rest in list(begun.items()) * 25]
    with ThreadPoolExecutor(len(connections)) as clients:
        for connection, head, _ in connections:
            connection.sendall(head)
        gone = [
            clients.submit(dripped, connection, rest)
            if rest
            else clients.submit(seconds_until_gone, connection, SOON_S)
            for connection, _, rest in connections
        ]
        assert gateway.seconds_to_answer() < ANSWERS_WITHIN_S
        for one in gone:
            one.result()
    for connection, *_ in connections:
        connection.close()


@pytest.mark.fault(
    "HTTP gateway",
    "more connections than 1000 (300 in the test) on which nothing is asked",
    "the oldest are closed at once; a new one is answered",
)
def test_idle_connections_make_room(gateway: WatchedGateway) -> None:
    idle = [gateway.connect() for _ in range(CONNECTIONS_MAX + 50)]
    assert gateway.seconds_to_answer() < ANSWERS_WITHIN_S
    for connection in idle[:50]:
        seconds_until_gone(connection, SOON_S)
    assert gateway.log.read_text().count("is one of too many connections") >= 50
    for connection in idle:
        connection.close()


@pytest.mark.fault(
    "HTTP gateway",
    "an answer that is over before its upload, whose rest then trickles in",
    "the connection is cut off like one before its answer",
)
def test_slow_loris_after_the_answer(gateway: WatchedGateway) -> None:
    with gateway.connect() as connection:
        connection.sendall(gateway.upload_head(10**12))
        assert b" 413 " in connection.recv(1 << 16)
        dripped(connection, bytes(1000))


@pytest.mark.fault(
    "HTTP gateway",
    "clients that ask for a big file, or for events, and never read",
    "cut off after 30 s (2 s in the test) without taking any of it; others are answered meanwhile",
)
def test_clients_that_stop_reading(gateway: WatchedGateway) -> None:
    connections = [gateway.connect(receive_buffer=4096) for _ in range(20)]
    head = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: {gateway.authorization}\r\n\r\n"
    asked = head.encode() * 100  # pipelined: 100 answers of a quarter of a MiB
    for connection in connections:
        connection.sendall(asked)
    assert gateway.seconds_to_answer() < ANSWERS_WITHIN_S
    deadline = time.monotonic() + SOON_S
    for connection in connections:
        with pytest.raises(ConnectionError):  # noqa: PT012  it comes when it comes
            while time.monotonic() < deadline:
                connection.sendall(b"\r\n")
                time.sleep(0.05)
        connection.close()


@pytest.mark.fault(
    "HTTP gateway",
    "200 uploads of 3 MiB at once",
    "each is read whole and answered; memory under 250 MB; /health/ready answers meanwhile, within 5 s",
)
def test_200_uploads_at_once(gateway: WatchedGateway) -> None:
    answers = _uploads_at_once(gateway, 200, bytes(3 * MIB))
    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 422"}


@pytest.mark.fault(
    "HTTP gateway",
    "200 uploads that break off in the middle",
    "nothing of them is left",
)
def test_uploads_that_are_abandoned(gateway: WatchedGateway) -> None:
    connections = [gateway.connect() for _ in range(200)]
    for connection in connections:
        connection.sendall(gateway.upload_head(10 * MIB) + bytes(200_000))
    for connection in connections:
        connection.close()


def _uploads_at_once(gateway: WatchedGateway, count: int, content: bytes) -> list[bytes]:
    def upload(_: int) -> bytes:
        with gateway.connect() as connection:
            connection.sendall(gateway.upload_head(len(content)))
            for at in range(0, len(content), 100_000):
                connection.sendall(content[at : at + 100_000])
            return connection.recv(1 << 16)

    with ThreadPoolExecutor(count) as clients:
        answers = [clients.submit(upload, number) for number in range(count)]
        slowest = 0.0
        while not all(one.done() for one in answers):
            slowest = max(slowest, gateway.seconds_to_answer())
            time.sleep(0.2)
        print(f"slowest answer of /health/ready {slowest:.2f} s, {gateway.highest_memory_bytes() / MIB:.0f} MiB")
        assert slowest < ANSWERS_WITHIN_S
        return [one.result() for one in answers]


@pytest.mark.fault(
    "HTTP gateway",
    "an upload of 1 GiB (5 GiB by hand)",
    "read to its end and judged; memory under 250 MB; /health/ready answers meanwhile, within 1 s on a quiet machine",
)
def test_a_big_upload(gateway: WatchedGateway) -> None:
    piece = bytes(MIB)
    sent = 1024

    def pieces() -> Iterator[bytes]:
        for _ in range(sent):
            yield piece

    def upload() -> httpx.Response:
        headers = {"Content-Type": "application/octet-stream", "Authorization": gateway.authorization}
        return httpx.post(f"{gateway.url}/segment", content=pieces(), headers=headers, timeout=120)

    with ThreadPoolExecutor(1) as client:
        answer = client.submit(upload)
        while not answer.done():
            assert gateway.seconds_to_answer() < ANSWERS_WITHIN_S
            time.sleep(0.3)
    assert answer.result().json()["code"] == "input.not_dicom"
