"""The main job: a phantom with a known embolus from a PACS and back into it."""

from __future__ import annotations

import io
import subprocess
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pytest

from imaging.metrics import match_lesions, voxel_dice
from imaging.phantom import Phantom, make_phantom
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.uids import derive_uid
from tests.end_to_end.hospital import Orthanc, RunningEmbolens, storescu

pytestmark = pytest.mark.timeout(400)


@dataclass
class PhantomSeries:
    phantom: Phantom
    directory: Path
    series_instance_uid: str


def phantom_series(directory: Path, *, seed: int, emboli: int) -> PhantomSeries:
    phantom = make_phantom(
        seed, shape_zyx=(150, 384, 384), spacing_zyx_mm=(1.8, 0.9, 0.9), emboli=emboli, min_embolus_ml=0.5
    )
    series_uid = derive_uid("end-to-end test", str(seed), "series")
    write_ct_series(
        phantom.volume,
        directory,
        patient_id=f"PHANTOM-{seed}",
        patient_name=f"Phantom^{seed}",
        study_instance_uid=derive_uid("end-to-end test", str(seed), "study"),
        series_instance_uid=series_uid,
        series_description="Phantom CTPA",
    )
    return PhantomSeries(phantom, directory, series_uid)


def test_a_pushed_phantom_comes_back_as_a_seg_that_overlaps_its_emboli(
    embolens: RunningEmbolens, orthanc: Orthanc, tmp_path: Path
) -> None:
    series = phantom_series(tmp_path / "series", seed=100_401, emboli=3)
    storescu(embolens.dicom_port, series.directory)
    job = embolens.wait_for_series(series.series_instance_uid)

    assert job["state"] == "completed", job["error"]
    assert job["calling_ae_title"] == "ORTHANC"
    assert "quiet" in job["completion_reason"]
    stored = orthanc.instances(job["deliveries"] and _seg_series_uid(embolens, job["id"]))
    assert len(stored) == 1
    seg = orthanc.file(stored[0]["ID"])
    sent = {delivery["sop_instance_uid"] for delivery in job["deliveries"]}
    in_orthanc = [*orthanc.instances(modality="SEG"), *orthanc.instances(modality="SR")]
    assert len(sent) == 2
    assert all(delivery["committed_at"] for delivery in job["deliveries"])  # Orthanc said that it keeps them
    assert sent <= {one["MainDicomTags"]["SOPInstanceUID"] for one in in_orthanc}

    labels = _emboli(seg, series.phantom)
    match = match_lesions(series.phantom.embolus_labelmap, labels)
    dice = voxel_dice(series.phantom.embolus_labelmap, labels)
    print(f"inserted 3, found {len(match.found)}, false {len(match.false)}, voxel Dice {dice:.2f}")
    assert len(match.found) >= 2
    assert dice > 0.4

    file = tmp_path / "seg.dcm"
    file.write_bytes(seg)
    checked = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    assert "Error" not in checked.stderr + checked.stdout


def test_a_phantom_without_emboli_gets_its_seg_too(embolens: RunningEmbolens, orthanc: Orthanc, tmp_path: Path) -> None:
    series = phantom_series(tmp_path / "series", seed=100_402, emboli=0)
    storescu(embolens.dicom_port, series.directory)
    job = embolens.wait_for_series(series.series_instance_uid)
    assert job["state"] == "completed", job["error"]
    seg = highdicom.seg.segread(
        io.BytesIO(orthanc.file(orthanc.instances(_seg_series_uid(embolens, job["id"]))[0]["ID"]))
    )
    assert seg.get_segment_description(1).SegmentLabel == "Pulmonary artery"
    assert seg.number_of_segments == 1 + len(job["findings"]["lesions"])
    if job["outcome"] == "no_embolus":
        assert "no embolus" in seg.SeriesDescription
    print(f"free of emboli: {len(job['findings']['lesions'])} false findings")


def _seg_series_uid(embolens: RunningEmbolens, job_id: str) -> str:
    seg = highdicom.seg.segread(io.BytesIO(embolens.http.get(f"/segment/{job_id}/seg.dcm").raise_for_status().content))
    return str(seg.SeriesInstanceUID)


def _emboli(seg: bytes, phantom: Phantom) -> np.ndarray:
    """Label map on the phantom's grid, placed by the frames' own positions, not by their order."""
    segmentation = highdicom.seg.segread(io.BytesIO(seg))
    labels = np.zeros(phantom.volume.shape_zyx, dtype=np.uint16)
    pixels = segmentation.pixel_array.reshape(-1, *labels.shape[1:])
    for frame, item in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        position = [float(value) for value in item.PlanePositionSequence[0].ImagePositionPatient]
        z = round(float(phantom.volume.index_zyx(position)[0]))
        if number > 1:
            labels[z][frame > 0] = number - 1
    return labels
