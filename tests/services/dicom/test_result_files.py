from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from imaging.errors import Reason
from imaging.findings import Findings, Outcome
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.input_reader import read_input
from services.dicom.result_files import write_not_analysable, write_results
from services.dicom.result_kind import ResultKind
from services.dicom.seg_options import SegOptions
from services.dicom.series_reader import read_series
from tests.services.dicom.checked_objects import dciodvfy_errors
from tests.services.dicom.made_series import IDENTITY, counting_volume, made_result, oblique_affine, written_series
from tests.services.dicom.test_nifti_reader import counting_nifti


def test_a_dicom_source_gets_all_its_files(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series", counting_volume(affine=oblique_affine())))
    result = made_result(source.volume)
    written = write_results(source, result, tmp_path / "result", IDENTITY)
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == [
        "artery.nii.gz",
        "findings.json",
        "key-image-1.dcm",
        "key-image-2.dcm",
        "key-image-3.dcm",
        "mask.nii.gz",
        "preview.png",
        "report.dcm",
        "seg.dcm",
        "sr.dcm",
    ]
    assert list(tmp_path.glob(".*")) == []
    assert list(written.objects) == list(ResultKind)
    assert all(one.path.is_file() for one in written.objects_of(ResultKind))

    mask = nibabel.load(written.mask_path)
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0), result.embolus_labelmap)
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(written.artery_path).dataobj).transpose(2, 1, 0), result.artery
    )
    # NIfTI is RAS: the voxel (x, y, z) = (3, 2, 1) lies at minus L, minus P
    left, posterior, superior = source.volume.point_lps_mm((1, 2, 3))
    np.testing.assert_allclose(mask.affine @ [3, 2, 1, 1], [-left, -posterior, superior, 1], atol=1e-4)


def test_without_artery_and_emboli_the_report_alone_says_that_none_was_found(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series"))
    result = made_result(source.volume, emboli=0)
    written = write_results(source, result, tmp_path / "result", IDENTITY, SegOptions(artery=False))
    assert [one.path.name for one in written.objects_of([ResultKind.SEG, ResultKind.SR])] == ["sr.dcm"]
    assert dciodvfy_errors(tmp_path / "result/sr.dcm") == []


def test_findings_name_the_source_image_of_each_peak_and_what_made_them(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series"))
    written = write_results(source, made_result(source.volume), tmp_path / "result", IDENTITY)
    findings = json.loads(written.findings_path.read_text())
    assert findings == written.findings.to_dict()
    assert [lesion["sop_instance_uid"] for lesion in findings["lesions"]] == list(source.sop_instance_uids[2:4])
    provenance = findings["provenance"]
    assert provenance["threshold"] == 0.5
    assert provenance["package_sha256"] == IDENTITY.package_sha256
    assert provenance["input"]["series_instance_uid"] == source.series_instance_uid
    assert provenance["input"]["sop_instance_uids"] == list(source.sop_instance_uids)


def test_a_nifti_source_gets_its_masks_on_its_own_grid_and_no_dicom(tmp_path: Path) -> None:
    path = counting_nifti(tmp_path / "ct.nii.gz")
    source = read_input(path)
    written = write_results(source, made_result(source.volume), tmp_path / "result", IDENTITY)
    assert written.objects == {}
    assert not list((tmp_path / "result").glob("*.dcm"))
    assert written.mask_path is not None
    np.testing.assert_array_equal(nibabel.load(written.mask_path).affine, nibabel.load(path).affine)
    assert nibabel.load(written.mask_path).shape == nibabel.load(path).shape
    assert written.findings.lesions[0].sop_instance_uid is None


@pytest.mark.parametrize("emboli", [0, 2])
def test_repeated_work_writes_the_same_bytes(tmp_path: Path, emboli: int) -> None:
    source = read_series(written_series(tmp_path / "series"))
    for name in ("first", "second"):
        write_results(source, made_result(source.volume, emboli=emboli), tmp_path / name, IDENTITY)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series"))
    directory = tmp_path / "result"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    (directory / "findings.json").write_text("old")
    write_results(source, made_result(source.volume), directory, IDENTITY)
    assert (directory / "notes.txt").read_text() == "mine"
    assert json.loads((directory / "findings.json").read_text())["outcome"] == "embolus_found"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series"))
    with pytest.raises(ValueError, match="grid"):
        write_results(source, made_result(counting_volume((6, 16, 23))), tmp_path / "result", IDENTITY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series"]


REFUSED = Findings(Outcome.NOT_ANALYSABLE, reasons=(Reason("geometry.gantry_tilt", "sheared"),))


def test_what_is_no_dicom_and_not_analysable_has_findings_alone(tmp_path: Path) -> None:
    (tmp_path / "ct.nii.gz").write_bytes(b"no DICOM")
    written = write_not_analysable(REFUSED, tmp_path / "result", IDENTITY, [tmp_path / "ct.nii.gz"])
    assert [path.name for path in (tmp_path / "result").iterdir()] == ["findings.json"]
    content = json.loads(written.findings_path.read_text())
    assert (content["outcome"], content["clot_burden_ml"]) == ("not_analysable", None)
    assert content["provenance"]["software_version"] == "0.1.0"


def test_a_series_that_is_not_analysable_has_a_report_and_no_seg(tmp_path: Path) -> None:
    files = written_series(tmp_path / "series")
    written = write_not_analysable(REFUSED, tmp_path / "result", IDENTITY, files)
    assert set(written.objects) == set(ResultKind) - {ResultKind.SEG}
    assert all(one.path.is_file() for one in written.objects_of(ResultKind))
    assert not (tmp_path / "result/seg.dcm").exists()
    again = write_not_analysable(REFUSED, tmp_path / "again", IDENTITY, files[::-1])
    assert again.objects[ResultKind.SR][0].path.read_bytes() == written.objects[ResultKind.SR][0].path.read_bytes()


def test_reports_on_files_of_equal_names_and_sizes_are_two_objects(tmp_path: Path) -> None:
    reports = []
    for patient in ("P1", "P2"):
        files = write_ct_series(counting_volume(), tmp_path / patient, patient_id=patient, patient_name="Phantom^One")
        written = write_not_analysable(REFUSED, tmp_path / f"result {patient}", IDENTITY, files)
        reports.append(written.objects[ResultKind.SR][0])
    assert reports[0].sop_instance_uid != reports[1].sop_instance_uid
    assert reports[0].series_instance_uid != reports[1].series_instance_uid


def test_warnings_about_the_source_stand_in_the_findings(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series")).with_reasons(Reason("geometry.localizer_ignored", "1"))
    written = write_results(source, made_result(source.volume), tmp_path / "result", IDENTITY)
    assert written.findings.reasons == source.reasons
