"""The floor of an upload: what comes over a socket goes into a file, and nothing is looked at.

`python -m benchmarks.raw_receiver PORT FOLDER`: on each connection 8 bytes with the length (little endian), then the
bytes; one byte is the answer.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

_AT_ONCE_BYTES = 1 << 20


def serve(port: int, folder: Path) -> None:
    buffer = memoryview(bytearray(_AT_ONCE_BYTES))
    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            connection, _ = listening.accept()
            with connection, (folder / "received").open("wb", buffering=0) as file:
                left = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little")
                while left and (count := connection.recv_into(buffer)):
                    file.write(buffer[:count])
                    left -= count
                connection.sendall(b"!")


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
