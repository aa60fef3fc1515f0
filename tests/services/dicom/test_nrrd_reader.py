from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from imaging.errors import EmbolensError, InputError, InputTooLarge
from imaging.geometry import to_canonical
from imaging.volume import CtVolume
from services.dicom.input_reader import read_input
from services.dicom.label_nifti import save_nifti
from services.dicom.nrrd_reader import check_nrrd, read_nrrd
from services.ingest.upload import inspect_upload
from tests.services.dicom.made_series import REAL_DATA, axial_affine, counting_volume, oblique_affine

HEADER = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "24 16 6",
    "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-10,-20,30)",
}
HEADER_STEPS = ((0.7, 0, 0), (0, 0.8, 0), (0, 0, 2.5))
STORED = counting_volume().hu


def nrrd(path: Path, changes: Mapping[str, str | None] | None = None, data: bytes | None = None) -> Path:
    """The counting volume as NRRD, at the place where made_series puts it; None takes a field away."""
    fields = {name: value for name, value in {**HEADER, **(changes or {})}.items() if value is not None}
    lines = [
        "NRRD0004",
        "# made",
        *(f"{name}: {value}" for name, value in fields.items()),
        "scanner:=of nobody",
        "",
        "",
    ]
    path.write_bytes("\n".join(lines).encode() + (STORED.astype("<i2").tobytes() if data is None else data))
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("affine", [axial_affine(), oblique_affine()], ids=["axial", "oblique"])
def test_what_itk_writes_is_the_volume_it_was_made_of(tmp_path: Path, affine: np.ndarray, compressed: bool) -> None:
    volume = counting_volume(affine=affine)
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing_zyx_mm[::-1])
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(volume.direction_cosines[:, ::-1].ravel().tolist())
    SimpleITK.WriteImage(image, str(tmp_path / "ct.nrrd"), useCompression=compressed)
    check_nrrd(tmp_path / "ct.nrrd")
    source = read_input(tmp_path / "ct.nrrd")
    assert (source.kind, source.reasons) == ("nrrd", ())
    np.testing.assert_array_equal(source.volume.hu, volume.hu)
    np.testing.assert_allclose(source.volume.affine_lps, affine, atol=1e-6)


@pytest.mark.parametrize(
    ("type_name", "dtype"),
    [("int16", "i2"), ("signed short int", "i2"), ("int", "i4"), ("longlong", "i8"), ("float", "f4"), ("double", "f8")],
)
@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_every_number_in_either_byte_order(
    tmp_path: Path, type_name: str, dtype: str, endian: str, encoding: str
) -> None:
    data = STORED.astype(f"{'<' if endian == 'little' else '>'}{dtype}").tobytes()
    data = gzip.compress(data) if encoding == "gzip" else data
    path = nrrd(tmp_path / "ct", {"type": type_name, "endian": endian, "encoding": encoding}, data)
    np.testing.assert_array_equal(read_nrrd(path).volume.hu, STORED)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
    ],
)
def test_every_named_space_gives_one_world_image(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    i, j, k, origin = (np.array(vector) * signs for vector in ((0.7, 0, 0), (0, 0.8, 0), (0, 0, 2.5), (-10, -20, 30)))
    written = [f"({','.join(str(value) for value in vector)})" for vector in (i, j, k, origin)]
    fields = {"space": space, "space directions": " ".join(written[:3]), "space origin": written[3]}
    source = read_nrrd(nrrd(tmp_path / "ct.nrrd", fields))
    np.testing.assert_array_equal(source.volume.hu, STORED)
    np.testing.assert_allclose(source.volume.affine_lps, axial_affine())
    assert source.reasons == ()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_labels_go_back_onto_the_files_own_voxels_and_axes(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    columns = [np.array(HEADER_STEPS[axis]) for axis in axes]
    array = STORED.transpose(2, 1, 0).transpose(axes)  # (i, j, k) of the file
    fields = {
        "sizes": " ".join(str(n) for n in array.shape),
        "space directions": " ".join(f"({a},{b},{c})" for a, b, c in columns),
    }
    path = nrrd(tmp_path / "ct.nrrd", fields, array.astype("<i2").tobytes(order="F"))
    source = read_nrrd(path)
    canonical, order = to_canonical(source.volume)
    np.testing.assert_array_equal(canonical.hu, STORED)
    save_nifti(source.nifti_image(order.undo(canonical.hu > -500)), tmp_path / "mask.nii.gz")
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), array > -500)


def test_slices_sheared_by_a_tilted_gantry_are_resampled_and_labels_go_back_onto_the_file(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "ct.nrrd", {"space directions": "(0.7,0,0) (0,0.8,0) (0,0.8,2.5)"})
    source = read_nrrd(path)
    assert [reason.code for reason in source.reasons] == ["geometry.resampled"]
    assert source.volume.shape_zyx == (6, 21, 24)
    mask = source.nifti_image((source.volume.hu > -500).astype(np.uint8))
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0), STORED > -500)
    np.testing.assert_allclose(mask.affine[:3, 2], [0, -0.8, 2.5], atol=1e-6)
    assert int(mask.header["qform_code"]) == 0
    assert source.input_identity() == {"kind": "nrrd", "shape_ijk": [24, 16, 6]}


@pytest.mark.parametrize(
    "fields",
    [
        {"space": None, "space dimension": "3"},
        {"space": None, "space directions": None, "space origin": None, "spacings": "0.7 0.8 2.5"},
    ],
)
def test_without_a_named_space_the_sides_are_assumed_and_that_is_said(tmp_path: Path, fields: dict[str, str]) -> None:
    source = read_nrrd(nrrd(tmp_path / "ct.nrrd", fields))
    assert [reason.code for reason in source.reasons] == ["geometry.orientation_unknown"]
    assert source.volume.spacing_zyx_mm == pytest.approx((2.5, 0.8, 0.7))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data file": "/etc/passwd"}, "input.detached_data"),
        ({"datafile": "ct.raw"}, "input.detached_data"),
        ({"encoding": "bzip2"}, "input.nrrd_encoding"),
        ({"encoding": None}, "input.nrrd_encoding"),
        ({"byte skip": "-1"}, "input.nrrd_encoding"),
        ({"dimension": "4", "sizes": "24 16 3 2", "kinds": None}, "input.not_3d"),
        ({"dimension": "2", "sizes": "24 96", "kinds": None}, "input.not_3d"),
        ({"kinds": "RGB-color domain domain"}, "input.not_3d"),
        ({"kinds": "domain domain time"}, "input.not_3d"),
        ({"sizes": "24 16"}, "input.not_3d"),
        ({"sizes": "24 16 -6"}, "input.not_nrrd"),
        ({"sizes": "24 16 7"}, "input.truncated"),
        ({"sizes": "900 900 900"}, "input.truncated"),
        ({"sizes": "30000 30000 30000"}, "input.too_large"),
        ({"sizes": "24 96 1"}, "geometry.too_few_slices"),
        ({"type": "block"}, "input.not_hu"),
        ({"old min": "-1024"}, "input.not_hu"),
        ({"endian": None}, "input.not_nrrd"),
        ({"endian": "middle"}, "input.not_nrrd"),
        ({"space": "scanner-xyz"}, "geometry.no_geometry"),
        ({"space directions": "(0.7,0,0) (0,0.8,0) none"}, "geometry.no_geometry"),
        ({"space directions": "(0.7,0,0)"}, "geometry.no_geometry"),
        ({"space directions": "(0.7,0,0) (0,nan,0) (0,0,2.5)"}, "geometry.no_geometry"),
        ({"space directions": "(0.7,0,0) (0,0.8,0) (0,0,0)"}, "geometry.no_geometry"),
        ({"space directions": None}, "geometry.no_geometry"),
        ({"space units": '"m" "m" "m"'}, "geometry.no_geometry"),
        ({"space directions": "(0.7,0.3,0) (0,0.8,0) (0,0,2.5)"}, "geometry.sheared"),
    ],
)
def test_a_hostile_header_is_refused_with_its_code(tmp_path: Path, changes: dict[str, str | None], code: str) -> None:
    with pytest.raises(EmbolensError) as error:
        read_nrrd(nrrd(tmp_path / "ct.nrrd", changes))
    assert error.value.code == code


@pytest.mark.parametrize(
    "content",
    [
        b"NRRD",
        b"NRRD0009\n\n",
        b"NRRD0004\ntype: short\n",
        b"NRRD0004\n" + b"x" * 70_000,
        b"NRRD0004\nno colon\n\n",
        b"NRRD0004\ntype: short\ntype: short\n\n",
        b"NRRD0004\n" + b"# again\n" * 2000,
    ],
)
def test_what_only_begins_as_nrrd_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ct.nrrd").write_bytes(content)
    for read in (check_nrrd, read_nrrd, lambda path: inspect_upload([path])):
        with pytest.raises(InputError) as error:
            read(tmp_path / "ct.nrrd")
        assert error.value.code == "input.not_nrrd"


@pytest.mark.parametrize("read", [check_nrrd, read_nrrd])
def test_a_raw_stream_without_its_last_byte_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = nrrd(tmp_path / "ct.nrrd", {"encoding": "raw"}, STORED.astype("<i2").tobytes()[:-1])
    with pytest.raises(InputError) as error:
        read(path)
    assert error.value.code == "input.truncated"


@pytest.mark.parametrize("read", [check_nrrd, read_nrrd])
def test_damaged_and_endless_streams_are_refused(tmp_path: Path, read: object) -> None:
    packed = gzip.compress(STORED.astype("<i2").tobytes())
    for data in (packed[:-9], packed[: len(packed) // 2], packed[:-8] + bytes(4) + packed[-4:], b""):
        with pytest.raises(InputError) as error:
            read(nrrd(tmp_path / "ct.nrrd", {"encoding": "gzip"}, data))  # type: ignore[operator]
        assert error.value.code in ("input.damaged_gzip", "input.truncated")
    endless = gzip.compress(STORED.astype("<i2").tobytes() + bytes(64 << 20), compresslevel=1)
    path = nrrd(tmp_path / "ct.nrrd", {"encoding": "gzip"}, endless)
    with pytest.raises(InputTooLarge):
        read(path)  # type: ignore[operator]


def test_an_upload_of_one_nrrd_is_taken_and_of_two_volumes_not(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "upload")  # told by its content
    contents = inspect_upload([path])
    assert (contents.kind, contents.files, contents.instance_count) == ("nrrd", (path,), 1)
    for read in (inspect_upload, read_input):
        with pytest.raises(InputError) as error:
            read([path, nrrd(tmp_path / "second")])
        assert error.value.code == "input.several_volumes"


def test_a_label_map_that_says_nothing_of_its_place_lies_on_its_image(tmp_path: Path) -> None:
    image = counting_volume(affine=oblique_affine())
    unplaced = {"space": None, "space directions": None, "space origin": None}
    for fields in (unplaced, {"space origin": "(0,0,0)", "space directions": "(1,0,0) (0,1,0) (0,0,1)"}):
        labels = read_nrrd(nrrd(tmp_path / "labels.nrrd", fields), unplaced_lie_on=image).volume
        np.testing.assert_array_equal(labels.affine_lps, image.affine_lps)
    placed = read_nrrd(nrrd(tmp_path / "labels.nrrd"), unplaced_lie_on=image).volume
    np.testing.assert_allclose(placed.affine_lps, axial_affine())
    other = CtVolume(np.zeros((3, 3, 3), np.int16), axial_affine())
    with pytest.raises(EmbolensError, match="nothing is said"):
        read_nrrd(nrrd(tmp_path / "labels.nrrd", unplaced), unplaced_lie_on=other)


@pytest.mark.skipif(not (REAL_DATA / "chest_ct").is_dir(), reason="../shared/data/chest_ct is absent")
def test_a_real_nrrd_lies_where_its_dicom_twin_lies() -> None:
    volume = read_input(REAL_DATA / "nifti_nrrd/chest_64x64x79.nrrd").volume
    twin = read_input(REAL_DATA / "chest_ct/tiny_chest_64x64x79_dicom").volume
    np.testing.assert_array_equal(volume.hu, twin.hu)
    np.testing.assert_allclose(volume.affine_lps, twin.affine_lps, atol=2e-3)
