"""Every kind of object of every ending in a real PACS. A threshold stands for the networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imaging.volume import CtVolume
from services.delivery.relay import Relay
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.uids import derive_uid
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.study_store import StudyStore
from tests.end_to_end.hospital import Orthanc
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter
from worker.pipeline import Pipeline


def ct(*, lumen_hu: int, clot: bool) -> CtVolume:
    hu = np.full((24, 40, 48), -800, dtype=np.int16)
    hu[8:16, 16:24, 4:44] = lumen_hu
    if clot:
        hu[10:14, 18:22, 20:24] = CLOT_HU
    return CtVolume(hu, np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64))


@pytest.mark.parametrize(
    ("volume", "modalities"),
    [
        (ct(lumen_hu=LUMEN_HU, clot=True), ["DOC", "OT", "OT", "SEG", "SR"]),
        (ct(lumen_hu=LUMEN_HU, clot=False), ["DOC", "OT", "SEG", "SR"]),
        (ct(lumen_hu=40, clot=False), ["DOC", "OT", "SR"]),
    ],
    ids=["embolus found", "none found", "not analysable"],
)
def test_every_object_of_every_ending_arrives_in_the_study(
    orthanc: Orthanc, database: Database, tmp_path: Path, volume: CtVolume, modalities: list[str]
) -> None:
    (tmp_path / "destinations.toml").write_text(
        f'[[nodes]]\nae_title = "ORTHANC"\nhost = "127.0.0.1"\nport = {orthanc.dicom_port}\n'
        'objects = ["seg", "sr", "key_images", "report"]\n'
    )
    settings = Settings(data_dir=tmp_path, database_url=str(database.url), destinations=tmp_path / "destinations.toml")
    study_uid = derive_uid("result objects test", *modalities)
    files = write_ct_series(
        volume, tmp_path / "ct", patient_id="P1", patient_name="Phantom^One", study_instance_uid=study_uid
    )
    jobs, store = JobStore(database), StudyStore(tmp_path)
    job = jobs.open_receiving(
        study_instance_uid=study_uid, series_instance_uid=derive_uid("series", study_uid), calling_ae_title="ORTHANC"
    )
    digest = store.write_inputs(job.id, files)
    jobs.complete_intake(job.id, inputs_digest=digest, instance_count=len(files), completion_reason="quiet")

    Pipeline.connect(settings, ThresholdSegmenter()).run_job(job.id)
    outbox = Outbox(database)
    Relay(settings, outbox, store).deliver_due()

    assert [(row.state, row.last_error) for row in outbox.of_job(job.id)] == [("delivered", None)] * len(modalities)
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid}, "Expand": True}
    found = orthanc.http.post("/tools/find", json=query).raise_for_status().json()
    sent = {row.sop_instance_uid for row in outbox.of_job(job.id)}
    assert {instance["MainDicomTags"]["SOPInstanceUID"] for instance in found} == sent
    tags = [orthanc.http.get(f"/instances/{instance['ID']}/simplified-tags").json() for instance in found]
    assert sorted(one["Modality"] for one in tags) == modalities
    assert {one["PatientID"] for one in tags} == {"P1"}
