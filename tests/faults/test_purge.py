"""Retention on a running site: killed in the middle, on a disk that fills up, and what is asked for afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import update

from cli.process_user import process_user
from cli.purge import purge
from services.audit.codes import STUDY_DELETED
from services.audit.written import written_messages
from services.delivery.retention import Retention
from services.delivery.sweep import Sweep
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import utc_now
from services.store.outbox import Outbox
from services.store.rows import JobRow
from services.task_queue import TaskQueue
from tests.faults.small_disk import MIB, SmallDisk
from tests.services.ingest.peers import QUIET_S, ROOT, Receiving, ct_series, push, wait_until
from tests.worker.threshold_worker import LUMEN_HU, ThresholdSegmenter
from worker.pipeline import Pipeline

# Ends itself, as kill -9 would, right before or after this step of a purge.
KILLED = """
import os, signal, sys
from services.delivery.retention import Retention
from services.settings import Settings
from services.store import purge, study_store
from services.store.database import Database

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "rows":
    purge.Purge._take_away = kill
elif sys.argv[1] == "renamed":
    study_store.StudyStore.remove = staticmethod(kill)
else:
    of_shutil = study_store.shutil.rmtree
    def half(path, **_):
        next(path.iterdir()).unlink()
        kill()
    study_store.shutil.rmtree = half
settings = Settings()
Retention(settings, Database.of(settings), study_store.StudyStore.of(settings)).purge_now()
"""


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    (tmp_path / "destinations.toml").write_text('[[folders]]\nname = "out"\npath = "/nowhere"\n')
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_url,
        destinations=tmp_path / "destinations.toml",
        dicom_port=0,
        series_quiet_s=QUIET_S,
        retention_input_days=1,
        retention_result_days=1,
    )


@contextmanager
def receiving_on(settings: Settings) -> Iterator[Receiving]:
    database = Database.of(settings)
    database.upgrade()
    running = Receiving(settings, database, IntakeRules(min_slices=2))
    yield running
    running.stop()
    database.close()


@pytest.fixture
def receiving(settings: Settings) -> Iterator[Receiving]:
    with receiving_on(settings) as running:
        yield running


def opacified_series(**arguments: Any) -> list[Dataset]:
    """Slices of nothing but contrast, which the threshold takes for a vessel."""
    slices = ct_series(8, **arguments)
    for one in slices:
        hu = [LUMEN_HU] * (one.Rows * one.Columns)
        one.PixelData = b"".join(value.to_bytes(2, "little", signed=True) for value in hu)
    return slices


def completed(receiving: Receiving, slices: list[Dataset], *, days_ago: float = 2) -> JobRow:
    """Pushed, worked on, its result sent to the archive."""
    earlier = ["completed"] * len(receiving.jobs_of(slices[0]))
    push(receiving.port, slices)
    (*_, job) = receiving.wait_for_state(slices[0], *earlier, "queued")
    Pipeline.connect(receiving.settings, ThresholdSegmenter()).run_job(job.id)
    outbox = Outbox(receiving.database)
    for row in outbox.of_job(job.id):
        outbox.delivered(row)
    with receiving.database.write() as session:
        ago = utc_now() - timedelta(days=days_ago)
        session.execute(update(JobRow).where(JobRow.id == job.id).values(finished_at=ago))
    job = receiving.jobs.get(job.id)
    assert job.state == "completed", job.error_message
    return job


def sop_instance_uids(receiving: Receiving, job: JobRow) -> set[str | None]:
    return {row.sop_instance_uid for row in Outbox(receiving.database).of_job(job.id)}


def purge_killed_at(settings: Settings, step: str) -> None:
    environment = os.environ | {
        "EMBOLENS_DATA_DIR": str(settings.data_dir),
        "EMBOLENS_DESTINATIONS": str(settings.destinations),
        "EMBOLENS_RETENTION_INPUT_DAYS": "1",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run([sys.executable, "-c", KILLED, step], env=environment, cwd=ROOT, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.fault(
    "retention",
    "kill -9 in the middle of a purge: after the rows, after the rename, in the middle of removing files",
    "the next purge and sweep leave no file of it; the rows say that it is purged; other series are whole",
)
@pytest.mark.parametrize("step", ["rows", "renamed", "removing"])
def test_a_purge_killed_in_the_middle_is_finished_by_the_next(step: str, receiving: Receiving) -> None:
    settings = receiving.settings
    gone, stays = opacified_series(), opacified_series()
    job, other = completed(receiving, gone), completed(receiving, stays, days_ago=0.1)
    purge_killed_at(settings, step)
    assert receiving.jobs.get(job.id).inputs_purged_at is not None
    Retention(settings, receiving.database, receiving.store).purge_now()
    queue = TaskQueue(settings.redis_url)
    Sweep(settings, receiving.store, receiving.jobs, queue).run()
    queue.close()
    receiving.store.remove_stale_arrivals(older_than_s=0)  # a day later
    assert not list(settings.data_dir.glob(f"received/{gone[0].StudyInstanceUID}"))
    assert not list((settings.data_dir / "arriving").iterdir())
    assert len(receiving.store.read_inputs(other.id)) == 8
    assert all(path.is_file() for path in receiving.store.read_inputs(other.id))


@pytest.mark.fault(
    "retention",
    "kill -9 of a purge after its rows say so, and the sender pushes the series again before anybody finishes it",
    "the pushed instances are acknowledged and stay: the next purge leaves them to their new job",
)
def test_what_is_pushed_again_in_the_middle_of_a_purge_stays(receiving: Receiving) -> None:
    slices = opacified_series()
    first = completed(receiving, slices)
    push(receiving.port, slices)  # the listener knows by now that these are held
    purge_killed_at(receiving.settings, "rows")
    push(receiving.port, slices)
    _, again = receiving.wait_for_state(slices[0], "completed", "queued")
    Retention(receiving.settings, receiving.database, receiving.store).purge_now()
    assert again.supersedes == first.id
    assert all(path.is_file() for path in receiving.store.read_inputs(again.id))


def test_the_relay_purges_by_itself(receiving: Receiving) -> None:
    job = completed(receiving, opacified_series())
    environment = os.environ | {
        "EMBOLENS_DATA_DIR": str(receiving.settings.data_dir),
        "EMBOLENS_DESTINATIONS": str(receiving.settings.destinations),
        "EMBOLENS_REDIS_URL": receiving.settings.redis_url,
        "EMBOLENS_RETENTION_RESULT_DAYS": "1",
        "EMBOLENS_SWEEP_S": "0.2",
        "PYTHONPATH": str(ROOT),
    }
    relay = subprocess.Popen([sys.executable, "-m", "cli.app", "serve", "--only", "relay"], env=environment, cwd=ROOT)
    try:
        wait_until(lambda: receiving.jobs.get(job.id).results_purged_at, timeout_s=60)
        wait_until(lambda: not receiving.store.result_directory(job.id).exists())
    finally:
        relay.terminate()
        assert relay.wait(timeout=30) == 0
    assert receiving.jobs.get(job.id).inputs_purged_at is None


def test_a_purged_series_that_comes_again_gives_the_same_result(receiving: Receiving) -> None:
    """Taken in anew, and its objects have the UIDs that the archive holds already: still exactly one result."""
    slices = opacified_series()
    first = completed(receiving, slices)
    Retention(receiving.settings, receiving.database, receiving.store).purge_now()
    assert not list(receiving.settings.data_dir.glob("received/*"))
    again = completed(receiving, slices, days_ago=0.1)
    assert again.id != first.id
    assert again.instance_count == 8
    assert sop_instance_uids(receiving, again) == sop_instance_uids(receiving, first) != set()


@pytest.mark.fault(
    "retention",
    "the disk fills up over the upper watermark",
    "the oldest delivered inputs go, as many as it takes to get below the lower watermark, and no others",
)
def test_a_disk_over_the_watermark_loses_the_oldest_delivered_inputs(
    small_disk: Callable[[int], SmallDisk], settings: Settings
) -> None:
    disk = small_disk(64 * MIB)
    by_disk = {"data_dir": disk.path / "data", "purge_at_percent": 80.0, "purge_to_percent": 60.0}
    by_age = {"retention_input_days": 0.0, "retention_result_days": 0.0}
    with receiving_on(settings.model_copy(update=by_disk | by_age)) as receiving:
        jobs = [completed(receiving, opacified_series(size=512), days_ago=10 - number) for number in range(4)]  # 4 MiB
        failed = opacified_series(size=512)
        push(receiving.port, failed)
        (never,) = receiving.wait_for_state(failed[0], "queued")
        retention = Retention(receiving.settings, receiving.database, receiving.store)
        retention.run()
        assert not any(receiving.jobs.get(job.id).inputs_purged_at for job in jobs)
        disk.fill(leave_bytes=20 * MIB)
        assert retention.run() is None
        assert not any(receiving.jobs.get(job.id).inputs_purged_at for job in jobs)  # 69 % are in use
        disk.fill(leave_bytes=12 * MIB)
        retention.purge_now()
        purged = [receiving.jobs.get(job.id).inputs_purged_at is not None for job in jobs]
        assert purged == sorted(purged, reverse=True)
        assert any(purged)
        assert disk.free_bytes >= 0.4 * 64 * MIB or all(purged)
        assert all(path.is_file() for path in receiving.store.read_inputs(never.id))


def test_what_is_purged_is_said_to_be(
    receiving: Receiving, start_gateway: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = receiving.settings
    slices = opacified_series()
    job = completed(receiving, slices)
    gateway = start_gateway(data_dir=settings.data_dir, destinations=settings.destinations)
    seg = dcmread(receiving.store.result_file(job.id, "seg.dcm"), stop_before_pixels=True)
    study = f"/dicom-web/studies/{slices[0].StudyInstanceUID}"
    whole_series = f"{study}/series/{slices[0].SeriesInstanceUID}"
    of_result = f"{study}/series/{seg.SeriesInstanceUID}"
    any_dicom = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    for path in (study, whole_series, of_result):
        assert gateway.client.get(path, headers=any_dicom).status_code == 200

    Retention(settings, receiving.database, receiving.store).purge_now()
    for path in (study, whole_series, of_result, f"{whole_series}/metadata"):
        response = gateway.client.get(path, headers=any_dicom if "metadata" not in path else None)
        assert (response.status_code, response.json()["code"]) == (410, "purged")
    assert gateway.client.get("/dicom-web/instances").status_code == 204
    for name in ("seg.dcm", "sr.dcm", "mask.nii.gz", "report.pdf"):
        response = gateway.client.get(f"/segment/{job.id}/{name}")
        assert (response.status_code, response.json()["code"]) == (410, "purged")
    assert gateway.client.get(f"/segment/{job.id}/findings").json()["outcome"] == "no_embolus"
    retried = gateway.client.post(f"/segment/{job.id}/retry")
    assert (retried.status_code, retried.json()["code"]) == (409, "purged")
    view = gateway.client.get(f"/segment/{job.id}").json()
    assert view["inputs_purged_at"]
    assert view["results_purged_at"]
    assert not view["can_retry"]
    assert view["links"]["seg"] is None


def test_a_dry_run_says_what_would_go_and_why_not(
    receiving: Receiving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, young = completed(receiving, opacified_series()), completed(receiving, opacified_series(), days_ago=0.5)
    monkeypatch.setattr("services.settings.settings", lambda: receiving.settings)
    purge(dry_run=True)
    goes, stays = [line for line in capsys.readouterr().out.splitlines() if "inputs" in line]
    assert str(old.series_instance_uid) in goes
    assert "yes" in goes
    assert str(young.series_instance_uid) in stays
    assert "kept for 1 days" in stays
    assert receiving.jobs.get(old.id).inputs_purged_at is None
    purge(dry_run=False)
    assert receiving.jobs.get(old.id).inputs_purged_at is not None
    *_, deleted = written_messages(receiving.settings.data_dir / "audit", str(old.study_instance_uid))
    assert (deleted.event, deleted.participants[0].user_id) == (STUDY_DELETED, process_user())
