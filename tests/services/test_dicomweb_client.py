"""The client goes where the table says, with its credentials, and trusts whom the settings trust."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from imaging.errors import ConfigurationError, NodeUnavailable
from services.delivery.destinations import DicomWeb
from services.dicomweb_client import dicomweb_client
from services.retrieve.dicomweb_archive import DicomWebArchive
from services.settings import Settings
from tests.services.certificates import Authority


class Telling(BaseHTTPRequestHandler):
    """Answers with the path and the credentials it was asked with."""

    def do_GET(self) -> None:  # the name is http.server's
        if "elsewhere" in self.path:
            self.send_response(307)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            self.end_headers()
            return
        said = f"{self.path} {self.headers.get('Authorization')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Telling)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def service(server: ThreadingHTTPServer, scheme: str = "http", **more: object) -> DicomWeb:
    return DicomWeb.model_validate(
        {"name": "archive", "url": f"{scheme}://127.0.0.1:{server.server_port}/dicom-web", **more}
    )


def ask(service: DicomWeb, settings: Settings) -> str:
    with dicomweb_client(service, settings) as client:
        return client.get("studies/1.2").raise_for_status().text


def test_credentials_are_read_from_their_files(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("opensesame\n")
    assert ask(service(server), Settings()) == "/dicom-web/studies/1.2 None"
    assert ask(service(server, token_file=secret), Settings()).endswith(" Bearer opensesame")
    basic = service(server, username="us", password_file=secret)
    assert ask(basic, Settings()).endswith(" Basic dXM6b3BlbnNlc2FtZQ==")
    secret.write_text("")
    with pytest.raises(ConfigurationError, match="holds no secret"):
        dicomweb_client(basic, Settings())


def test_a_server_is_believed_only_with_a_trusted_certificate(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "Other CA")
    shown = authority.issue("archive")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    secure = service(server, "https")
    assert ask(secure, Settings(tls_trusted=authority.certificate)) == "/dicom-web/studies/1.2 None"
    for trusted in (other.certificate, None):
        with pytest.raises(httpx.ConnectError, match="certificate"):
            ask(secure, Settings(tls_trusted=trusted))


@pytest.mark.fault(
    "Outgoing requests",
    "an archive that redirects to the metadata service of the cloud",
    "not followed: it is an error",
)
def test_a_redirection_leads_nowhere(server: ThreadingHTTPServer) -> None:
    with dicomweb_client(service(server), Settings()) as client:
        assert client.get("studies/elsewhere").status_code == 307
        assert not client.follow_redirects
    archive = DicomWebArchive(service(server, name="elsewhere"), Settings())
    with pytest.raises(NodeUnavailable, match="answered 307"):
        archive.instances("elsewhere", "1.2")


@pytest.mark.parametrize(
    "more",
    [
        {"url": "ftp://archive"},
        {"url": "http://us:secret@archive/"},
        {"username": "us"},
        {"username": "us", "password_file": "p", "token_file": "t"},
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"url|credentials|username|token"):
        DicomWeb.model_validate({"name": "archive", "url": "http://archive/", **more})
