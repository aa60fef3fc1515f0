"""Real scans, where ../shared/data has them; each test names what it misses otherwise."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from imaging.errors import NotAnalysable
from imaging.findings import Findings, Outcome
from services.dicom.input_reader import read_input
from services.dicom.label_nifti import nifti_of, save_nifti
from services.dicom.result_files import write_not_analysable, write_results
from services.dicom.result_kind import ResultKind
from services.dicom.seg_writer import segment_numbers, write_seg
from services.dicom.series_reader import SourceSeries, inspect_headers, read_series
from tests.services.dicom.checked_objects import dcentvfy_errors, dciodvfy_errors, dsrdump
from tests.services.dicom.made_series import IDENTITY, REAL_DATA, made_result
from tests.services.dicom.test_seg_writer import read_by_highdicom

LIDC = REAL_DATA / "chest_ct/LIDC-IDRI-0001_contrast_133sl.tar.xz"
RIDER = REAL_DATA / "chest_ct/RIDER-Pilot-0117_CTPA-protocol_lower-chest_95sl.tar.xz"
TINY = REAL_DATA / "chest_ct/tiny_chest_64x64x79_dicom"
HARD = REAL_DATA / "hard_dicom"


def unpacked(archive: Path, directory: Path) -> list[Path]:
    if not archive.exists():
        pytest.skip(f"../shared/data/{archive.relative_to(REAL_DATA)} is absent")
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as files:
            files.extractall(directory)
    else:
        with tarfile.open(archive) as files:
            files.extractall(directory, filter="data")
    return sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def lidc_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return unpacked(LIDC, tmp_path_factory.mktemp("lidc"))


@pytest.fixture(scope="module")
def lidc(lidc_files: list[Path]) -> SourceSeries:
    return read_series(lidc_files)


def test_lidc_0001_is_read_where_simpleitk_puts_it(lidc: SourceSeries, lidc_files: list[Path]) -> None:
    assert lidc.volume.shape_zyx == (133, 512, 512)
    assert lidc.volume.spacing_zyx_mm == pytest.approx((2.5, 0.703125, 0.703125))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(lidc_files[0].parent)))
    image = reader.Execute()
    np.testing.assert_array_equal(lidc.volume.hu, np.maximum(SimpleITK.GetArrayViewFromImage(image), -1024))
    for index in ((0, 0, 0), (132, 511, 511), (60, 200, 300)):
        expected = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        np.testing.assert_allclose(lidc.volume.point_lps_mm(index), expected, atol=1e-3)


def test_lidc_0001_gets_a_valid_seg_on_its_own_voxels(lidc: SourceSeries, tmp_path: Path) -> None:
    result = made_result(lidc.volume, emboli=3)
    path = write_seg(lidc, result, tmp_path / "seg.dcm", identity=IDENTITY).path
    np.testing.assert_array_equal(read_by_highdicom(path, lidc.volume), segment_numbers(result))
    assert dciodvfy_errors(path) == []


def test_lidc_0001_gets_objects_that_tools_of_others_accept(
    lidc: SourceSeries, lidc_files: list[Path], tmp_path: Path
) -> None:
    written = write_results(lidc, made_result(lidc.volume, emboli=3), tmp_path / "result", IDENTITY)
    assert set(written.objects) == set(ResultKind)
    objects = [one.path for one in written.objects_of(ResultKind)]
    assert {path.name: dciodvfy_errors(path) for path in objects} == {path.name: [] for path in objects}
    assert dcentvfy_errors([*objects, *lidc_files]) == []
    assert '"Embolus 3"' in dsrdump(tmp_path / "result/sr.dcm")


def test_lidc_0001_as_nifti_is_the_same_volume(lidc: SourceSeries, tmp_path: Path) -> None:
    image = nifti_of(lidc.volume.hu.view(np.uint16), lidc.volume.affine_lps)
    image.set_data_dtype(np.int16)
    image = type(image)(lidc.volume.hu.transpose(2, 1, 0), image.affine, image.header)
    save_nifti(image, tmp_path / "lidc.nii.gz")
    volume = read_input(tmp_path / "lidc.nii.gz").volume
    np.testing.assert_array_equal(volume.hu, lidc.volume.hu)
    np.testing.assert_allclose(volume.affine_lps, lidc.volume.affine_lps, atol=1e-4)


def test_rider_ctpa_is_read_and_gets_a_valid_seg(tmp_path: Path) -> None:
    source = read_series(unpacked(RIDER, tmp_path / "rider"))
    assert source.volume.shape_zyx == (95, 512, 512)
    assert source.volume.spacing_zyx_mm[0] == pytest.approx(0.8, abs=1e-4)  # increments of 1.25 mm slices
    assert source.volume.hu.min() == -1024  # padding was -3024
    path = write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path
    assert dciodvfy_errors(path) == []


@pytest.mark.skipif(not TINY.is_dir(), reason="../shared/data/chest_ct/tiny_chest_64x64x79_dicom is absent")
def test_tiny_chest_is_read_as_its_nrrd_twin() -> None:
    volume = read_input(TINY).volume
    twin = SimpleITK.ReadImage(str(REAL_DATA / "nifti_nrrd/chest_64x64x79.nrrd"))
    np.testing.assert_array_equal(volume.hu, SimpleITK.GetArrayViewFromImage(twin))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("tilt_GE_+18.5deg_28sl.zip", "geometry.unequal_spacing"),
        ("dicom2nifti_failing_sliceincrement_001.zip", "geometry.missing_slices"),
        ("dicom2nifti_failing_slicecount_2slices_MR.zip", "input.modality_not_ct"),
        ("philips_exam-summary_mixed-sizes_localizers_CT.zip", "input.modality_not_ct"),
        ("Modality-SEG_but_CT-SOP-class_LungFCP.zip", "input.modality_not_ct"),
        ("derived_LIDC-0001_duplicate-SOP-UIDs.zip", "input.duplicate_sop_instance_uid"),
    ],
)
def test_hard_series_are_refused_with_their_code(tmp_path: Path, name: str, code: str) -> None:
    files = unpacked(HARD / name, tmp_path / "series")
    with pytest.raises(NotAnalysable) as refusal:
        read_series(files)
    assert refusal.value.code == code

    findings = Findings(Outcome.NOT_ANALYSABLE, refusal.value.reasons)
    written = write_not_analysable(findings, tmp_path / "result", IDENTITY, files)
    objects = [one.path for one in written.objects_of(ResultKind)]
    assert {path.name: dciodvfy_errors(path) for path in objects} == {path.name: [] for path in objects}
    assert code in dsrdump(tmp_path / "result/sr.dcm")


@pytest.mark.parametrize(("first", "last", "spacing_mm"), [(1, 14, 4.0), (15, 28, 7.0)])
def test_a_tilted_head_lies_where_simpleitk_puts_its_slices(
    tmp_path: Path, first: int, last: int, spacing_mm: float
) -> None:
    paths = unpacked(HARD / "tilt_GE_+18.5deg_28sl.zip", tmp_path)[first - 1 : last]
    source = read_series(paths)
    assert source.volume.spacing_zyx_mm == pytest.approx((spacing_mm, 0.48828, 0.48828), abs=2e-3)
    assert [reason.code for reason in source.reasons] == ["geometry.resampled"]
    for index, path in enumerate(paths):
        image = SimpleITK.ReadImage(str(path))
        rows, columns = np.mgrid[100:400:50, 100:400:50]
        for row, column in zip(rows.flat, columns.flat, strict=True):
            point = image.TransformIndexToPhysicalPoint([int(column), int(row), 0])
            z, y, x = source.volume.index_zyx(point)
            assert z == pytest.approx(index, abs=1e-3)
            around = [max(-1024, image[int(column), int(row) + shift, 0]) for shift in (-1, 0, 1)]
            assert min(around) - 1 <= source.volume.hu[index, round(y), round(x)] <= max(around) + 1


def test_a_tilted_head_gets_a_valid_seg_on_its_own_slices(tmp_path: Path) -> None:
    source = read_series(unpacked(HARD / "dicom2nifti_failing_gantrytilting_001.zip", tmp_path / "series"))
    assert source.volume.shape_zyx == (4, 521, 512)
    path = write_seg(source, made_result(source.volume, emboli=1), tmp_path / "seg.dcm", identity=IDENTITY).path
    assert dciodvfy_errors(path) == []
    assert SimpleITK.ReadImage(str(path)).GetSize()[:2] == (512, 512)


def test_headers_of_lidc_0001_are_summed_up(lidc_files: list[Path]) -> None:
    (info,) = inspect_headers(lidc_files).series
    assert (info.patient_id, info.modality, info.count, info.rows) == ("LIDC-IDRI-0001", "CT", 133, 512)
    assert info.slice_spacing_mm == pytest.approx(2.5)
    assert info.is_ct
