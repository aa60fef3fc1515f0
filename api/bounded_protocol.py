"""HTTP/1.1 with every wait for a client bounded; uvicorn by itself waits for a request's bytes, and for a client to
take its answer, without end.

A client that owes bytes (a request that it has not sent whole) has to send 1 KiB/s on the average of every 20 s; one
whose answer waits for it has to take some of it within 30 s. Others are cut off, and what they were sending is removed
like every upload that breaks off. A client that waits for us (events, `?wait=`) owes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

LOOK_S = 20.0
LEAST_BYTES_PER_S = 1024
TAKE_S = 30.0
CONNECTIONS_MAX = 1000
_HEAD_MAX_BYTES = 1 << 16
_PIPELINED_MAX = 100  # requests that wait for the one before, which hardly any client sends
_RECEIVED_AT_ONCE_BYTES = 1 << 15  # asyncio reads 256 KiB, which 200 uploads at a time would make 50 MiB
_RECEIVED_TOGETHER_BYTES = 1 << 20  # by all requests: one upload alone gets the most
_MOST_RECEIVED_AT_ONCE_BYTES = 1 << 20  # what the loop does for one piece costs as much as receiving 256 KiB


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._received = 0
        self._was_held_back = False  # by us, since the last look
        self._in_head = False
        self._head_bytes = 0  # received since the last piece of a body, or the last end of a header

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._receive_at_once(_RECEIVED_AT_ONCE_BYTES)
        self._opened_at = self.loop.time()
        self._look_timer = self.loop.call_later(LOOK_S, self._look)
        self._take_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > CONNECTIONS_MAX:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_timer.cancel()
        self._stop_waiting_for_taking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._head_bytes > _HEAD_MAX_BYTES:
            self.send_400_response("The request's header is too long.")
            return
        if len(self.pipeline) > _PIPELINED_MAX:
            self._cut_off("asks for more than it takes")
            return
        self._was_held_back |= self.flow.read_paused
        has_body = self.cycle is not None and self.cycle.more_body
        share = _RECEIVED_TOGETHER_BYTES // max(1, len(self.tasks)) if has_body else 0
        self._receive_at_once(max(_RECEIVED_AT_ONCE_BYTES, min(share, _MOST_RECEIVED_AT_ONCE_BYTES)))

    def _parse(self, data: bytes) -> None:
        """A request that asks for another protocol is parsed again as if it did not: nobody here speaks one.

        httptools would take its body for that protocol, and the next feed for the next request.
        """
        while len(self.pipeline) <= _PIPELINED_MAX:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                method = self.parser.get_method()
                if method == b"CONNECT":
                    raise httptools.HttpParserError("no tunnels") from None
                line = b"%b %b HTTP/%b" % (method, self.url, self.parser.get_http_version().encode())
                fields = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
                data = b"\r\n".join([line, *fields, b"", b""]) + data[upgrade.args[0] :]

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what follows a body in chunks would be added to them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if not self.parser.should_upgrade():
            if [name for name, _ in self.headers].count(b"host") != 1 and self.parser.get_http_version() == "1.1":
                raise httptools.HttpParserError("RFC 9112 section 3.2: one Host")
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece that nothing waits before is handed on as it is; uvicorn would copy it twice."""
        self._head_bytes = 0
        if not self.cycle.body:
            self.cycle.body = body  # type: ignore[assignment]
            body = b""
        elif isinstance(self.cycle.body, bytes):
            self.cycle.body = bytearray(self.cycle.body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline:  # what is asked waits where it is
            self.flow.pause_reading()

    def _receive_at_once(self, count: int) -> None:
        self.transport.max_size = count  # type: ignore[attr-defined]

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting_for_taking()
        self._take_timer = self.loop.call_later(TAKE_S, self._cut_off, "does not take its answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting_for_taking()

    def _look(self) -> None:
        owes = self.cycle is None or self.cycle.response_complete or self.cycle.more_body
        held_back = self._was_held_back or self.flow.read_paused
        if owes and not held_back and self._received < LOOK_S * LEAST_BYTES_PER_S:
            self._cut_off("sends its request too slowly")
            return
        self._received, self._was_held_back = 0, False
        self._look_timer = self.loop.call_later(LOOK_S, self._look)

    def _make_room(self) -> None:
        """One of too many goes: the oldest on which there is no request, or this one."""
        idle: list[BoundedProtocol] = []
        for one in self.connections:
            if isinstance(one, BoundedProtocol) and one.cycle is None:
                idle.append(one)
        min(idle, key=lambda one: one._opened_at)._cut_off("is one of too many connections")

    def _stop_waiting_for_taking(self) -> None:
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def _cut_off(self, why: str) -> None:
        log.warning("cut off %s, which %s", self.client[0] if self.client else "a client", why)
        self.transport.abort()
