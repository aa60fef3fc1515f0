"""Real CT, by every way in: a DICOM push, a REST upload of a zip, and NIfTI."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from tests.end_to_end.hospital import Orthanc, RunningEmbolens, storescu

pytestmark = pytest.mark.timeout(400)
MOVED_VOXELS = 20


def _as_zip(directory: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
        for file in directory.rglob("*.dcm"):
            archive.write(file, file.relative_to(directory))
    return target


def _as_nifti(directory: Path, target: Path) -> Path:
    """Converted by SimpleITK, a reader that is not ours."""
    folder = str(next(directory.rglob("*.dcm")).parent)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    SimpleITK.WriteImage(reader.Execute(), str(target))
    return target


def _compare(lesions: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(lesions) == len(others)
    for one, other in zip(lesions, others, strict=True):
        # A rounded affine moves single voxels by 1 HU, and the networks' bf16 has three digits.
        assert one["score"] == pytest.approx(other["score"], abs=0.01)
        assert one["volume_ml"] == pytest.approx(other["volume_ml"], rel=0.01, abs=0.003)
        assert one["centroid_lps_mm"] == pytest.approx(other["centroid_lps_mm"], abs=0.1)
        assert one["artery_level"] == other["artery_level"]


def _label_map_of(seg: bytes, source: Path) -> np.ndarray:
    """The emboli of a SEG by highdicom, on the source series sorted by position: (z, y, x), z upwards."""
    segmentation = highdicom.seg.segread(io.BytesIO(seg))
    headers = [dcmread(file, stop_before_pixels=True) for file in source.rglob("*.dcm")]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    emboli = [
        n for n in segmentation.segment_numbers if "Embolus" in segmentation.get_segment_description(n).SegmentLabel
    ]
    frames = segmentation.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in headers],
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    labels = np.zeros(frames.shape[:3], dtype=np.uint16)
    for number in emboli:
        labels[frames[..., number - 1] > 0] = number - 1
    return labels


@pytest.mark.parametrize("name", ["LIDC-IDRI-0001", "RIDER"])
def test_every_way_in_gives_the_same_lesions_and_orthanc_holds_them(
    name: str,
    embolens_of_candidates: RunningEmbolens,
    orthanc: Orthanc,
    real_series: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    embolens, directory = embolens_of_candidates, real_series(name)
    series_uid = dcmread(next(directory.rglob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID

    storescu(embolens.dicom_port, directory)
    zipped = embolens.submit(_as_zip(directory, tmp_path / "study.zip"))
    nifti = embolens.submit(_as_nifti(directory, tmp_path / "ct.nii.gz"))
    pushed = embolens.wait_for_series(series_uid, timeout_s=200)
    ends = [pushed, embolens.wait_for_end(zipped["id"], 200), embolens.wait_for_end(nifti["id"], 200)]

    assert [(job["state"], job["error"]) for job in ends] == [("completed", None)] * 3
    findings = [job["findings"] for job in ends]
    assert findings[0]["lesions"], "something to compare"
    _compare(findings[0]["lesions"], findings[1]["lesions"])
    _compare(findings[0]["lesions"], findings[2]["lesions"])
    print(f"{name}: {len(findings[0]['lesions'])} findings, artery {findings[0]['provenance']['artery_hu']} HU")

    segs = [orthanc.file(item["ID"]) for item in orthanc.instances(modality="SEG")]
    ours = [
        seg for seg in segs if series_uid in str(dcmread(io.BytesIO(seg)).ReferencedSeriesSequence[0].SeriesInstanceUID)
    ]
    assert len(ours) == 1, "exactly one SEG of this series in the PACS"
    # The file meta names who wrote the file; the data set is ours to the last value.
    assert dcmread(io.BytesIO(ours[0])) == dcmread(
        io.BytesIO(embolens.http.get(f"/segment/{pushed['id']}/seg.dcm").content)
    )
    labels = _label_map_of(ours[0], directory)
    np.testing.assert_array_equal(labels, _mask_of(embolens, pushed["id"], tmp_path))
    # NIfTI keeps its geometry in single precision, which moves a few voxels at lesions' edges.
    assert np.count_nonzero(labels != _mask_of(embolens, nifti["id"], tmp_path)) <= MOVED_VOXELS


def _mask_of(embolens: RunningEmbolens, job_id: str, directory: Path) -> np.ndarray:
    """A job's mask.nii.gz as (z, y, x)."""
    file = directory / f"{job_id}.nii.gz"
    file.write_bytes(embolens.http.get(f"/segment/{job_id}/mask.nii.gz").raise_for_status().content)
    return np.asarray(nibabel.load(file).dataobj).transpose(2, 1, 0)


def test_a_series_too_thick_to_judge_is_not_called_free_of_emboli(
    embolens: RunningEmbolens, real_series: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = real_series("Lung_Dx")
    job = embolens.submit(_as_zip(directory, tmp_path / "thick.zip"))
    job = embolens.wait_for_end(job["id"])
    assert job["state"] == "not_analysable"
    assert job["outcome"] == "not_analysable"
    assert "geometry.slice_spacing" in [reason["code"] for reason in job["reasons"]]
    assert job["findings"]["scan_probability"] is None
