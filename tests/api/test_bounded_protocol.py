"""A request's body on its way through the protocol: the same as through uvicorn's own, and copied less."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import Sequence
from typing import Any

import h11
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.bounded_protocol import BoundedProtocol

BODY = bytes(range(256)) * 400
LAST = b"POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\nthird"
WITH_LENGTH = b"POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
)


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


async def answered(protocol_class: type[H11Protocol], pieces: Sequence[bytes]) -> list[bytes]:
    """The digests in the answers to `pieces`, each received in one piece."""
    config = uvicorn.Config(digesting, http=protocol_class, ws="none", log_config=None)
    config.load()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_connection(lambda: protocol_class(config, ServerState(), {}), sock=ours)
    for piece in pieces:
        protocol.data_received(piece)
        await asyncio.sleep(0)
    said = b""
    while more := await asyncio.wait_for(loop.sock_recv(theirs, 1 << 16), 10):
        said += more
    theirs.close()
    return re.findall(rb"[0-9a-f]{64}", said)


@given(
    first=st.sampled_from([WITH_LENGTH, CHUNKED]),
    sizes=st.lists(st.integers(1, 3000) | st.integers(60_000, 90_000), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_bodies_are_taken_in_as_by_uvicorn_however_they_are_cut(first: bytes, sizes: list[int]) -> None:
    stream = first + LAST
    pieces: list[bytes] = []
    while stream:
        size = sizes[len(pieces) % len(sizes)] if len(pieces) < 50 else len(stream)
        pieces.append(stream[:size])
        stream = stream[size:]
    ours = asyncio.run(answered(BoundedProtocol, pieces))
    assert len(ours) == 2
    assert ours == asyncio.run(answered(H11Protocol, pieces))


def test_the_middle_of_a_body_is_handed_on_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    receive_data = h11.Connection.receive_data

    def counted(connection: h11.Connection, data: bytes) -> None:
        nonlocal parsed
        parsed += len(data)
        receive_data(connection, data)

    monkeypatch.setattr(h11.Connection, "receive_data", counted)
    head, piece = WITH_LENGTH[: -len(BODY)], len(BODY) // 8
    pieces = [head] + [BODY[at : at + piece] for at in range(0, len(BODY), piece)] + [LAST]
    assert len(asyncio.run(answered(BoundedProtocol, pieces))) == 2
    assert parsed == len(head) + piece + len(LAST)
