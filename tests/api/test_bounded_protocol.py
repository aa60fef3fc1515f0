"""A request's body on its way through the protocol: the same as through uvicorn's own, and copied less."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from api.bounded_protocol import BoundedProtocol

BODY = bytes(range(256)) * 400
LAST = b"POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nthird"
WITH_LENGTH = b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
)
GET = b"GET /zero HTTP/1.1\r\nHost: a\r\n\r\n"


def _upgrading(request: bytes) -> bytes:
    return request.replace(b"Host: a\r\n", b"Host: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n")


async def digesting(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with what came."""
    if scope["type"] != "http":
        return
    digest, more = hashlib.sha256(scope["path"].encode()), True
    while more:
        message = await receive()
        digest.update(message.get("body", b""))
        more = message.get("more_body", False)
    said = digest.hexdigest().encode()
    length = str(len(said)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": said})


async def said(
    protocol_class: type[HttpToolsProtocol | H11Protocol], pieces: Sequence[bytes], app: Any = digesting
) -> bytes:
    """What is answered to `pieces`, each received in one piece, until the connection is closed."""
    config = uvicorn.Config(app, http=protocol_class, ws="none", log_config=None)
    config.load()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: protocol_class(config, ServerState(), {}), sock=ours)
    for piece in pieces:
        if not protocol.transport.is_closing():
            protocol.data_received(piece)
        await asyncio.sleep(0)
    answers = b""
    with theirs, suppress(ConnectionError):
        while more := await asyncio.wait_for(loop.sock_recv(theirs, 1 << 16), 10):
            answers += more
    return answers


def digests(protocol_class: type[HttpToolsProtocol | H11Protocol], pieces: Sequence[bytes]) -> list[bytes]:
    return re.findall(rb"[0-9a-f]{64}", asyncio.run(said(protocol_class, pieces)))


@given(
    first=st.sampled_from([WITH_LENGTH, CHUNKED, *(_upgrading(one) for one in (WITH_LENGTH, CHUNKED, GET))]),
    sizes=st.lists(st.integers(1, 3000) | st.integers(60_000, 90_000), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_bodies_are_taken_in_as_by_uvicorns_other_protocol_however_they_are_cut(first: bytes, sizes: list[int]) -> None:
    """Also where another protocol is asked for, as Java's client does: it stays HTTP/1.1."""
    stream = first + LAST
    pieces: list[bytes] = []
    while stream:
        size = sizes[len(pieces) % len(sizes)] if len(pieces) < 50 else len(stream)
        pieces.append(stream[:size])
        stream = stream[size:]
    ours = digests(BoundedProtocol, pieces)
    assert len(ours) == 2
    assert ours == digests(H11Protocol, pieces)


def test_a_piece_of_a_body_is_handed_on_without_a_copy() -> None:
    parsed: list[bytes] = []
    received: list[bytes] = []

    class Noting(BoundedProtocol):
        def on_body(self, body: bytes) -> None:
            parsed.append(body)
            super().on_body(body)

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        async def note() -> Any:
            message = await receive()
            received.append(message["body"])
            return message

        await digesting(scope, note, send)

    head, piece = WITH_LENGTH[: -len(BODY)], len(BODY) // 8
    pieces = [head] + [BODY[at : at + piece] for at in range(0, len(BODY), piece)] + [LAST]
    asyncio.run(said(Noting, pieces, noting))
    assert len(parsed) == 9
    assert all(one in map(id, received) for one in map(id, parsed))


def test_many_small_chunks_in_one_piece_are_put_together() -> None:
    chunks = b"1\r\na\r\n" * 5000
    head = b"POST /first HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    [first, _] = digests(BoundedProtocol, [head + chunks + b"0\r\n\r\n" + LAST])
    assert first.decode() == hashlib.sha256(b"/first" + b"a" * 5000).hexdigest()


@pytest.mark.parametrize("begun", [b"GET / HTTP/1.1\r\n", CHUNKED[:-2]])
def test_headers_without_end_are_refused(begun: bytes) -> None:
    """Those before a body, and those behind one that came in chunks."""
    for endless in (b"a: b\r\n" * 100, b"a" * 1000, b"a: " + b"b" * 1000):
        assert b"HTTP/1.1 400" in asyncio.run(said(BoundedProtocol, [begun, *[endless] * 200]))


def test_what_follows_a_body_is_no_header() -> None:
    seen: list[Any] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        await digesting(scope, receive, send)
        seen.append(dict(scope["headers"]))

    asyncio.run(said(BoundedProtocol, [CHUNKED[:-2] + b"Authorization: Bearer x\r\n\r\n" + LAST], noting))
    assert [b"authorization" in headers for headers in seen] == [False, False]


def test_who_asks_and_asks_before_the_first_answer_is_cut_off() -> None:
    assert asyncio.run(said(BoundedProtocol, [GET * 1000])) == b""
    assert len(digests(BoundedProtocol, [GET * 50 + LAST])) == 51


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
def test_a_request_has_one_host(hosts: bytes) -> None:
    asked = GET.replace(b"Host: a\r\n", hosts)
    for protocol_class in (BoundedProtocol, H11Protocol):
        assert asyncio.run(said(protocol_class, [asked])).startswith(b"HTTP/1.1 400")
