"""What is found in an upload."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, MRImageStorage

from imaging.errors import InputError, InputTooLarge
from services.dicom.headers import read_header
from services.dicom.input_reader import read_input
from services.ingest.series_selection import SelectionRule
from services.ingest.upload import inspect_upload, is_zip, unpack_uploads
from tests.services.ingest.peers import ct_series, save


def nifti(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 5), np.int16), np.eye(4)), path)
    return path


def code_of(paths: list[Path]) -> str:
    with pytest.raises(InputError) as raised:
        inspect_upload(paths)
    return raised.value.code


def test_a_ct_series_is_found(tmp_path: Path) -> None:
    slices = ct_series(4)
    files = save(slices, tmp_path)
    contents = inspect_upload(files)
    assert (contents.kind, contents.instance_count, set(contents.files)) == ("dicom", 4, set(files))
    assert contents.series_instance_uid == slices[0].SeriesInstanceUID
    assert contents.study_instance_uid == slices[0].StudyInstanceUID
    assert contents.warnings == ()


def test_a_nifti_is_told_by_its_content(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        without_suffix = nifti(tmp_path / name).rename(tmp_path / "upload")
        contents = inspect_upload([without_suffix])
        assert (contents.kind, contents.files, contents.instance_count) == ("nifti", (without_suffix,), 1)
        assert read_input(contents.files).kind == "nifti"  # the worker tells it the same way


def test_files_that_are_no_images_are_left_out_beside_dicom(tmp_path: Path) -> None:
    files = save(ct_series(3), tmp_path)
    (tmp_path / "readme.txt").write_text("viewer")
    (tmp_path / "empty").write_bytes(b"")
    contents = inspect_upload([*files, tmp_path / "readme.txt", tmp_path / "empty"])
    assert set(contents.files) == set(files)
    assert [warning.code for warning in contents.warnings] == ["input.files_ignored"]


@pytest.mark.parametrize("content", [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", b"", b"\x00" * 200, b"DICM" * 50])
def test_a_file_that_only_looks_like_dicom_by_name_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.dcm").write_bytes(content)
    assert code_of([tmp_path / "image.dcm"]) == "input.not_dicom"


def test_nothing_at_all_is_refused() -> None:
    assert code_of([]) == "input.empty"


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    whole = nifti(tmp_path / "a.nii.gz").read_bytes()
    for length in (len(whole) // 2, 20, 3):
        (tmp_path / "cut.nii.gz").write_bytes(whole[:length])
        assert code_of([tmp_path / "cut.nii.gz"]).startswith("input.")
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"no image" * 100))
    assert code_of([tmp_path / "other.gz"]).startswith("input.")


def test_two_patients_are_refused(tmp_path: Path) -> None:
    files = save(ct_series(3), tmp_path / "a") + save(ct_series(3, PatientID="another"), tmp_path / "b")
    assert code_of(files) == "input.multiple_patients"


def test_another_modality_is_refused(tmp_path: Path) -> None:
    assert code_of(save(ct_series(3, SOPClassUID=MRImageStorage, Modality="MR"), tmp_path)) == "input.modality_not_ct"


def test_of_several_ct_series_the_largest_is_taken_and_named(tmp_path: Path) -> None:
    large = ct_series(6)
    files = save(ct_series(3), tmp_path / "a") + save(large, tmp_path / "b")
    report = ct_series(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    contents = inspect_upload(files + save(report, tmp_path / "c"))
    assert contents.series_instance_uid == large[0].SeriesInstanceUID
    assert contents.instance_count == 6
    assert {warning.code for warning in contents.warnings} == {"input.several_series", "input.other_objects_ignored"}
    assert str(large[0].SeriesInstanceUID) in contents.warnings[0].text


def test_of_several_ct_series_the_rules_choose_before_the_number_of_slices(tmp_path: Path) -> None:
    angiogram = ct_series(3, ContrastBolusAgent="IOHEXOL")
    files = save(angiogram, tmp_path / "a") + save(ct_series(6), tmp_path / "b")
    rule = SelectionRule(attribute="contrast_agent", matches=".", points=1, because="contrast agent named")
    contents = inspect_upload(files, [rule])
    assert contents.series_instance_uid == angiogram[0].SeriesInstanceUID
    assert "(contrast agent named +1)" in contents.warnings[0].text


def test_two_niftis_are_refused(tmp_path: Path) -> None:
    assert code_of([nifti(tmp_path / "a.nii"), nifti(tmp_path / "b.nii.gz")]) == "input.several_volumes"


def test_a_zip_is_told_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"PK\x05\x06" + bytes(18))
    (tmp_path / "b.zip").write_bytes(b"%PDF")
    assert is_zip(tmp_path / "a")
    assert not is_zip(tmp_path / "b.zip")


@pytest.mark.fault(
    "Uploads", "a header of elements by the million, with a preamble or without", "refused while memory stays small"
)
def test_a_bomb_of_elements_is_refused(tmp_path: Path) -> None:
    element = struct.pack("<HHL", 0x0009, 0x0001, 0)
    (tmp_path / "bare").write_bytes(bytes(8 * 1024**2))
    (tmp_path / "preamble").write_bytes(bytes(128) + b"DICM" + b"".join([element] * 1_000_000))
    assert code_of([tmp_path / "bare"]) == "input.not_dicom"
    with pytest.raises(InputTooLarge, match="more elements than any image"):
        inspect_upload([tmp_path / "preamble"])


@pytest.mark.fault(
    "Uploads",
    "a deflated data set that inflates a thousandfold",
    "its header is read, no more than 16 MiB are inflated",
)
def test_the_header_of_a_deflated_bomb_takes_little_memory(tmp_path: Path) -> None:
    (one,) = ct_series(1)
    one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    one.save_as(tmp_path / "small", enforce_file_format=True)
    whole = (tmp_path / "small").read_bytes()
    begin = 132 + 12 + struct.unpack_from("<L", whole, 140)[0]
    data_set = zlib.decompress(whole[begin:], -zlib.MAX_WBITS)
    pixel_data = data_set.index(b"\xe0\x7f\x10\x00")
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    length = 400 * 1024**2
    bomb = packer.compress(data_set[:pixel_data] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<L", length))
    for _ in range(400):
        bomb += packer.compress(bytes(1024**2))
    (tmp_path / "bomb").write_bytes(whole[:begin] + bomb + packer.flush())
    tracemalloc.start()
    assert read_header(tmp_path / "bomb").SOPInstanceUID == one.SOPInstanceUID
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100 * 1024**2


@pytest.mark.fault("Uploads", "a zip whose content is nothing but zeros", "refused over EMBOLENS_UNPACKED_MAX_RATIO")
def test_a_zip_that_unpacks_to_many_times_its_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1", bytes(100 * 1024**2))
    (tmp_path / "bomb.zip").rename(tmp_path / "bomb")
    with pytest.raises(InputTooLarge):
        unpack_uploads([tmp_path / "bomb"], max_bytes=1 << 33, max_files=10, max_ratio=200)


@pytest.mark.fault("Uploads", "a zip in a zip, a gzip in a gzip", "nothing is unpacked twice: neither is an image")
def test_nothing_is_unpacked_twice(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii")
    with zipfile.ZipFile(tmp_path / "inner", "w") as inner:
        inner.write(tmp_path / "a.nii")
    with zipfile.ZipFile(tmp_path / "outer", "w") as outer:
        outer.write(tmp_path / "inner", "IM1")
    (tmp_path / "twice").write_bytes(gzip.compress(gzip.compress((tmp_path / "a.nii").read_bytes())))
    assert code_of(unpack_uploads([tmp_path / "outer"], max_bytes=1 << 20, max_files=10)) == "input.not_dicom"
    with pytest.raises(InputError):
        inspect_upload([tmp_path / "twice"])
