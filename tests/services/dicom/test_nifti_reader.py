from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Image

from imaging.errors import InputError, InputTooLarge, NotAnalysable
from imaging.geometry import to_canonical
from services.dicom.label_nifti import affine_ras_of, nifti_of, save_nifti
from services.dicom.nifti_reader import check_nifti, read_nifti
from tests.services.dicom.made_series import REAL_DATA, axial_affine, counting_volume, oblique_affine

ORIENTATIONS = sorted((REAL_DATA / "nifti_nrrd/orientations_24").glob("*.nii.gz"))
AFFINE = np.array([[-0.7, 0, 0, 10.0], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])


def counting_nifti(path: Path, *, dtype: str = "<i2", affine: np.ndarray = AFFINE) -> Path:
    """The counting volume, axes (x, y, z), at the place where made_series puts it."""
    header = Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    image = Nifti1Image(counting_volume().hu.transpose(2, 1, 0).astype(dtype), affine, header)
    nibabel.save(image, path)
    return path


def patched(path: Path, offset: int, value: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", "<f8", "<i4"])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_a_nifti_is_the_volume_it_was_made_of(tmp_path: Path, dtype: str, name: str) -> None:
    path = counting_nifti(tmp_path / name, dtype=dtype)
    check_nifti(path)
    source = read_nifti(path)
    np.testing.assert_array_equal(source.volume.hu, counting_volume().hu)
    np.testing.assert_allclose(source.volume.affine_lps, counting_volume().affine_lps, atol=1e-6)
    assert source.reasons == ()


def test_slope_and_intercept_are_applied_and_nan_is_air(tmp_path: Path) -> None:
    path = counting_nifti(tmp_path / "ct.nii")
    path = patched(path, 112, np.array([0.5, -100], dtype="<f4").tobytes())
    np.testing.assert_array_equal(
        read_nifti(path).volume.hu, np.maximum(np.rint(counting_volume().hu * 0.5 - 100), -1024)
    )
    path = counting_nifti(tmp_path / "float.nii", dtype="<f4")
    assert read_nifti(patched(path, 352, np.float32(np.nan).tobytes())).volume.hu[0, 0, 0] == -1024


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_labels_go_back_onto_the_files_own_grid_and_axes(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    array = counting_volume().hu.transpose(2, 1, 0).transpose(axes)[:, ::-1]
    affine = AFFINE[:, [*axes, 3]].copy()
    affine[:3, 3] += affine[:3, 1] * (array.shape[1] - 1)
    affine[:3, 1] *= -1
    path = tmp_path / "ct.nii.gz"
    original = Nifti1Image(np.ascontiguousarray(array), affine)
    original.set_qform(affine, code=1)
    original.set_sform(affine, code=4)
    nibabel.save(original, path)

    source = read_nifti(path)
    canonical, order = to_canonical(source.volume)
    np.testing.assert_array_equal(canonical.hu, counting_volume().hu)
    labels = order.undo((canonical.hu > -500).astype(np.uint16))
    save_nifti(source.nifti_image(labels), tmp_path / "mask.nii.gz")

    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), array > -500)
    np.testing.assert_array_equal(mask.affine, nibabel.load(path).affine)
    assert mask.get_data_dtype() == np.uint8
    for field in ("qform_code", "sform_code", "pixdim", "quatern_b", "srow_x", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[field], nibabel.load(path).header[field])


def test_more_than_255_labels_need_16_bits() -> None:
    labels = np.arange(300, dtype=np.uint16).reshape(3, 10, 10)
    assert nifti_of(labels, oblique_affine()).get_data_dtype() == np.uint16


def test_a_dicom_volume_keeps_its_place_as_nifti(tmp_path: Path) -> None:
    volume = counting_volume(affine=oblique_affine())
    save_nifti(nifti_of(volume.hu > 0, volume.affine_lps), tmp_path / "mask.nii.gz")
    back = read_nifti(tmp_path / "mask.nii.gz").volume
    np.testing.assert_array_equal(back.hu, volume.hu > 0)
    np.testing.assert_allclose(back.affine_lps, volume.affine_lps, atol=1e-4)


def test_metres_become_millimetres(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3] /= 1000
    path = patched(counting_nifti(tmp_path / "ct.nii", affine=affine), 123, b"\x01")
    np.testing.assert_allclose(read_nifti(path).volume.spacing_zyx_mm, (2.5, 0.8, 0.7), rtol=1e-5)


def test_without_sform_and_qform_the_sides_are_assumed_and_that_is_said(tmp_path: Path) -> None:
    path = patched(counting_nifti(tmp_path / "ct.nii"), 252, bytes(4))
    assert [reason.code for reason in read_nifti(path).reasons] == ["geometry.orientation_unknown"]


def test_sform_and_qform_that_turn_the_image_differently_are_told(tmp_path: Path) -> None:
    image = Nifti1Image(counting_volume().hu.transpose(2, 1, 0), AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    nibabel.save(image, tmp_path / "alike.nii")
    assert read_nifti(tmp_path / "alike.nii").reasons == ()
    image.set_qform(np.diag([-1, 1, 1, 1]) @ AFFINE, code=1)
    nibabel.save(image, tmp_path / "mirrored.nii")
    source = read_nifti(tmp_path / "mirrored.nii")
    np.testing.assert_allclose(source.volume.affine_lps, counting_volume().affine_lps, atol=1e-6)
    assert [reason.code for reason in source.reasons] == ["geometry.orientation_unknown"]


@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("image_class", [Nifti1Image, Nifti2Image])
def test_qform_sform_or_both_place_the_voxels(
    tmp_path: Path, qform: int, sform: int, image_class: type[Nifti1Image]
) -> None:
    affine = affine_ras_of(oblique_affine())
    image = image_class(counting_volume().hu.transpose(2, 1, 0), affine)
    image.set_qform(affine, code=qform)
    image.set_sform(affine if sform else None, code=sform)
    nibabel.save(image, tmp_path / "ct.nii")
    source = read_nifti(tmp_path / "ct.nii")
    np.testing.assert_array_equal(source.volume.hu, counting_volume().hu)
    np.testing.assert_allclose(source.volume.affine_lps, oblique_affine(), atol=1e-5)
    assert source.reasons == ()


@pytest.mark.parametrize("cut", [10, 40, 200, -1, -9])
def test_a_truncated_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    path = counting_nifti(tmp_path / "ct.nii.gz")
    path.write_bytes(path.read_bytes()[:cut])
    for read in (check_nifti, read_nifti):
        with pytest.raises(InputError) as error:
            read(path)
        assert error.value.code in ("input.damaged_gzip", "input.truncated")


@pytest.mark.parametrize("cut", [-1, -1000, 353])
def test_a_truncated_plain_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = counting_nifti(tmp_path / "ct.nii")
    path.write_bytes(path.read_bytes()[:cut])
    for read in (check_nifti, read_nifti):
        with pytest.raises(InputError) as error:
            read(path)
        assert error.value.code == "input.truncated"


def test_checking_a_plain_file_reads_no_voxel_but_the_last(tmp_path: Path) -> None:
    """A sparse file of a gigabyte: what is read of it is counted by the kernel."""
    path = counting_nifti(tmp_path / "ct.nii")
    with path.open("r+b") as file:
        file.seek(40)
        file.write(np.array((3, 1000, 1000, 500), dtype="<i2").tobytes())
        file.truncate(352 + 2 * 500_000_000)

    def read_until_now() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])  # rchar, proc(5)

    before = read_until_now()
    check_nifti(path)
    assert read_until_now() - before < 1 << 20


def test_a_damaged_checksum_is_noticed(tmp_path: Path) -> None:
    path = counting_nifti(tmp_path / "ct.nii.gz")
    patched(path, path.stat().st_size - 8, b"\0\0\0\0")
    for read in (check_nifti, read_nifti):
        with pytest.raises(InputError) as error:
            read(path)
        assert error.value.code == "input.damaged_gzip"


def with_dimensions(*dim: int) -> Callable[[Path], Path]:
    return lambda path: patched(path, 40, np.array(dim, dtype="<i2").tobytes())


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda path: patched(path, 0, b"NRRD"), "input.not_nifti"),
        (lambda path: patched(path, 344, b"ni1\0"), "input.not_nifti"),
        (lambda path: patched(path, 344, b"zzz\0"), "input.not_nifti"),
        (with_dimensions(4, 24, 16, 6, 2), "input.not_3d"),
        (with_dimensions(3, 24, -16, 6), "input.not_3d"),
        (with_dimensions(9, 24, 16, 6), "input.not_3d"),
        (with_dimensions(3, 30000, 30000, 30000), "input.too_large"),
        (with_dimensions(3, 900, 900, 900), "input.truncated"),
        (with_dimensions(3, 24, 16, 7), "input.truncated"),
        (lambda path: patched(path, 70, b"\x80\x00"), "input.not_hu"),
        (with_dimensions(2, 24, 96), "geometry.too_few_slices"),
        (with_dimensions(3, 24, 96, 1), "geometry.too_few_slices"),
        (lambda path: patched(path, 280, np.array([0, 0, 0], dtype="<f4").tobytes()), "geometry.no_geometry"),
        (lambda path: patched(path, 280, np.array([np.nan], dtype="<f4").tobytes()), "geometry.no_geometry"),
    ],
)
def test_a_hostile_header_is_refused_with_its_code(tmp_path: Path, damage: Callable[[Path], Path], code: str) -> None:
    path = damage(counting_nifti(tmp_path / "ct.nii"))
    with pytest.raises((InputError, NotAnalysable)) as error:
        read_nifti(path)
    assert error.value.code == code


def test_slices_sheared_by_a_tilted_gantry_are_resampled_and_labels_go_back_onto_the_file(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[1, 2] = 0.8  # one row per slice, 17.7 degrees
    path = counting_nifti(tmp_path / "ct.nii", affine=affine)
    source = read_nifti(path)
    assert [reason.code for reason in source.reasons] == ["geometry.resampled"]
    assert "17.7 degrees" in source.reasons[0].text
    assert source.volume.shape_zyx == (6, 21, 24)
    assert source.volume.spacing_zyx_mm == pytest.approx((2.5, 0.8, 0.7))
    written = nibabel.load(path)
    for i, j, k in ((0, 0, 0), (23, 15, 5), (4, 7, 3)):
        z, y, x = source.volume.index_zyx((written.affine @ [i, j, k, 1])[:3] * [-1, -1, 1])
        assert source.volume.hu[round(z), round(y), round(x)] == counting_volume().hu[k, j, i]
    labels = (source.volume.hu > -500).astype(np.uint16)
    mask = source.nifti_image(labels)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), counting_volume().hu.transpose(2, 1, 0) > -500)
    np.testing.assert_array_equal(mask.affine, written.affine)


@pytest.mark.parametrize(("row", "axis", "exact"), [(1, 0, False), (1, 2, True)], ids=["within the slices", "exact"])
def test_otherwise_sheared_axes_are_refused(tmp_path: Path, row: int, axis: int, exact: bool) -> None:
    affine = AFFINE.copy()
    affine[row, axis] = 0.3
    with pytest.raises(NotAnalysable) as error:
        read_nifti(counting_nifti(tmp_path / "ct.nii", affine=affine), exact=exact)
    assert error.value.code == "geometry.sheared"


def test_a_file_that_unpacks_without_end_is_stopped(tmp_path: Path) -> None:
    path = counting_nifti(tmp_path / "ct.nii")
    bomb = tmp_path / "bomb.nii.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(path.read_bytes())
        for _ in range(64):
            file.write(bytes(1 << 20))
    for read in (check_nifti, read_nifti):
        with pytest.raises(InputTooLarge):
            read(bomb)


@pytest.mark.skipif(not ORIENTATIONS, reason="../shared/data/nifti_nrrd/orientations_24 is absent")
def test_all_axis_orders_of_one_volume_give_one_world_image() -> None:
    volumes = [to_canonical(read_nifti(path).volume)[0] for path in ORIENTATIONS]
    for volume in volumes[1:]:
        np.testing.assert_array_equal(volume.hu, volumes[0].hu)
        np.testing.assert_allclose(volume.affine_lps, volumes[0].affine_lps, atol=1e-3)


@pytest.mark.skipif(not (REAL_DATA / "nifti_nrrd").is_dir(), reason="../shared/data/nifti_nrrd is absent")
def test_a_tilted_head_as_nifti_is_resampled() -> None:
    path = REAL_DATA / "nifti_nrrd/CT_head_sheared_affine.nii.gz"
    source = read_nifti(path)
    assert "18.5 degrees" in source.reasons[0].text
    labels = np.ones(source.volume.shape_zyx, dtype=np.uint8)
    assert (
        source.nifti_image(labels).shape == nibabel.load(REAL_DATA / "nifti_nrrd/CT_head_sheared_affine.nii.gz").shape
    )


@pytest.mark.parametrize(
    ("field", "value"), [("quatern_b", 3.0), ("pixdim", 7.0)], ids=["no rotation", "no handedness"]
)
def test_a_qform_that_is_none_is_told_where_an_sform_is_taken(tmp_path: Path, field: str, value: float) -> None:
    image = nifti_of(np.ones((4, 5, 6), dtype=np.uint16), axial_affine())
    image.header[field] = value if field != "pixdim" else [value, *image.header["pixdim"][1:]]
    with (tmp_path / "ct.nii").open("wb") as file:
        file.write(image.header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F"))
    source = read_nifti(tmp_path / "ct.nii")
    np.testing.assert_allclose(source.volume.affine_lps, axial_affine(), atol=1e-4)
    assert [reason.code for reason in source.reasons] == ["geometry.orientation_unknown"]
