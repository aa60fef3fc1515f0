"""A PACS and a client that speak DICOMweb with a running Embolens, all of its processes included."""

from __future__ import annotations

import os
import signal
import subprocess
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from tests.api.test_dicomweb_store import MEDIA_TYPE, multipart
from tests.end_to_end.hospital import END_STATES, Orthanc, RunningEmbolens, answers, echoes, wait_for

pytestmark = pytest.mark.timeout(200)


def written_ct(directory: Path, *, slices: int = 24) -> list[Path]:
    """A CT of air, which ends quickly: nothing in it can be analysed."""
    grid = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
    volume = CtVolume(np.full((slices, 40, 48), -800, dtype=np.int16), grid)
    return write_ct_series(volume, directory, patient_id="WEB-1", patient_name="Web^One")


def wait_for_ended_job(embolens: RunningEmbolens, one: Dataset) -> dict:  # type: ignore[type-arg]
    def ended() -> dict | None:  # type: ignore[type-arg]
        jobs = embolens.jobs(series_instance_uid=str(one.SeriesInstanceUID), source="dicomweb")
        return jobs[0] if jobs and jobs[0]["state"] in END_STATES else None

    return wait_for("the stored series ends as a job", ended, 100)


def test_orthanc_stores_a_study_here_and_fetches_it_back_with_its_report(
    embolens: RunningEmbolens, orthanc: Orthanc, tmp_path: Path
) -> None:
    files = written_ct(tmp_path)
    uploaded = [orthanc.http.post("/instances", content=file.read_bytes()).raise_for_status().json() for file in files]
    study = uploaded[0]["ParentStudy"]
    shown = {"Authorization": embolens.http.headers["Authorization"]}
    server = {"Url": f"{str(embolens.http.base_url).rstrip('/')}/dicom-web/", "HttpHeaders": shown}
    orthanc.http.put("/dicom-web/servers/embolens", json=server).raise_for_status()
    sent = orthanc.http.post("/dicom-web/servers/embolens/stow", json={"Resources": [study], "Synchronous": True})
    sent.raise_for_status()
    source = dcmread(files[0])
    job = wait_for_ended_job(embolens, source)
    assert job["state"] == "not_analysable", "air"
    assert job["instance_count"] == len(files)

    found = embolens.http.get(f"/dicom-web/studies/{source.StudyInstanceUID}/series").raise_for_status().json()
    assert [one["00080060"]["Value"][0] for one in found] == ["CT", "SR", "OT", "DOC"]
    orthanc.http.delete(f"/studies/{study}").raise_for_status()
    wanted = {"Resources": [{"Study": str(source.StudyInstanceUID)}], "Synchronous": True}
    orthanc.http.post("/dicom-web/servers/embolens/retrieve", json=wanted, timeout=60).raise_for_status()
    back = orthanc.http.get(f"/studies/{study}/statistics").raise_for_status().json()
    assert (back["CountSeries"], back["CountInstances"]) == (4, len(files) + 3)
    instance = next(one for one in orthanc.instances(modality="CT") if one["MainDicomTags"]["InstanceNumber"] == "1")
    assert dcmread(BytesIO(orthanc.file(instance["ID"]))).PixelData == source.PixelData


def test_dcmtk_reads_what_is_retrieved(embolens: RunningEmbolens, tmp_path: Path) -> None:
    files = written_ct(tmp_path / "ct", slices=3)
    source = dcmread(files[0])
    store(embolens.http, files)
    url = f"/dicom-web/studies/{source.StudyInstanceUID}/series/{source.SeriesInstanceUID}"
    response = embolens.http.get(f"{url}/instances/{source.SOPInstanceUID}").raise_for_status()
    (tmp_path / "back.dcm").write_bytes(response.content.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0])
    dumped = subprocess.run(
        ["dcmdump", "-q", "+P", "0008,0018", tmp_path / "back.dcm"], check=True, capture_output=True
    )
    assert str(source.SOPInstanceUID).encode() in dumped.stdout


def store(http: httpx.Client, files: list[Path]) -> None:
    body = multipart(file.read_bytes() for file in files)
    http.post("/dicom-web/studies", content=body, headers={"Content-Type": MEDIA_TYPE}).raise_for_status()


def test_a_gateway_and_a_listener_killed_in_the_middle_of_a_push_lose_nothing(
    embolens: RunningEmbolens, tmp_path: Path
) -> None:
    files = written_ct(tmp_path, slices=40)
    source = dcmread(files[0])
    acknowledged = []
    for number, file in enumerate(files):
        if number == 11:
            os.kill(embolens.pid_of("gateway"), signal.SIGKILL)
        try:
            store(embolens.http, [file])
        except httpx.TransportError:
            wait_for("the gateway is back", lambda: answers(embolens.http, "/health/ready"), 30)
            continue
        acknowledged.append(file)
        if number == 20:
            os.kill(embolens.pid_of("listener"), signal.SIGKILL)
    assert len(files) // 2 < len(acknowledged) < len(files)
    kept = {path.read_bytes() for path in (embolens.data_dir / "received").glob(f"*/{source.SeriesInstanceUID}/*.dcm")}
    assert {file.read_bytes() for file in acknowledged} <= kept
    wait_for("the listener is back", lambda: echoes(embolens.dicom_port), 30)
    store(embolens.http, [file for file in files if file not in acknowledged])
    job = wait_for_ended_job(embolens, source)
    assert job["instance_count"] == len(files)
    jobs = embolens.jobs(series_instance_uid=str(source.SeriesInstanceUID))
    # Where a restart took longer than the quiet period, a job of what was there came before and is replaced.
    replaced = [embolens.job(one["id"])["supersedes"] for one in jobs]
    assert replaced == [one["id"] for one in jobs[1:]] + [None]
