"""Orthanc speaks TLS alone and asks for certificates, and so does the listener."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.delivery.relay import Relay
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import Delivery
from services.store.outbox import Outbox
from tests.end_to_end.hospital import running_orthanc
from tests.services.certificates import Authority
from tests.services.delivery.peers import result_object
from tests.services.ingest.peers import ct_series, wait_until
from tests.services.retrieve.conftest import Archive, Fetching, node_toml

FINDINGS = {"outcome": "no_embolus", "reasons": []}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls_archive(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Archive]:
    directory = tmp_path_factory.mktemp("tls-archive")
    pacs = authority.issue("pacs")
    allowed = {f"DicomAlwaysAllow{what}": True for what in ("Find", "Get", "Move", "Echo")}
    with running_orthanc(
        directory,
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(pacs.certificate),
        DicomTlsPrivateKey=str(pacs.key),
        DicomTlsTrustedCertificates=str(authority.certificate),
        DicomTlsRemoteCertificateRequired=True,
        **allowed,
    ) as orthanc:
        yield Archive(orthanc, directory)


@pytest.fixture
def fetching(settings: Settings, database: Database, tls_archive: Archive, authority: Authority) -> Iterator[Fetching]:
    own = authority.issue("embolens")
    more = "tls = true\ncommitment = true"
    settings.destinations.write_text(node_toml(tls_archive.port, "c-move", more=more))
    shown = {"tls_certificate": own.certificate, "tls_key": own.key, "tls_trusted": authority.certificate}
    running = Fetching(settings.model_copy(update=shown), database)
    listens_at = {"AET": "EMBOLENS", "Host": "127.0.0.1", "Port": running.port, "UseDicomTls": True}
    tls_archive.orthanc.http.put("/modalities/EMBOLENS", json=listens_at).raise_for_status()
    yield running
    running.stop()


@pytest.mark.parametrize("how", ["c-get", "c-move"])
def test_a_study_is_fetched(fetching: Fetching, settings: Settings, tls_archive: Archive, how: str) -> None:
    slices = ct_series(3)
    tls_archive.add(*slices)
    settings.destinations.write_text(node_toml(tls_archive.port, how, more="tls = true"))
    ended = fetching.wait_for_end(fetching.fetch(slices[0]), "completed")
    assert [series["received"] for series in ended.series] == [3]
    fetching.wait_for_state(slices[0], "queued")


def test_a_result_is_sent_and_committed_to(fetching: Fetching) -> None:
    slices = ct_series(3)
    job = fetching.jobs.open_receiving(
        study_instance_uid=str(slices[0].StudyInstanceUID),
        series_instance_uid=str(slices[0].SeriesInstanceUID),
        calling_ae_title="ORTHANC",
    )
    fetching.jobs.complete_intake(job.id, inputs_digest="d", instance_count=3, completion_reason="test")
    fetching.jobs.claim(job.id, "worker", lease_s=60)
    path = fetching.store.result_directory(job.id) / "seg.dcm"
    path.parent.mkdir(parents=True)
    made = result_object(path)
    delivery = Delivery(
        "node:ORTHANC", str(fetching.store.relative(path)), str(made.SOPClassUID), str(made.SOPInstanceUID)
    )
    fetching.jobs.finish(job.id, "worker", findings=FINDINGS, stage_seconds={}, deliveries=[delivery])
    outbox = Outbox(fetching.database)
    relay = Relay(fetching.settings, outbox, fetching.store)
    relay.deliver_due()
    wait_until(lambda: [row.state for row in outbox.of_job(job.id)] == ["delivered"])
    (row,) = outbox.of_job(job.id)
    assert row.committed_at is not None
