"""`embolens segment`: every way in, every way out. A threshold stands for the networks; tests/end_to_end has those."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

import cli.app
import models.cascade
from imaging.errors import EmbolensError
from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter


@pytest.fixture
def volume() -> CtVolume:
    hu = np.full((24, 40, 48), -800, dtype=np.int16)
    hu[8:16, 16:24, 4:44] = LUMEN_HU
    hu[10:14, 18:22, 20:24] = CLOT_HU
    return CtVolume(hu, np.array([[0, 0, 1, -20], [0, 1, 0, -30], [1, 0, 0, 5], [0, 0, 0, 1]], dtype=np.float64))


@pytest.fixture
def dicom_folder(volume: CtVolume, tmp_path: Path) -> Path:
    write_ct_series(volume, tmp_path / "dicom", patient_id="P1", patient_name="Phantom^One")
    return tmp_path / "dicom"


@pytest.fixture
def segment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command in this process; returns the findings and the names of the files written."""
    monkeypatch.setattr(models.cascade.Cascade, "load", lambda package, device, options, backend: ThresholdSegmenter())

    def run(path: Path, *options: str) -> tuple[dict[str, Any], set[str]]:
        output = tmp_path / "out"
        done = CliRunner().invoke(cli.app.app, ["segment", str(path), "--output", str(output), *options])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return json.loads((output / "findings.json").read_text()), {file.name for file in output.iterdir()}

    return run


def test_a_dicom_folder_gives_findings_masks_and_a_seg(segment: Any, dicom_folder: Path) -> None:
    findings, files = segment(dicom_folder)

    assert files == {
        *("findings.json", "mask.nii.gz", "artery.nii.gz", "preview.png"),
        *("seg.dcm", "sr.dcm", "key-image-1.dcm", "key-image-2.dcm", "report.dcm"),
    }
    assert findings["outcome"] == "embolus_found"
    assert findings["lesions"][0]["volume_ml"] == pytest.approx(0.064)
    shown = pydicom.dcmread(dicom_folder / "000011.dcm").SOPInstanceUID
    assert findings["lesions"][0]["sop_instance_uid"] == shown


def test_a_zip_and_a_folder_with_other_things_in_it_give_the_same(
    segment: Any, dicom_folder: Path, tmp_path: Path
) -> None:
    expected, _ = segment(dicom_folder)
    (dicom_folder / "README.txt").write_text("exported by the viewer")
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for file in dicom_folder.iterdir():
            opened.write(file, f"STUDY/{file.name}")

    for path in (dicom_folder, archive):
        findings, _ = segment(path)
        assert findings["lesions"] == expected["lesions"]
        assert [reason["code"] for reason in findings["reasons"]] == ["input.files_ignored"]


def test_a_nifti_gives_masks_on_its_own_grid(segment: Any, volume: CtVolume, tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine_lps[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(volume.hu.transpose(2, 1, 0), affine), path)

    _, files = segment(path)

    assert "seg.dcm" not in files
    mask = nibabel.load(tmp_path / "out/mask.nii.gz")
    assert mask.shape == (48, 40, 24)
    np.testing.assert_allclose(mask.affine, affine)
    assert np.asarray(mask.dataobj)[20:24, 18:22, 10:14].all()


@pytest.mark.parametrize("kind", ["pdf", "empty zip", "truncated gzip", "empty folder"])
def test_what_is_no_ct_is_not_analysable_and_says_why(kind: str, segment: Any, tmp_path: Path) -> None:
    path = tmp_path / "input.dcm"
    match kind:
        case "pdf":
            path.write_bytes(b"%PDF-1.7\n" + b"x" * 500)
        case "empty zip":
            zipfile.ZipFile(path, "w").close()
        case "truncated gzip":
            path.write_bytes(b"\x1f\x8b\x08\x00")
        case "empty folder":
            path.mkdir()

    with pytest.raises(EmbolensError) as refused:
        segment(path)

    assert cli.app.exit_code_of(refused.value) == 3
    findings = json.loads((tmp_path / "out/findings.json").read_text())
    assert findings["outcome"] == "not_analysable"
    assert findings["reasons"][0]["code"].startswith("input.")
    assert not (tmp_path / "out/mask.nii.gz").exists()


def test_a_scan_that_the_networks_refuse_leaves_no_result_of_an_earlier_run(
    segment: Any, volume: CtVolume, dicom_folder: Path, tmp_path: Path
) -> None:
    segment(dicom_folder)
    plain = CtVolume(np.full(volume.shape_zyx, -800, dtype=np.int16), volume.affine_lps)
    write_ct_series(plain, tmp_path / "plain", patient_id="P2", patient_name="Phantom^Two")

    with pytest.raises(EmbolensError, match="no opacified vessel"):
        segment(tmp_path / "plain")

    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("findings.json", "sr.dcm", "key-image-1.dcm", "report.dcm"),
    }
    report = pydicom.dcmread(tmp_path / "out/sr.dcm")
    assert (report.PatientID, report.SOPClassUID.name) == ("P2", "Comprehensive 3D SR Storage")
    assert "contrast: none" in str(report)
