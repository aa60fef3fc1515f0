"""One batch to a syslog server over TLS, and whether it was read.

Done by hand, because `SSLSocket.unwrap` may return without the server's close_notify. With TLS 1.3 the handshake ends
for the client before the server has judged its certificate, and a server that refuses it may close in order: so the
first thing the server says afterwards is waited for, which is a session ticket where we are let in.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_TIMEOUT_S = 20.0
_LET_IN_WITHIN_S = 1.0
_PIECE_BYTES = 16 * 1024


def send_and_close(address: tuple[str, int], context: ssl.SSLContext, content: bytes) -> None:
    """Send, end our side (close_notify), and wait for the server's close_notify, which it sends after reading all.

    Raises:
        OSError: it may not have arrived (ssl.SSLError is one).
    """
    with socket.create_connection(address, _TIMEOUT_S) as plain:
        session = _Session(plain, context, address[0])
        session.until_done(session.tls.do_handshake)
        if session.tls.version() == "TLSv1.3":
            session.wait_until_let_in()
        for begin in range(0, len(content), _PIECE_BYTES):
            piece = content[begin : begin + _PIECE_BYTES]
            session.until_done(lambda piece=piece: session.tls.write(piece))  # type: ignore[misc]
        session.until_done(session.tls.unwrap)


class _Session:
    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def until_done(self, step: Callable[[], T]) -> T:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            else:
                self._flush()
                return done

    def wait_until_let_in(self) -> None:
        """Raises OSError: the server ended the connection. One that says nothing for a second has let us in."""
        self._plain.settimeout(_LET_IN_WITHIN_S)
        try:
            self._receive()
        except TimeoutError:
            return
        finally:
            self._plain.settimeout(_TIMEOUT_S)
        with suppress(ssl.SSLWantReadError):
            self.tls.read(1)  # takes tickets without returning; anything else is the end, or no syslog server
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the syslog server does not let us in")

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())

    def _receive(self) -> None:
        received = self._plain.recv(_PIECE_BYTES)
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()
