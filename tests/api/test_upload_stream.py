"""A body on its way to a thread that takes it in."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from api.upload_stream import FILES_FIELD, _ArrivingFiles, _body, feed_body

PIECE = bytes(100_000)


class Taking:
    """Takes the first piece for as long as the next one has not come."""

    def __init__(self) -> None:
        self.has_more_come = threading.Event()
        self.taken: list[int] = []
        self.is_taking = False

    def feed(self, piece: bytes) -> None:
        if piece and not self.taken:
            self.is_taking = True
            assert self.has_more_come.wait(10), "the next piece was not received meanwhile"
            self.is_taking = False
        self.taken.append(len(piece))

    def end(self) -> None:
        self.taken.append(-1)


def fed(body: Any, *messages: dict[str, Any]) -> None:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        message = left.pop(0)
        if len(left) < len(messages) - 1:
            body.has_more_come.set()
        return message

    async def feed() -> None:
        threads = anyio.CapacityLimiter(1)
        app = SimpleNamespace(state=SimpleNamespace(gateway=SimpleNamespace(upload_threads=threads)))
        request = Request({"type": "http", "headers": [], "app": app}, receive)
        await feed_body(request, body, max_bytes=10**9, max_bytes_around=0)

    asyncio.run(feed())


def _piece(*, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": PIECE, "more_body": more}


def test_the_next_piece_is_received_while_one_is_taken_in() -> None:
    body = Taking()
    fed(body, _piece(more=True), _piece(more=True), _piece(more=False))
    assert body.taken == [len(PIECE)] * 3 + [0, -1]


def test_who_goes_away_is_noticed_after_what_came_before_is_taken_in() -> None:
    body = Taking()
    with pytest.raises(ClientDisconnect):
        fed(body, _piece(more=True), {"type": "http.disconnect"})
    assert not body.is_taking
    assert body.taken == [len(PIECE)]


def test_what_is_refused_is_refused_though_more_comes() -> None:
    class Refusing(Taking):
        def feed(self, piece: bytes) -> None:
            super().feed(piece)
            raise ValueError("refused")

    body = Refusing()
    with pytest.raises(ValueError, match="refused"):
        fed(body, _piece(more=True), _piece(more=True), _piece(more=False))
    assert body.taken == [len(PIECE)]


def test_parts_go_to_their_files_uncopied_and_each_piece_at_once(tmp_path: Path) -> None:
    class Counted(_ArrivingFiles):
        writes = 0

        def write(self, piece: bytes | memoryview) -> None:
            self.writes += 1
            super().write(piece)

    parts, piece_bytes = [bytes([number]) * 1_500_000 for number in range(4)], 1_000_000
    head = b'--limit\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n' % FILES_FIELD.encode()
    whole = b"".join(head + part + b"\r\n" for part in parts) + b"--limit--\r\n"
    pieces = [whole[at : at + piece_bytes] for at in range(0, len(whole), piece_bytes)]
    files = Counted(tmp_path, max_bytes=10**8, max_files=10, check_room=lambda _: None)
    body = _body("multipart/form-data; boundary=limit", {}, files)
    tracemalloc.start()
    try:
        for piece in pieces:
            body.feed(piece)
        body.end()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [(tmp_path / digest).read_bytes() for digest in files.digests] == parts
    assert peak_bytes < piece_bytes // 4
    assert files.writes <= len(pieces) + len(parts)
