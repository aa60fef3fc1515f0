"""The audit trail at a real syslog server, over TLS with certificates of both sides."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from imaging.errors import ConfigurationError
from services.audit.events import Peer, Subject, instances_received, queried
from services.audit.forwarder import AuditForwarder
from services.audit.trail import AuditTrail
from services.audit.verifier import verify
from services.embedded_redis import free_port
from services.settings import Settings
from tests.end_to_end.hospital import wait_for
from tests.services.audit.syslog_server import running_syslog
from tests.services.certificates import Authority

ROOT = Path(__file__).resolve().parents[3]
PEER = Peer("CT1", "10.0.0.7")
RFC_5424 = re.compile(
    r"<85>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 [!-~]+ embolens [!-~]+ IHE\+DICOM - \ufeff(<AuditMessage>.*)"
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


def settings_for(tmp_path: Path, authority: Authority, port: int, **more: object) -> Settings:
    ours = authority.issue("embolens")
    return Settings(
        data_dir=tmp_path / "data",
        audit_syslog=f"127.0.0.1:{port}",
        tls_certificate=ours.certificate,
        tls_key=ours.key,
        tls_trusted=authority.certificate,
    ).model_copy(update=more)


def test_every_message_arrives_once_as_the_standard_writes_it(tmp_path: Path, authority: Authority) -> None:
    with running_syslog(tmp_path / "syslog", authority, authority.issue("syslog")) as server:
        settings = settings_for(tmp_path, authority, server.port)
        for process in ("gateway", "listener"):
            for number in range(3):
                instances_received(AuditTrail(settings, process), PEER, Subject(f"1.2.{number}", "Jürgen\nÄ"))
        forwarder = AuditForwarder(settings)
        assert forwarder.forward() == 6
        assert forwarder.forward() == 0
        queried(AuditTrail(settings, "gateway"), PEER, "/studies", "PatientID=1")
        assert AuditForwarder(settings).forward() == 1  # a new relay goes on where the other one was
        lines = server.wait_for_lines(7)
    assert len(lines) == 7
    for number, line in enumerate(lines):
        matched = RFC_5424.fullmatch(line)
        assert matched, line
        ElementTree.fromstring(matched[1])
        (tmp_path / f"{number}.xml").write_text(matched[1], encoding="utf-8")
    schema = str(Path(__file__).with_name("audit_message.rng"))
    files = [str(tmp_path / f"{number}.xml") for number in range(7)]
    subprocess.run(["xmllint", "--noout", "--relaxng", schema, *files], check=True, capture_output=True)


@pytest.mark.fault(
    "audit",
    "the syslog server away while messages are written, then back",
    "all messages arrive, in order, from the files themselves",
)
def test_what_was_written_while_the_server_was_away_arrives_later(tmp_path: Path, authority: Authority) -> None:
    port = free_port()
    settings = settings_for(tmp_path, authority, port)
    credentials = authority.issue("syslog")
    trail, forwarder = AuditTrail(settings, "gateway"), AuditForwarder(settings)
    for number in range(1200):  # more than one batch
        queried(trail, PEER, "/studies", f"PatientID={number}")
    assert forwarder.forward() == 0
    with running_syslog(tmp_path / "syslog", authority, credentials, port) as server:
        assert forwarder.forward() == 1200
        server.wait_for_lines(1200)
    queried(trail, PEER, "/studies", "PatientID=1200")
    assert forwarder.forward() == 0
    with running_syslog(tmp_path / "syslog", authority, credentials, port) as server:
        assert forwarder.forward() == 1
        lines = server.wait_for_lines(1201)
    times = [line.split(" ", 2)[1] for line in lines]
    assert times == sorted(times)


@pytest.mark.fault("audit", "a syslog server with a certificate nobody vouches for", "it gets nothing")
def test_a_server_that_nobody_vouches_for_gets_nothing(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority(tmp_path / "stranger", "Another CA")
    with running_syslog(tmp_path / "syslog", authority, stranger.issue("syslog")) as server:
        settings = settings_for(tmp_path, authority, server.port)
        queried(AuditTrail(settings, "gateway"), PEER, "/studies", "PatientID=1")
        assert AuditForwarder(settings).forward() == 0
        assert server.lines() == []


@pytest.mark.fault("audit", "we show the syslog server no certificate", "it takes nothing, and nothing counts as sent")
def test_a_server_that_does_not_let_us_in_leaves_all_waiting(tmp_path: Path, authority: Authority) -> None:
    with running_syslog(tmp_path / "syslog", authority, authority.issue("syslog")) as server:
        settings = settings_for(tmp_path, authority, server.port)
        queried(AuditTrail(settings, "gateway"), PEER, "/studies", "PatientID=1")
        unknown = settings.model_copy(update={"tls_certificate": None, "tls_key": None})
        assert AuditForwarder(unknown).forward() == 0
        assert AuditForwarder(settings).forward() == 1


@pytest.mark.parametrize("address", ["syslog.example", "syslog.example:tls"])
def test_an_address_without_a_port_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        AuditForwarder(Settings(data_dir=tmp_path, audit_syslog=address))


def test_no_file_of_the_queue_is_for_others_to_read(tmp_path: Path, authority: Authority) -> None:
    with running_syslog(tmp_path / "syslog", authority, authority.issue("syslog")) as server:
        settings = settings_for(tmp_path, authority, server.port)
        queried(AuditTrail(settings, "gateway"), PEER, "/studies", "PatientID=1")
        AuditForwarder(settings).forward()
    files = [path for path in (tmp_path / "data/audit").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    shutil.rmtree(tmp_path / "syslog")


def test_the_relay_process_sends_what_all_processes_have_written(
    tmp_path: Path, authority: Authority, redis_url: str
) -> None:
    with running_syslog(tmp_path / "syslog", authority, authority.issue("syslog")) as server:
        settings = settings_for(tmp_path, authority, server.port)
        queried(AuditTrail(settings, "gateway"), PEER, "/studies", "PatientID=1")
        environment = os.environ | {
            "EMBOLENS_DATA_DIR": str(settings.data_dir),
            "EMBOLENS_REDIS_URL": redis_url,
            "EMBOLENS_AUDIT_SYSLOG": settings.audit_syslog,
            "EMBOLENS_TLS_CERTIFICATE": str(settings.tls_certificate),
            "EMBOLENS_TLS_KEY": str(settings.tls_key),
            "EMBOLENS_TLS_TRUSTED": str(settings.tls_trusted),
        }
        command = [sys.executable, "-m", "cli.app", "serve", "--only", "relay"]
        with (tmp_path / "relay.log").open("wb") as log:
            relay = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)
        try:
            wait_for("both messages are at the syslog server", lambda: len(server.lines()) == 2, 60)
        finally:
            relay.terminate()
            assert relay.wait(timeout=30) == 0, (tmp_path / "relay.log").read_text()
    assert any("Application Start" in line for line in server.lines())
    reports = verify(settings.data_dir / "audit")
    assert [(report.chain.split("@")[0], report.lines, report.problems) for report in reports] == [
        ("gateway", 1, []),
        ("relay", 2, []),  # started and stopped
    ]
