"""NIfTI to DICOM and back: the same HU in the same place, or nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from nibabel.nifti1 import Nifti1Image

from imaging.errors import InputError
from imaging.geometry import to_canonical
from imaging.volume import CtVolume
from services.dicom.conversion import dicom_to_nifti, nifti_to_dicom
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.input_reader import read_input
from services.dicom.label_nifti import affine_ras_of
from tests.services.dicom.made_series import REAL_DATA, axial_affine, counting_volume, edit, oblique_affine
from tests.services.dicom.made_series import written_series as write_series

LOW_TO_HIGH = np.array([-32768, -3024, -2000, -1025, -1024, 0, 3071, 32767], dtype=np.int16)


def wide_volume(affine: np.ndarray) -> CtVolume:
    """The counting volume with values no analysis would keep."""
    hu = counting_volume().hu.copy()
    hu[2, 3, : len(LOW_TO_HIGH)] = LOW_TO_HIGH
    return CtVolume(hu, affine)


def flipped(affine: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The affine of the same grid with some axes running the other way."""
    turned = affine.copy()
    for axis in axes:
        turned[:3, 3] += turned[:3, axis] * (counting_volume().shape_zyx[axis] - 1)
        turned[:3, axis] *= -1
    return turned


AFFINES = {
    "axial": axial_affine(),
    "oblique": oblique_affine(),
    "rows and columns flipped": flipped(axial_affine(), (1, 2)),
    "slices flipped": flipped(axial_affine(), (0,)),
    "columns flipped, oblique": flipped(oblique_affine(), (2,)),
    "all flipped, oblique": flipped(oblique_affine(), (0, 1, 2)),
    "odd spacing far away": axial_affine((1.0 / 3, 0.123456789, 0.7), (-987.654321, 512.333333, -900.1234567)),
}
EVERY_AFFINE = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())


def is_right_handed(affine: np.ndarray) -> bool:
    """Slices run along row direction x column direction, the only order DICOM knows."""
    z, y, x = affine[:3, :3].T
    return float(np.cross(x, y) @ z) > 0


def assert_same(found: CtVolume, expected: CtVolume, *, stored_alike: bool = False) -> None:
    """In patient space; with `stored_alike` also voxel by voxel."""
    if not stored_alike:
        found, expected = to_canonical(found)[0], to_canonical(expected)[0]
    np.testing.assert_array_equal(found.hu, expected.hu)
    np.testing.assert_allclose(found.affine_lps, expected.affine_lps, atol=1e-4, rtol=0)


@EVERY_AFFINE
def test_nifti_to_dicom_to_nifti_is_the_same_image(tmp_path: Path, affine: np.ndarray) -> None:
    volume = wide_volume(affine)
    write_ct_nifti(volume, tmp_path / "ct.nii.gz")
    nifti_to_dicom(tmp_path / "ct.nii.gz", tmp_path / "series")
    dicom_to_nifti(tmp_path / "series", tmp_path / "back.nii.gz")
    assert_same(read_input(tmp_path / "back.nii.gz", exact=True).volume, volume, stored_alike=is_right_handed(affine))


@EVERY_AFFINE
def test_dicom_to_nifti_to_dicom_is_the_same_image(tmp_path: Path, affine: np.ndarray) -> None:
    write_series(tmp_path / "series", wide_volume(affine))
    original = read_input(tmp_path / "series", exact=True).volume
    dicom_to_nifti(tmp_path / "series", tmp_path / "ct.nii.gz")
    nifti_to_dicom(tmp_path / "ct.nii.gz", tmp_path / "back")
    assert_same(read_input(tmp_path / "back", exact=True).volume, original, stored_alike=True)


def test_nibabel_finds_each_voxel_where_dicom_says(tmp_path: Path) -> None:
    """Against another reader, worked by hand: index (x, y, z) = column, row, slice, RAS = (-L, -P, S)."""
    paths = write_series(tmp_path / "series", counting_volume(affine=oblique_affine()))
    dicom_to_nifti(tmp_path / "series", tmp_path / "ct.nii")
    image = nibabel.load(tmp_path / "ct.nii")
    slice_three = pydicom.dcmread(paths[3])
    row, column = np.reshape(slice_three.ImageOrientationPatient, (2, 3)).astype(float)
    point_lps = np.array(slice_three.ImagePositionPatient, float) + 5 * 0.7 * row + 2 * 0.8 * column
    np.testing.assert_allclose(image.affine @ [5, 2, 3, 1], [-point_lps[0], -point_lps[1], point_lps[2], 1], atol=1e-4)
    assert np.asarray(image.dataobj)[5, 2, 3] == slice_three.pixel_array[2, 5]
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_padding_and_slope_of_a_scanner_are_applied_exactly(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "series"):
        edit(path, lambda d: d.update({"RescaleSlope": 2, "RescaleIntercept": -1000}))
        edit(path, lambda d: d.add_new("PixelPaddingValue", "SS", -995))
    dicom_to_nifti(tmp_path / "series", tmp_path / "exact.nii.gz")
    exact = np.asarray(nibabel.load(tmp_path / "exact.nii.gz").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(exact, counting_volume().hu.astype(int) * 2 - 1000)
    dicom_to_nifti(tmp_path / "series", tmp_path / "as-analysed.nii.gz", rounded=True)
    analysed = np.asarray(nibabel.load(tmp_path / "as-analysed.nii.gz").dataobj)
    assert analysed.min() == -1024


def float_nifti(path: Path, change: dict[tuple[int, int, int], float]) -> Path:
    values = counting_volume().hu.astype(np.float32)
    for place, value in change.items():
        values[place] = value
    nibabel.save(Nifti1Image(values.transpose(2, 1, 0), affine_ras_of(axial_affine())), path)
    return path


def test_whole_numbers_in_floating_point_are_taken(tmp_path: Path) -> None:
    path = float_nifti(tmp_path / "ct.nii.gz", {(0, 0, 0): -1000.0001})
    nifti_to_dicom(path, tmp_path / "series")
    assert_same(read_input(tmp_path / "series").volume, counting_volume())


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (12.5, "input.hu_not_whole"),
        (float("nan"), "input.hu_not_whole"),
        (float("inf"), "input.hu_not_whole"),
        (32768.0, "input.hu_beyond_16_bits"),
        (-40000.0, "input.hu_beyond_16_bits"),
    ],
)
def test_hu_that_16_bits_cannot_hold_exactly_are_refused_or_rounded_on_demand(
    tmp_path: Path, value: float, code: str
) -> None:
    path = float_nifti(tmp_path / "ct.nii.gz", {(3, 2, 1): value})
    with pytest.raises(InputError) as refusal:
        nifti_to_dicom(path, tmp_path / "series")
    assert refusal.value.code == code
    assert refusal.value.remedy
    assert [entry.name for entry in tmp_path.iterdir()] == ["ct.nii.gz"], "nothing half made is left"
    nifti_to_dicom(path, tmp_path / "series", rounded=True)
    expected = counting_volume().hu.copy()
    expected[3, 2, 1] = {12.5: 12, 32768.0: 32767, float("inf"): 32767}.get(value, -1024)
    np.testing.assert_array_equal(read_input(tmp_path / "series").volume.hu, expected)


def test_fractional_slopes_of_a_scanner_are_refused_or_rounded_on_demand(tmp_path: Path) -> None:
    for path in write_series(tmp_path / "series"):
        edit(path, lambda d: d.update({"RescaleSlope": "2.0002442", "RescaleIntercept": "-47"}))
    with pytest.raises(InputError, match="is not a whole number"):
        dicom_to_nifti(tmp_path / "series", tmp_path / "ct.nii.gz")
    dicom_to_nifti(tmp_path / "series", tmp_path / "ct.nii.gz", rounded=True)
    assert (tmp_path / "ct.nii.gz").is_file()


def test_axes_that_dicom_cannot_express_are_refused(tmp_path: Path) -> None:
    """A NIfTI may be sheared a little; over a long volume that is more than a thousandth of a millimetre."""
    affine = axial_affine()
    affine[:3, 0] += [0.002, 0, 0]
    write_ct_nifti(CtVolume(counting_volume().hu, affine), tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match=r"displaced by up to 0\.0\d+ mm"):
        nifti_to_dicom(tmp_path / "ct.nii.gz", tmp_path / "series")
    assert not (tmp_path / "series").exists()


def test_the_same_file_gives_the_same_uids_and_another_gives_others(tmp_path: Path) -> None:
    write_ct_nifti(counting_volume(), tmp_path / "a.nii.gz")
    write_ct_nifti(counting_volume(affine=oblique_affine()), tmp_path / "b.nii.gz")
    for source, series in (("a", "first"), ("a", "second"), ("b", "other")):
        nifti_to_dicom(tmp_path / f"{source}.nii.gz", tmp_path / series)
    first, second, other = (
        pydicom.dcmread(tmp_path / series / "000001.dcm") for series in ("first", "second", "other")
    )
    assert first.SOPInstanceUID == second.SOPInstanceUID
    assert first.PatientID == second.PatientID
    assert {first.StudyInstanceUID, first.FrameOfReferenceUID}.isdisjoint(
        {other.StudyInstanceUID, other.FrameOfReferenceUID}
    )
    assert first.PatientID != other.PatientID


def test_the_series_is_valid_dicom_and_invents_nothing(tmp_path: Path) -> None:
    write_ct_nifti(counting_volume(affine=oblique_affine()), tmp_path / "ct.nii.gz")
    nifti_to_dicom(tmp_path / "ct.nii.gz", tmp_path / "series", patient_id="P-7", patient_name="Doe^Jane")
    paths = sorted((tmp_path / "series").iterdir())
    dataset = pydicom.dcmread(paths[0])
    assert (dataset.PatientID, dataset.PatientName) == ("P-7", "Doe^Jane")
    assert not dataset.StudyDate
    assert dataset.KVP is None
    for command in (["dciodvfy", "-new", str(paths[2])], ["dcentvfy", *map(str, paths)]):
        report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Error" not in report.stdout + report.stderr


def test_a_nifti_without_orientation_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii"
    write_ct_nifti(counting_volume(), path)
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)
    path.write_bytes(content)
    assert [reason.code for reason in nifti_to_dicom(path, tmp_path / "series")] == ["geometry.orientation_unknown"]


@pytest.mark.skipif(
    not (REAL_DATA / "chest_ct/tiny_chest_64x64x79_dicom").is_dir(),
    reason="../shared/data/chest_ct/tiny_chest_64x64x79_dicom is absent",
)
def test_a_real_series_survives_the_round_trip(tmp_path: Path) -> None:
    source = REAL_DATA / "chest_ct/tiny_chest_64x64x79_dicom"
    dicom_to_nifti(source, tmp_path / "ct.nii.gz")
    nifti_to_dicom(tmp_path / "ct.nii.gz", tmp_path / "series")
    original = read_input(source, exact=True).volume
    assert_same(read_input(tmp_path / "series", exact=True).volume, original, stored_alike=True)


ORIENTATIONS = sorted((REAL_DATA / "nifti_nrrd/orientations_24").glob("*.nii.gz"))


@pytest.mark.skipif(not ORIENTATIONS, reason="../shared/data/nifti_nrrd/orientations_24 is absent")
@pytest.mark.parametrize("path", ORIENTATIONS, ids=lambda path: path.name)
def test_every_order_of_axes_becomes_the_same_patient(tmp_path: Path, path: Path) -> None:
    original = read_input(path).volume
    nifti_to_dicom(path, tmp_path / "series", rounded=True)
    assert_same(read_input(tmp_path / "series").volume, original)


def test_an_nrrd_becomes_a_series_or_a_nifti_in_its_place(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(counting_volume().hu)
    image.SetSpacing(counting_volume().spacing_zyx_mm[::-1])
    image.SetOrigin(counting_volume().affine_lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "ct.nrrd"))
    nifti_to_dicom(tmp_path / "ct.nrrd", tmp_path / "series")
    dicom_to_nifti(tmp_path / "ct.nrrd", tmp_path / "ct.nii.gz")
    for written in (tmp_path / "series", tmp_path / "ct.nii.gz"):
        volume = read_input(written).volume
        np.testing.assert_array_equal(volume.hu, counting_volume().hu)
        np.testing.assert_allclose(volume.affine_lps, counting_volume().affine_lps, atol=1e-5)
