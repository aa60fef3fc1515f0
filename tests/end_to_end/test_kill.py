"""Pull the plug in the middle: everything acknowledged ends in exactly one result."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from services.requestor import Requestor
from tests.end_to_end.hospital import Orthanc, RunningEmbolens, echoes, storescu, wait_for
from tests.end_to_end.test_phantom_round_trip import _seg_series_uid, phantom_series

pytestmark = pytest.mark.timeout(400)


@pytest.mark.fault(
    "worker",
    "kill -9 of the worker, with its pool, in the middle of the cascade",
    "the job is completed by its second attempt; one SEG in the PACS",
)
def test_a_worker_killed_in_the_middle_of_a_job_costs_time_only(
    embolens: RunningEmbolens, orthanc: Orthanc, tmp_path: Path
) -> None:
    series = phantom_series(tmp_path / "series", seed=100_403, emboli=2)
    storescu(embolens.dicom_port, series.directory)

    def working() -> bool:
        jobs = embolens.jobs(series_instance_uid=series.series_instance_uid)
        return bool(jobs) and jobs[0]["state"] == "running" and jobs[0]["stage"] in ("unet", "aanet")

    wait_for("the job is in the cascade", working, 60)
    embolens.kill("worker")

    job = embolens.wait_for_series(series.series_instance_uid, timeout_s=200)
    assert job["state"] == "completed", job["error"]
    assert job["attempts"] == 2
    assert len(embolens.jobs(series_instance_uid=series.series_instance_uid)) == 1
    assert len(orthanc.instances(_seg_series_uid(embolens, job["id"]))) == 1
    assert [delivery["state"] for delivery in job["deliveries"]] == ["delivered", "delivered"]  # SEG and SR


@pytest.mark.fault(
    "processes",
    "kill -9 of the listener in the middle of an association",
    "every acknowledged instance is on disk; sent again, the rest joins them in one job, whose SEG is in the PACS once",
)
def test_a_listener_killed_in_the_middle_of_an_association_loses_nothing_acknowledged(
    embolens: RunningEmbolens, orthanc: Orthanc, tmp_path: Path
) -> None:
    series = phantom_series(tmp_path / "series", seed=100_404, emboli=1)
    files = sorted(series.directory.rglob("*.dcm"))
    datasets = [dcmread(file) for file in files]

    def send(part: list, *, kill_after: int | None = None) -> list[str]:  # type: ignore[type-arg]
        """Returns the SOP instances that were acknowledged."""
        ae = Requestor(ae_title="ORTHANC")
        ae.dimse_timeout = 10  # a listener that was killed does not answer any more
        ae.add_requested_context(CTImageStorage)
        association = ae.associate("127.0.0.1", embolens.dicom_port, ae_title="EMBOLENS")
        assert association.is_established
        acknowledged = []
        for number, dataset in enumerate(part):
            if number == kill_after:
                os.kill(embolens.pid_of("listener"), signal.SIGKILL)
            status = association.send_c_store(dataset) if association.is_established else None
            if not status:
                assert kill_after is not None
                return acknowledged
            assert status.Status == 0x0000
            acknowledged.append(str(dataset.SOPInstanceUID))
        association.release()
        return acknowledged

    acknowledged = send(datasets, kill_after=60)
    assert 60 <= len(acknowledged) < len(datasets)
    kept = {path.stem for path in (embolens.data_dir / "received").rglob(f"{series.series_instance_uid}/*.dcm")}
    assert set(acknowledged) <= kept

    wait_for("the listener is back", lambda: echoes(embolens.dicom_port), 30)
    # As a PACS does, the sender sends again what was not acknowledged.
    send([dataset for dataset in datasets if str(dataset.SOPInstanceUID) not in acknowledged])

    job = embolens.wait_for_series(series.series_instance_uid, timeout_s=200)
    assert job["state"] == "completed", job["error"]
    assert job["instance_count"] == len(datasets)
    assert len(embolens.jobs(series_instance_uid=series.series_instance_uid)) == 1
    assert len(orthanc.instances(_seg_series_uid(embolens, job["id"]))) == 1
