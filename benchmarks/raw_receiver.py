"""The floor of an upload: what comes over a socket goes into files, and nothing is looked at.

`python -m benchmarks.raw_receiver PORT FOLDER`: on each connection two numbers of 8 bytes (little endian), how many
bytes come and how many go into one file, then the bytes; one byte is the answer. As uploads have it, a file is written
under another name and renamed when it is whole.
"""

from __future__ import annotations

import os
import socket
import sys
from itertools import count
from pathlib import Path

_AT_ONCE_BYTES = 1 << 20


def serve(port: int, folder: Path) -> None:
    buffer, names = memoryview(bytearray(_AT_ONCE_BYTES)), count()
    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            connection, _ = listening.accept()
            with connection:
                head = connection.recv(16, socket.MSG_WAITALL)
                left, file_bytes = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
                while left:
                    _receive(connection, folder, str(next(names)), min(left, file_bytes), buffer)
                    left -= min(left, file_bytes)
                connection.sendall(b"!")


def _receive(connection: socket.socket, folder: Path, name: str, left: int, buffer: memoryview) -> None:
    with (folder / "arriving").open("wb", buffering=0) as file:
        while left:
            received = connection.recv_into(buffer, min(left, len(buffer)))
            if not received:
                raise ConnectionResetError
            file.write(buffer[:received])
            left -= received
    os.replace(folder / "arriving", folder / name)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
