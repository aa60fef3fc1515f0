"""Posted, signed as Standard Webhooks has it, and only to where it was meant to go."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from imaging.errors import DeliveryError
from services.delivery.destinations import Webhook
from services.delivery.relay import Relay
from services.delivery.webhook import post_notification
from services.settings import Settings
from services.store.jobs import JobStore, Notification
from services.store.outbox import Outbox
from services.store.rows import JobRow
from tests.services.certificates import Authority
from tests.services.delivery.peers import only_row, wait_until, write_destinations

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
MESSAGE_ID = "6f1f7a52-5a3e-4b2f-9a44-2c1de28f1f0e"
BODY = json.dumps({"type": "result.embolus_found", "data": {"headline": "Grüße"}}, ensure_ascii=False)
FINDINGS = {"outcome": "embolus_found", "reasons": []}


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # the name is http.server's
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


def webhook(receiver: Receiver, secret_file: Path, **more: object) -> Webhook:
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    values: dict[str, object] = {"name": "ris", "url": url, "secret_file": secret_file, "allow_private": True}
    return Webhook.model_validate(values | more)


def test_the_signature_is_what_a_receiver_of_standard_webhooks_verifies(
    receiver: Receiver, secret_file: Path, settings: Settings
) -> None:
    post_notification(webhook(receiver, secret_file), MESSAGE_ID, BODY, settings)
    ((headers, body),) = receiver.received
    assert Verifier(SECRET).verify(body, headers) == json.loads(BODY)
    assert headers["webhook-id"] == MESSAGE_ID
    assert headers["host"] == f"127.0.0.1:{receiver.server_port}"
    for changed in ({"webhook-id": "another"}, {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}):
        with pytest.raises(WebhookVerificationError):
            Verifier(SECRET).verify(body, headers | changed)
    with pytest.raises(WebhookVerificationError):
        Verifier(SECRET).verify(body + b" ", headers)


NOT_PUBLIC = (
    "127.0.0.1 localhost [::1] 0.0.0.0 2130706433 10.0.0.1 192.168.1.1 [::ffff:10.0.0.1] [fd00::1] 100.64.0.1 "
    "169.254.169.254 [fe80::1] 224.0.0.1 0xa9fea9fe 0251.0376.0251.0376 [::127.0.0.1] [64:ff9b::169.254.169.254] "
    "[64:ff9b:1::10.0.0.1] [2002:7f00:1::1] [::ffff:169.254.169.254]"
)


@pytest.mark.parametrize("host", NOT_PUBLIC.split())
def test_an_address_that_is_not_public_is_refused(secret_file: Path, settings: Settings, host: str) -> None:
    inside = Webhook.model_validate({"name": "ris", "url": f"http://{host}:1/", "secret_file": secret_file})
    with pytest.raises(DeliveryError) as raised:
        post_notification(inside, MESSAGE_ID, BODY, settings)
    assert raised.value.code == "delivery.private_address"
    assert "allow_private is not set" in raised.value.message


def test_a_name_that_leads_elsewhere_later_is_not_looked_up_again(
    receiver: Receiver, secret_file: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after DNS rebinding: the address that was looked at is the one that is connected to."""
    asked = []
    real = socket.getaddrinfo

    def lookup(host: str, *arguments: Any, **keywords: Any) -> list[Any]:
        asked.append(host)
        led_to = {"ris.example": "127.0.0.1" if len(asked) == 1 else "10.255.255.1"}.get(host, host)
        return real(led_to, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    url = f"http://ris.example:{receiver.server_port}/hook"
    post_notification(webhook(receiver, secret_file, url=url), MESSAGE_ID, BODY, settings)
    assert receiver.received[0][0]["host"] == f"ris.example:{receiver.server_port}"
    assert asked == ["ris.example", "127.0.0.1"]


def test_over_tls_the_certificate_is_checked(
    receiver: Receiver, secret_file: Path, settings: Settings, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "Other CA")
    shown = authority.issue("ris")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    secure = webhook(receiver, secret_file, url=f"https://127.0.0.1:{receiver.server_port}/hook")
    trusting = settings.model_copy(update={"tls_trusted": authority.certificate})
    post_notification(secure, MESSAGE_ID, BODY, trusting)
    assert len(receiver.received) == 1
    with pytest.raises(DeliveryError, match="ConnectError"):
        post_notification(secure, MESSAGE_ID, BODY, settings.model_copy(update={"tls_trusted": other.certificate}))


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "no base64!"])
def test_a_secret_that_protects_nothing_is_refused(
    receiver: Receiver, secret_file: Path, settings: Settings, secret: str
) -> None:
    secret_file.write_text(secret)
    with pytest.raises(DeliveryError, match="secret"):
        post_notification(webhook(receiver, secret_file), MESSAGE_ID, BODY, settings)
    assert receiver.received == []


@pytest.fixture
def told_job(jobs: JobStore) -> Callable[..., JobRow]:
    """A job whose only delivery is this notification."""

    def make(destination: str, message: str) -> JobRow:
        job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
        jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
        jobs.claim(job.id, "worker", lease_s=60)
        told = Notification(destination, MESSAGE_ID, message)
        jobs.finish(job.id, "worker", findings=FINDINGS, stage_seconds={}, deliveries=[told])
        return job

    return make


def test_it_is_posted_until_it_is_taken_with_the_same_id_and_body(
    relay: Relay,
    settings: Settings,
    outbox: Outbox,
    jobs: JobStore,
    told_job: Callable[..., JobRow],
    receiver: Receiver,
    secret_file: Path,
) -> None:
    receiver.statuses = [500, 302]
    write_destinations(
        settings,
        f'[[webhooks]]\nname = "ris"\nurl = "http://127.0.0.1:{receiver.server_port}/hook"\n'
        f'secret_file = "{secret_file}"\nallow_private = true\n',
    )
    job = told_job("webhook:ris", BODY)
    relay.deliver_due()
    assert only_row(outbox, job).last_error == "webhook ris answered 500"
    assert jobs.get(job.id).state == "delivering"

    def completed() -> bool:
        relay.deliver_due()
        return jobs.get(job.id).state == "completed"

    wait_until(completed)
    assert len(receiver.received) == 3
    assert {headers["webhook-id"] for headers, _ in receiver.received} == {MESSAGE_ID}
    assert {body for _, body in receiver.received} == {BODY.encode()}
    assert only_row(outbox, job).message is None
