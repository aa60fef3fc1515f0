"""Clients that ask over HTTP/1.1, each on a connection of its own, from a process of its own.

`python -m benchmarks.http_load` reads a `Load` as JSON and writes a `Latencies` as JSON. The client does no more than
it must (asyncio, no HTTP library, no garbage collection), so that the server is what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import time

import numpy as np
from pydantic import BaseModel, ConfigDict


class Load(BaseModel):
    """Each client asks for a path, takes the whole answer, thinks for up to twice `think_s`, and so on.

    Attributes:
        paths: one is drawn for every request.
        authorizations: clients take turns in these headers' values.
        think_s: on average; 0: it asks again at once.
        requests: of one client at most; 0: any number.
    """

    model_config = ConfigDict(frozen=True)

    port: int
    paths: tuple[str, ...]
    authorizations: tuple[str, ...]
    clients: int
    think_s: float
    seconds: float
    requests: int = 0
    seed: int = 0


class Latencies(BaseModel):
    """Of all answers, s, from the first byte of the request to the last of the answer; what is not 200 is an error."""

    model_config = ConfigDict(frozen=True)

    seconds: tuple[float, ...]
    errors: int
    took_s: float

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.took_s

    def percentile_ms(self, percent: float) -> float:
        return 1000 * float(np.percentile(self.seconds, percent))


def measured(load: Load) -> Latencies:
    """Raises subprocess.CalledProcessError: a connection broke."""
    command = [sys.executable, "-m", "benchmarks.http_load"]
    said = subprocess.run(command, input=load.model_dump_json(), stdout=subprocess.PIPE, text=True, check=True).stdout
    return Latencies.model_validate_json(said)


class _Connection(asyncio.Protocol):
    """One request at a time; an answer is whole when as many bytes have come as its header announces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""
        self._answer: asyncio.Future[int] | None = None

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """The status of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._received = b""
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_bytes = self._received.find(b"\r\n\r\n")
        if head_bytes < 0 or self._answer is None:
            return
        head = self._received[:head_bytes].lower()
        at = head.find(b"content-length:")
        announced = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._received) >= head_bytes + 4 + announced:
            self._answer.set_result(int(head[9:12]))
            self._answer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.set_exception(ConnectionError("the server closed the connection"))

    def close(self) -> None:
        self._transport.close()


async def _client(load: Load, number: int, begins_at: float, seconds: list[float], statuses: list[int]) -> None:
    chance = random.Random(f"{load.seed} {number}")
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", load.port)
    shown = load.authorizations[number % len(load.authorizations)]
    ends_at, asked = begins_at + load.seconds, 0
    await asyncio.sleep(begins_at - time.perf_counter() + chance.uniform(0, load.think_s))
    while time.perf_counter() < ends_at and not (load.requests and asked >= load.requests):
        path = chance.choice(load.paths)
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {shown}\r\n\r\n".encode()
        begun = time.perf_counter()
        statuses.append(await connection.ask(request))
        seconds.append(time.perf_counter() - begun)
        asked += 1
        if load.think_s:
            await asyncio.sleep(chance.uniform(0, 2 * load.think_s))
    connection.close()


async def _run(load: Load) -> Latencies:
    gc.disable()
    begins_at = time.perf_counter() + 0.5
    seconds: list[float] = []
    statuses: list[int] = []
    await asyncio.gather(*(_client(load, number, begins_at, seconds, statuses) for number in range(load.clients)))
    took_s = time.perf_counter() - begins_at
    errors = sum(status != 200 for status in statuses)
    return Latencies(seconds=tuple(seconds), errors=errors, took_s=took_s)


if __name__ == "__main__":
    print(asyncio.run(_run(Load.model_validate_json(sys.stdin.read()))).model_dump_json())
