"""HL7 v2 to an engine that parses it, and what its acknowledgments mean."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hl7
import pytest
from hl7.mllp import start_hl7_server

from imaging.errors import DeliveryError
from services.delivery.destinations import Hl7
from services.delivery.mllp import send_message
from services.embedded_redis import free_port
from services.settings import Settings
from tests.services.certificates import Authority

MESSAGE_ID = "6f1f7a52-5a3e-4b2f-9a44-2c1de28f1f0e"
MESSAGE = "MSH|^~\\&|EMBOLENS||RIS||20200101||ORU^R01^ORU_R01|6f1f7a525a3e4b2f9a44|P|2.5.1\rPID|1||P1||Müller\r"


class Engine:
    """The server of the `hl7` package, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self.received: list[hl7.Message] = []
        self.code: str = "AA"
        self.edit: Callable[[str], str] = str
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.port = 0

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        async def start() -> int:
            self._server = await start_hl7_server(self._serve, "127.0.0.1", 0, encoding="utf-8", ssl=tls)
            return int(self._server.sockets[0].getsockname()[1])

        self.port = asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

    def stop(self) -> None:
        async def stop() -> None:
            if self.port:
                self._server.close()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def table(self, **more: object) -> Hl7:
        return Hl7.model_validate({"name": "engine", "host": "127.0.0.1", "port": self.port} | more)

    async def _serve(self, reader: hl7.mllp.HL7StreamReader, writer: hl7.mllp.HL7StreamWriter) -> None:
        message = await reader.readmessage()
        self.received.append(message)
        answer = self.edit(str(message.create_ack(self.code)))
        writer.writemessage(hl7.parse(answer))
        await writer.drain()
        writer.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.stop()


def test_an_engine_takes_the_message_as_it_was_sent(engine: Engine, settings: Settings) -> None:
    engine.start()
    send_message(engine.table(), MESSAGE_ID, MESSAGE, settings)
    (received,) = engine.received
    assert str(received).strip("\r") == MESSAGE.strip("\r")


@pytest.mark.parametrize(("code", "told"), [("AE", "AE (error)"), ("AR", "AR (reject)"), ("ZZ", "ZZ (no known code)")])
def test_what_is_not_accepted_is_an_error_with_its_code(
    engine: Engine, settings: Settings, code: str, told: str
) -> None:
    engine.code = code
    engine.start()
    with pytest.raises(DeliveryError, match="engine answered") as raised:
        send_message(engine.table(), MESSAGE_ID, MESSAGE, settings)
    assert told in raised.value.message


def test_the_acknowledgment_of_another_message_accepts_nothing(engine: Engine, settings: Settings) -> None:
    engine.edit = lambda answer: answer.replace("6f1f7a525a3e4b2f9a44", "another")
    engine.start()
    with pytest.raises(DeliveryError, match="acknowledged another message"):
        send_message(engine.table(), MESSAGE_ID, MESSAGE, settings)


def test_a_commit_accept_is_enough(engine: Engine, settings: Settings) -> None:
    engine.code = "CA"
    engine.start()
    send_message(engine.table(), MESSAGE_ID, MESSAGE, settings)


def test_over_tls_the_certificate_is_checked(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    shown = authority.issue("engine")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    engine.start(context)
    with pytest.raises(DeliveryError, match="SSLCertVerificationError"):
        send_message(engine.table(tls=True), MESSAGE_ID, MESSAGE, settings)
    trusting = settings.model_copy(update={"tls_trusted": authority.certificate})
    send_message(engine.table(tls=True), MESSAGE_ID, MESSAGE, trusting)
    assert len(engine.received) == 1


def test_an_engine_that_is_down_or_hangs_up_is_an_error(settings: Settings) -> None:
    down = Hl7(name="engine", host="127.0.0.1", port=free_port())
    with pytest.raises(DeliveryError, match="ConnectionRefusedError"):
        send_message(down, MESSAGE_ID, MESSAGE, settings)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)

        thread = threading.Thread(target=hang_up)
        thread.start()
        rude = Hl7(name="engine", host="127.0.0.1", port=server.getsockname()[1])
        with pytest.raises(DeliveryError, match="no whole acknowledgment"):
            send_message(rude, MESSAGE_ID, MESSAGE, settings)
        thread.join()
