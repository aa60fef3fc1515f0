"""From the outbox to real destinations, and what becomes of what cannot be delivered."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, evt
from sqlalchemy import update

from services.delivery.attempts import backoff_s
from services.delivery.destinations import Node
from services.delivery.dicom_node import send_to_node
from services.delivery.relay import ALIVE_FILE, Relay, repeat
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore, utc_now
from services.store.outbox import Outbox
from services.store.rows import JobRow, OutboxRow
from services.store.study_store import StudyStore
from tests.services.certificates import Authority
from tests.services.delivery.peers import StoreScp, only_row, secondary_capture, wait_until, write_destinations

ROOT = Path(__file__).parents[3]
MakeJob = Callable[..., JobRow]


def deliver_until_delivered(relay: Relay, outbox: Outbox, job: JobRow) -> None:
    def all_there() -> bool:
        relay.deliver_due()
        return {row.state for row in outbox.of_job(job.id)} == {"delivered"}

    wait_until(all_there)


def test_a_result_arrives_at_a_node_and_its_job_is_completed(
    relay: Relay, settings: Settings, outbox: Outbox, jobs: JobStore, finished_job: MakeJob, store_scp: StoreScp
) -> None:
    store_scp.start()
    write_destinations(settings, store_scp.toml())
    job = finished_job("node:PACS")
    assert job.state == "delivering"
    relay.deliver_due()
    row = only_row(outbox, job)
    assert (row.state, row.attempts, row.last_error) == ("delivered", 1, None)
    assert jobs.get(job.id).state == "completed"
    (received,) = store_scp.received()
    assert dcmread(received).SOPInstanceUID == row.sop_instance_uid


def test_a_result_goes_out_over_tls_to_a_node_whose_certificate_is_trusted(
    settings: Settings, outbox: Outbox, store: StudyStore, finished_job: MakeJob, store_scp: StoreScp, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "Other CA")
    pacs, own = authority.issue("pacs"), authority.issue("embolens")
    store_scp.start("+tls", str(pacs.key), str(pacs.certificate), "+cf", str(authority.certificate))
    write_destinations(settings, store_scp.toml() + "tls = true\n")
    job = finished_job("node:PACS")
    shown = {"tls_certificate": own.certificate, "tls_key": own.key}
    for trusted in (None, other.certificate):
        Relay(settings.model_copy(update=shown | {"tls_trusted": trusted}), outbox, store).deliver_due()
        row = only_row(outbox, job)
        assert row.state == "pending"
        assert "with TLS" in (row.last_error or "") or "no association" in (row.last_error or "")
        wait_until(lambda: outbox.due_destinations() == ["node:PACS"])
    assert store_scp.received() == []
    Relay(settings.model_copy(update=shown | {"tls_trusted": authority.certificate}), outbox, store).deliver_due()
    assert only_row(outbox, job).state == "delivered"
    assert len(store_scp.received()) == 1


def test_several_results_share_one_association(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob
) -> None:
    associations = []
    stored = []
    node = AE("PACS")
    node.add_supported_context("1.2.840.10008.5.1.4.1.1.66.4")
    handlers = [
        (evt.EVT_ACCEPTED, lambda event: associations.append(event.assoc.requestor.ae_title)),
        (evt.EVT_C_STORE, lambda event: stored.append(event.request.AffectedSOPInstanceUID) or 0x0000),
    ]
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    write_destinations(settings, f'[[nodes]]\nae_title="PACS"\nhost="127.0.0.1"\nport={server.server_address[1]}\n')
    made = [finished_job("node:PACS") for _ in range(3)]
    relay.deliver_due()
    server.shutdown()
    assert [only_row(outbox, job).state for job in made] == ["delivered"] * 3
    assert len(stored) == 3
    assert associations == ["EMBOLENS"]


def test_a_node_that_is_down_gets_its_result_when_it_is_up(
    relay: Relay, settings: Settings, outbox: Outbox, jobs: JobStore, finished_job: MakeJob, store_scp: StoreScp
) -> None:
    write_destinations(settings, store_scp.toml())
    job = finished_job("node:PACS")
    relay.deliver_due()
    row = only_row(outbox, job)
    assert row.state == "pending"
    assert "no association with PACS" in (row.last_error or "")
    assert jobs.get(job.id).state == "delivering"
    assert relay.deliver_due() == 0  # not before the backoff is over
    store_scp.start()
    deliver_until_delivered(relay, outbox, job)
    assert only_row(outbox, job).attempts >= 2
    assert len(store_scp.received()) == 1
    assert jobs.get(job.id).state == "completed"


def test_an_unknown_origin_is_visible_and_delivered_once_it_is_listed(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, store_scp: StoreScp
) -> None:
    job = finished_job("node:NEW_CT")
    relay.deliver_due()
    assert only_row(outbox, job).last_error == "no node NEW_CT in destinations.toml"
    store_scp.start()
    write_destinations(settings, store_scp.toml("NEW_CT"))
    deliver_until_delivered(relay, outbox, job)


def test_a_mistake_in_a_changed_file_leaves_the_destinations_as_they_were(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, store_scp: StoreScp
) -> None:
    store_scp.start()
    write_destinations(settings, store_scp.toml())
    relay.deliver_due()
    write_destinations(settings, "[[node]]")
    job = finished_job("node:PACS")
    relay.deliver_due()
    assert only_row(outbox, job).state == "delivered"


def test_a_folder_gets_the_object_once_under_its_uid(
    relay: Relay, settings: Settings, outbox: Outbox, store: StudyStore, finished_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    write_destinations(settings, f'[[folders]]\nname = "research"\npath = "{tmp_path / "results"}"\n')
    job = finished_job("folder:research")
    relay.deliver_due()
    row = only_row(outbox, job)
    assert row.state == "delivered"
    (copied,) = (tmp_path / "results").iterdir()
    assert copied.name == f"{row.sop_instance_uid}.dcm"
    assert copied.read_bytes() == (store.data_dir / row.object_path).read_bytes()


def test_a_folder_that_cannot_be_written_to_is_tried_again(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, tmp_path: Path
) -> None:
    write_destinations(settings, f'[[folders]]\nname = "research"\npath = "{tmp_path / "results"}"\n')
    job = finished_job("folder:research")
    relay.deliver_due()
    assert "cannot copy to folder research" in (only_row(outbox, job).last_error or "")
    (tmp_path / "results").mkdir()
    deliver_until_delivered(relay, outbox, job)


def test_one_destination_that_fails_does_not_stop_the_other(
    relay: Relay, settings: Settings, outbox: Outbox, jobs: JobStore, finished_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    write_destinations(
        settings,
        f'[[folders]]\nname = "research"\npath = "{tmp_path / "results"}"\n'
        f'[[nodes]]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {free_port()}\n',
    )
    job = finished_job("node:PACS", "folder:research")
    relay.deliver_due()
    assert {row.destination: row.state for row in outbox.of_job(job.id)} == {
        "node:PACS": "pending",
        "folder:research": "delivered",
    }
    assert jobs.get(job.id).state == "delivering"


@pytest.mark.parametrize(
    ("status", "state", "told"),
    [
        (0xB000, "delivered", None),
        (0x0111, "delivered", None),
        (0xA700, "pending", "out of resources (0xA700)"),
        (0xC000, "pending", "refused the object (0xC000)"),
        (0x0122, "pending", "refused the object (0x0122)"),
    ],
)
def test_what_a_node_answers_decides(
    relay: Relay,
    settings: Settings,
    outbox: Outbox,
    finished_job: MakeJob,
    status: int,
    state: str,
    told: str | None,
) -> None:
    node = AE("PACS")
    node.add_supported_context("1.2.840.10008.5.1.4.1.1.66.4")
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: status)])
    write_destinations(settings, f'[[nodes]]\nae_title="PACS"\nhost="127.0.0.1"\nport={server.server_address[1]}\n')
    job = finished_job("node:PACS")
    relay.deliver_due()
    server.shutdown()
    row = only_row(outbox, job)
    assert row.state == state
    assert row.last_error is None if told is None else told in (row.last_error or "")


@pytest.mark.parametrize(
    ("own", "options", "arrives_in"),
    [
        (ExplicitVRLittleEndian, ["+xi"], ImplicitVRLittleEndian),
        (RLELossless, [], ExplicitVRLittleEndian),
        (RLELossless, ["+xi"], ImplicitVRLittleEndian),
        (RLELossless, ["+xr"], RLELossless),
        (DeflatedExplicitVRLittleEndian, ["+xi"], ImplicitVRLittleEndian),
    ],
)
def test_a_node_gets_the_object_in_a_transfer_syntax_that_it_takes(
    settings: Settings, store_scp: StoreScp, tmp_path: Path, own: UID, options: list[str], arrives_in: UID
) -> None:
    store_scp.start(*options)
    picture = secondary_capture(tmp_path / "picture.dcm", own)
    node = Node(ae_title="PACS", host="127.0.0.1", port=store_scp.port)
    (sent,) = send_to_node(node, [tmp_path / "picture.dcm"], calling_ae_title="EMBOLENS")
    assert sent.error is None
    (received,) = store_scp.received()
    arrived = dcmread(received)
    assert arrived.file_meta.TransferSyntaxUID == arrives_in
    assert arrived.SOPInstanceUID == picture.SOPInstanceUID
    np.testing.assert_array_equal(arrived.pixel_array, picture.pixel_array)


def test_what_cannot_be_decompressed_is_said_and_the_next_one_goes_out(store_scp: StoreScp, tmp_path: Path) -> None:
    store_scp.start()
    broken, whole = tmp_path / "broken.dcm", tmp_path / "whole.dcm"
    picture = secondary_capture(broken, RLELossless)
    picture.PixelData = encapsulate([b"no RLE at all"])
    picture.save_as(broken, enforce_file_format=True)
    secondary_capture(whole, RLELossless)
    node = Node(ae_title="PACS", host="127.0.0.1", port=store_scp.port)
    first, second = send_to_node(node, [broken, whole], calling_ae_title="EMBOLENS")
    assert "RLE Lossless, which is not taken, cannot be decompressed here" in str(first.error)
    assert second.error is None


def test_a_node_without_the_object_class_refuses_and_is_tried_again(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob
) -> None:
    node = AE("PACS")
    node.add_supported_context("1.2.840.10008.1.1")
    server = node.start_server(("127.0.0.1", 0), block=False)
    write_destinations(settings, f'[[nodes]]\nae_title="PACS"\nhost="127.0.0.1"\nport={server.server_address[1]}\n')
    job = finished_job("node:PACS")
    relay.deliver_due()
    server.shutdown()
    row = only_row(outbox, job)
    assert row.state == "pending"
    assert row.last_error


def test_a_result_file_that_is_gone_does_not_take_others_along(
    relay: Relay, settings: Settings, outbox: Outbox, store: StudyStore, finished_job: MakeJob, store_scp: StoreScp
) -> None:
    store_scp.start()
    write_destinations(settings, store_scp.toml())
    gone, there = finished_job("node:PACS"), finished_job("node:PACS")
    (store.data_dir / only_row(outbox, gone).object_path).unlink()
    relay.deliver_due()
    assert only_row(outbox, gone).state == "pending"
    assert "seg.dcm" in (only_row(outbox, gone).last_error or "")
    assert only_row(outbox, there).state == "delivered"


def test_a_delivery_that_failed_for_too_long_is_parked_and_can_be_retried(
    settings: Settings,
    outbox: Outbox,
    store: StudyStore,
    jobs: JobStore,
    finished_job: MakeJob,
    store_scp: StoreScp,
    database: Database,
) -> None:
    write_destinations(settings, store_scp.toml())
    relay = Relay(settings.model_copy(update={"delivery_park_after_s": 0.0}), outbox, store)
    job = finished_job("node:PACS")
    relay.deliver_due()
    assert only_row(outbox, job).state == "pending"  # old, but hardly tried
    try_often(database)
    relay.deliver_due()
    assert only_row(outbox, job).state == "parked"
    time.sleep(0.3)
    assert relay.deliver_due() == 0
    jobs.retry(job.id)
    store_scp.start()
    deliver_until_delivered(relay, outbox, job)
    assert jobs.get(job.id).state == "completed"


def try_often(database: Database) -> None:
    """As if every row had failed twenty times and were due again."""
    with database.write() as session:
        session.execute(update(OutboxRow).values(attempts=20, next_attempt_at=utc_now()))


def test_what_waits_for_its_node_to_be_listed_is_never_parked_and_goes_out_at_once_then(
    settings: Settings,
    outbox: Outbox,
    store: StudyStore,
    finished_job: MakeJob,
    store_scp: StoreScp,
    database: Database,
) -> None:
    patient = {"delivery_park_after_s": 0.0, "delivery_first_backoff_s": 600.0, "delivery_max_backoff_s": 600.0}
    relay = Relay(settings.model_copy(update=patient), outbox, store)
    job = finished_job("node:NEW_CT")
    try_often(database)
    relay.deliver_due()
    assert only_row(outbox, job).state == "pending"
    store_scp.start()
    write_destinations(settings, store_scp.toml("NEW_CT"))
    relay.deliver_due()
    assert only_row(outbox, job).state == "delivered"


def test_a_failure_that_is_outlived_says_where_and_not_what(caplog: pytest.LogCaptureFixture) -> None:
    stopping = threading.Event()

    name = "^".join(("DOE", "JANE"))

    def fail() -> bool:
        stopping.set()
        raise ValueError(f"PatientName is {name}")

    repeat(fail, stopping, pause_s=0.0)
    assert "ValueError" in caplog.text
    assert "test_relay.py" in caplog.text
    assert name not in caplog.text


def test_the_wait_doubles_up_to_the_longest() -> None:
    settings = Settings(delivery_first_backoff_s=30, delivery_max_backoff_s=600)
    assert [backoff_s(attempts, settings) for attempts in (1, 2, 3, 5, 6, 10_000)] == [30, 60, 120, 480, 600, 600]


def test_nothing_that_names_the_patient_is_logged(
    relay: Relay,
    settings: Settings,
    finished_job: MakeJob,
    store_scp: StoreScp,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store_scp.start()
    write_destinations(settings, store_scp.toml())
    with caplog.at_level(logging.DEBUG, logger="services"):
        finished_job("node:PACS", "node:NOBODY")
        relay.deliver_due()
    assert "node:PACS" in caplog.text
    for secret in ("Secret", "PHI-4711"):
        assert secret not in caplog.text


def test_the_process_delivers_without_redis_and_ends_on_sigterm(
    settings: Settings, tmp_path: Path, store_scp: StoreScp, finished_job: MakeJob, outbox: Outbox, database: Database
) -> None:
    store_scp.start()
    write_destinations(settings, store_scp.toml())
    job = finished_job("node:PACS")
    environment = {
        **os.environ,
        "EMBOLENS_DATA_DIR": str(settings.data_dir),
        "EMBOLENS_DATABASE_URL": database.url,
        "EMBOLENS_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "EMBOLENS_DESTINATIONS": str(settings.destinations),
        "EMBOLENS_SWEEP_S": "0.2",
    }
    code = "from services.delivery import relay; from services.settings import Settings; relay.run_relay(Settings())"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stderr=log)
    try:
        wait_until(lambda: only_row(outbox, job).state == "delivered", timeout_s=30)
        wait_until((settings.data_dir / ALIVE_FILE).exists)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "log").read_text().count("Redis does not answer") == 1


def test_a_node_that_hangs_holds_up_nobody_else(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # takes the connection and never says a word
        write_destinations(
            settings,
            f'[[nodes]]\nae_title = "SLOW"\nhost = "127.0.0.1"\nport = {hanging.getsockname()[1]}\n'
            f'[[folders]]\nname = "research"\npath = "{tmp_path / "results"}"\n',
        )
        slow = finished_job("node:SLOW")
        relay.start_due()
        for _ in range(2):
            quick = finished_job("folder:research")
            relay.start_due()
            wait_until(lambda job=quick: only_row(outbox, job).state == "delivered", timeout_s=5)
        assert only_row(outbox, slow).state == "pending"
        assert only_row(outbox, slow).last_error is None  # still being tried
