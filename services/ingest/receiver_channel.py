"""Between the listener and a process that receives for it: JSON, bytes beside it, and an open file."""

from __future__ import annotations

import json
import socket
import struct
from array import array
from typing import Any, NamedTuple

_HEADER = struct.Struct(">II?")  # bytes of JSON, bytes beside it, whether a descriptor comes along
_AT_ONCE_BYTES = 4096
_ONE_DESCRIPTOR_BYTES = socket.CMSG_SPACE(array("i").itemsize)


class Message(NamedTuple):
    said: dict[str, Any]
    content: bytes = b""
    descriptor: int | None = None


class Channel:
    """One end."""

    def __init__(self, connection: socket.socket) -> None:
        """Of a pair of Unix sockets."""
        self._connection = connection
        self._ahead = b""  # of the next message
        self._descriptors = array("i")

    def send(self, said: dict[str, Any], content: bytes = b"", *, descriptor: int | None = None) -> None:
        """`descriptor` is one of an open file; the other side gets one of its own.

        Raises:
            OSError: the other side is gone.
        """
        text = json.dumps(said).encode()
        whole = _HEADER.pack(len(text), len(content), descriptor is not None) + text + content
        if descriptor is not None:
            whole = whole[socket.send_fds(self._connection, [whole], [descriptor]) :]
        if whole:
            self._connection.sendall(whole)

    def receive(self) -> Message | None:
        """The next one; None where the other side is gone."""
        received, self._ahead = self._ahead, b""
        try:
            while len(received) < _HEADER.size or len(received) < _length(received):
                more, ancillary, _, _ = self._connection.recvmsg(_AT_ONCE_BYTES, _ONE_DESCRIPTOR_BYTES)
                if not more:
                    return None
                for _, _, data in ancillary:  # it may belong to a message that comes behind this one
                    self._descriptors.frombytes(data)
                received += more
        except ConnectionError:
            return None
        text_bytes, _, has_descriptor = _HEADER.unpack_from(received)
        text_end, end = _HEADER.size + text_bytes, _length(received)
        self._ahead = received[end:]
        # The kernel drops it where this process has too many files open: then it is as if the disk had been full.
        descriptor = self._descriptors.pop(0) if has_descriptor and self._descriptors else None
        return Message(json.loads(received[_HEADER.size : text_end]), received[text_end:end], descriptor)

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()


def _length(received: bytes) -> int:
    text_bytes, content_bytes, _ = _HEADER.unpack_from(received)
    return int(_HEADER.size + text_bytes + content_bytes)
