"""HTTP/1.1 with every wait for a client bounded; uvicorn by itself waits for a request's bytes, and for a client to
take its answer, without end.

A client that owes bytes (a request that it has not sent whole) has to send 1 KiB/s on the average of every 20 s; one
whose answer waits for it has to take some of it within 30 s. Others are cut off, and what they were sending is removed
like every upload that breaks off. A client that waits for us (events, `?wait=`) owes nothing.
"""

from __future__ import annotations

import asyncio
import logging

import h11
from h11._readers import ContentLengthReader
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

LOOK_S = 20.0
LEAST_BYTES_PER_S = 1024
TAKE_S = 30.0
CONNECTIONS_MAX = 1000
_RECEIVED_AT_ONCE_BYTES = 1 << 15  # asyncio reads 256 KiB, which 200 uploads at a time would make 50 MiB
_RECEIVED_TOGETHER_BYTES = 1 << 20  # by all requests: one upload alone gets the most
_MOST_RECEIVED_AT_ONCE_BYTES = 1 << 20  # what the loop does for one piece costs as much as receiving 256 KiB


class BoundedProtocol(H11Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._receive_at_once(_RECEIVED_AT_ONCE_BYTES)
        self._opened_at = self.loop.time()
        self._received = 0
        self._was_held_back = False  # by us, since the last look
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
        if not self._takes_as_body(data):
            super().data_received(data)
        self._was_held_back |= self.flow.read_paused
        if self.conn.their_state is h11.SEND_BODY:
            share = _RECEIVED_TOGETHER_BYTES // max(1, len(self.tasks))
            self._receive_at_once(max(_RECEIVED_AT_ONCE_BYTES, min(share, _MOST_RECEIVED_AT_ONCE_BYTES)))

    def _takes_as_body(self, data: bytes) -> bool:
        """Whether `data` was handed on as it is, a piece from the middle of a body with a length.

        h11 and uvicorn would copy it five times. The last piece is theirs: with it the request ends.
        """
        reader, body = self.conn._reader, self.cycle.body if self.cycle else b""
        if (
            not isinstance(reader, ContentLengthReader)
            or self.conn.states != {h11.CLIENT: h11.SEND_BODY, h11.SERVER: h11.SEND_RESPONSE}
            or self.conn.they_are_waiting_for_100_continue
            or self.conn.trailing_data[0]
            or len(data) >= reader._remaining
        ):
            return False
        reader._remaining -= len(data)
        self.cycle.body = body + data if body else data  # type: ignore[assignment]
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()
        return True

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
        owes = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
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
