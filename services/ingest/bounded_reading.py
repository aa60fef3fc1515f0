"""Reading from a connection with every wait bounded."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import time

_NEARLY = 0.9  # of the time that is left: a time-out for a PDU need not be more exact


class BoundedReading:
    """What a peer sends. Call from one thread at a time.

    The kernel keeps to the time-outs by itself; Python's own time-out takes two more system calls for every piece, and
    lets go of the interpreter for each. TLS needs Python's: it reads when it wants to.
    """

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        """`timeout_s` is for one PDU to come in whole, and for one to be taken by the peer."""
        self.kernel_waits = not isinstance(connection, ssl.SSLSocket)
        self._connection = connection
        self._timeout_s = timeout_s
        self._receive_timeout_s = 0.0
        self._ahead = bytearray()  # put back: comes before what the peer sends next
        if self.kernel_waits:
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout_s))

    @property
    def is_ahead(self) -> bool:
        """Whether there is something to read that the kernel does not know of."""
        return bool(self._ahead) or (isinstance(self._connection, ssl.SSLSocket) and self._connection.pending() > 0)

    def next_due(self) -> float:
        """When a PDU that begins now has to be here."""
        return time.monotonic() + self._timeout_s

    def receive(self, room: memoryview, least: int, due: float) -> int:
        """Bytes received: fewer than `least` where the peer has hung up, more where they are there already.

        Raises:
            OSError: too late.
        """
        at = 0
        if self._ahead:
            at = min(len(self._ahead), len(room))
            room[:at] = self._ahead[:at]
            del self._ahead[:at]
        waits_for_all = at > 0 or least == len(room)
        while at < least:
            left_s = due - time.monotonic()
            if left_s <= 0:
                raise _too_late()
            got = self._receive_into(room[at:least] if waits_for_all else room, left_s, waits_for_all)
            if not got:  # the peer has hung up
                break
            at += got
            waits_for_all = True
        return at

    def put_back(self, content: bytes) -> None:
        """To be received again, before what comes after it."""
        self._ahead[:0] = content

    def resume(self, ahead: bytes) -> None:
        """Another process has read from the connection; this much was read and is not used."""
        self._receive_timeout_s = 0.0  # it has set its own
        self.put_back(ahead)

    def take_ahead(self) -> bytes:
        """What was put back and not received again."""
        ahead, self._ahead = bytes(self._ahead), bytearray()
        return ahead

    def _receive_into(self, room: memoryview, left_s: float, waits_for_all: bool) -> int:
        if not self.kernel_waits:
            self._connection.settimeout(left_s)
            return self._connection.recv_into(room)
        if not _NEARLY * self._receive_timeout_s <= left_s <= self._receive_timeout_s:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(left_s))
            self._receive_timeout_s = left_s
        try:
            return self._connection.recv_into(room, 0, socket.MSG_WAITALL if waits_for_all else 0)
        except BlockingIOError as error:
            raise _too_late() from error


def _too_late() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "the PDU took too long")


def _timeval(seconds: float) -> bytes:
    whole, part = divmod(max(seconds, 0.001), 1)
    return struct.pack("@ll", int(whole), int(part * 1e6))
