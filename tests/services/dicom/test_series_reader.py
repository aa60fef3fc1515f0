from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    LegacyConvertedEnhancedCTImageStorage,
    SecondaryCaptureImageStorage,
)

from imaging.errors import InputError, NotAnalysable
from services.dicom.series_reader import inspect_headers, read_series
from services.dicom.uids import derive_uid
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import (
    axial_affine,
    counting_volume,
    edit,
    oblique_affine,
    removing,
    tilted_series,
    written_series,
)


def refusal_of(paths: list[Path]) -> list[str]:
    with pytest.raises(NotAnalysable) as refusal:
        read_series(paths)
    return [reason.code for reason in refusal.value.reasons]


@pytest.mark.parametrize("affine", [axial_affine(), oblique_affine()], ids=["axial", "oblique"])
def test_files_in_any_order_give_the_volume_they_were_written_from(tmp_path: Path, affine: np.ndarray) -> None:
    volume = counting_volume(affine=affine)
    paths = written_series(tmp_path, volume)
    random.Random(1).shuffle(paths)
    source = read_series(paths)
    np.testing.assert_array_equal(source.volume.hu, volume.hu)
    np.testing.assert_allclose(source.volume.affine_lps, affine, atol=1e-6)
    assert source.reasons == ()
    assert source.kind == "dicom"


def test_instance_number_slice_location_and_thickness_do_not_matter(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    for index, path in enumerate(paths):

        def confuse(dataset: Dataset, index: int = index) -> None:
            dataset.InstanceNumber = 1
            dataset.SliceLocation = -index
            dataset.SliceThickness = 17

        edit(path, confuse)
    np.testing.assert_array_equal(read_series(paths).volume.hu, counting_volume().hu)


def test_a_stack_written_upside_down_is_the_same_stack(tmp_path: Path) -> None:
    volume = counting_volume()
    flipped_affine = volume.affine_lps.copy()
    flipped_affine[:3, 3] = volume.point_lps_mm((volume.shape_zyx[0] - 1, 0, 0))
    flipped_affine[:3, 0] *= -1
    flipped = counting_volume()
    flipped = type(volume)(np.ascontiguousarray(flipped.hu[::-1]), flipped_affine)
    source = read_series(written_series(tmp_path, flipped))
    np.testing.assert_array_equal(source.volume.hu, volume.hu)
    np.testing.assert_allclose(source.volume.affine_lps, volume.affine_lps, atol=1e-6)


def test_headers_and_uids_go_with_their_slices(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    source = read_series(paths[::-1])
    assert [header.InstanceNumber for header in source.headers] == [1, 2, 3, 4, 5, 6]
    assert source.sop_instance_uids == tuple(header.SOPInstanceUID for header in source.headers)
    assert all("PixelData" not in header for header in source.headers)
    assert source.sop_instance_uid_at((-10.0, -20.0, 30.0 + 2.5 * 3 + 1.0)) == source.sop_instance_uids[3]


def test_progress_ends_at_one(tmp_path: Path) -> None:
    seen: list[float] = []
    read_series(written_series(tmp_path), on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_steps_that_differ_by_rounding_are_equal(tmp_path: Path) -> None:
    paths = written_series(tmp_path, counting_volume(affine=axial_affine((3.9875, 0.8, 0.7))))
    for index, path in enumerate(paths):
        height = round(30 + 3.9875 * index, 3)
        edit(path, lambda dataset, z=height: dataset.ImagePositionPatient.__setitem__(2, z))
    assert read_series(paths).volume.spacing_zyx_mm[0] == pytest.approx(3.9875, abs=2e-4)


def test_positions_written_with_one_decimal_are_even(tmp_path: Path) -> None:
    paths = written_series(tmp_path, counting_volume((21, 16, 24), axial_affine((0.625, 0.8, 0.7))))
    for index, path in enumerate(paths):
        height = round(30 + 0.625 * index, 1)  # steps of 0.6 and 0.7 mm
        edit(path, lambda dataset, z=height: dataset.ImagePositionPatient.__setitem__(2, z))
    assert read_series(paths).volume.spacing_zyx_mm[0] == pytest.approx(0.625, abs=1e-6)


def test_steps_that_grow_little_by_little_are_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path, counting_volume((41, 16, 24)))
    heights = 30 + 2.5 * np.cumsum(np.linspace(0.96, 1.04, 41))  # each within 4 %, the middle a millimetre off
    for height, path in zip(heights, paths, strict=True):
        edit(path, lambda dataset, z=height: dataset.ImagePositionPatient.__setitem__(2, round(z, 4)))
    assert refusal_of(paths) == ["geometry.unequal_spacing"]


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    assert refusal_of(paths[:2] + paths[3:]) == ["geometry.missing_slices"]


def test_unequal_steps_are_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    edit(paths[-1], lambda dataset: dataset.ImagePositionPatient.__setitem__(2, 43.6))
    assert refusal_of(paths) == ["geometry.unequal_spacing"]


@pytest.mark.parametrize("tilt_degrees", [-18.5, 15, 30])
@pytest.mark.parametrize("affine", [axial_affine(), oblique_affine()], ids=["axial", "oblique"])
def test_slices_of_a_tilted_gantry_are_resampled_to_an_orthogonal_grid(
    tmp_path: Path, affine: np.ndarray, tilt_degrees: float
) -> None:
    written = counting_volume(affine=affine)
    paths = tilted_series(tmp_path, tilt_degrees=tilt_degrees, volume=written)
    source = read_series(paths[::-1])
    assert [reason.code for reason in source.reasons] == ["geometry.resampled"]
    assert f"{abs(tilt_degrees):.1f} degrees" in source.reasons[0].text
    assert source.volume.spacing_zyx_mm == pytest.approx(written.spacing_zyx_mm)
    np.testing.assert_allclose(source.volume.direction_cosines, written.direction_cosines, atol=1e-6)
    for index, header in enumerate(source.headers):
        np.testing.assert_allclose(source.position_lps_mm(index), header.ImagePositionPatient, atol=1e-6)
        # the HU of the slice's voxel (row 8, column 12) are found where the header puts it; 10 HU are one row
        point = source.position_lps_mm(index) + affine[:3, 1] * 8 + affine[:3, 2] * 12
        z, y, x = source.volume.index_zyx(point)
        below = int(np.floor(y + 1e-6))
        beside = source.volume.hu[round(z), below : below + 2, round(x)]
        assert np.interp(y - below, [0, 1], beside) == pytest.approx(written.hu[index, 8, 12], abs=1)


def test_hu_of_a_tilted_gantry_are_not_to_be_had_exactly(tmp_path: Path) -> None:
    with pytest.raises(NotAnalysable) as refusal:
        read_series(tilted_series(tmp_path, tilt_degrees=15), exact=True)
    assert refusal.value.code == "geometry.gantry_tilt"


def test_a_stack_sheared_further_than_any_gantry_tilts_is_refused(tmp_path: Path) -> None:
    assert refusal_of(tilted_series(tmp_path, tilt_degrees=60)) == ["geometry.gantry_tilt"]


def test_slices_shifted_this_way_and_that_are_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    edit(paths[2], lambda dataset: dataset.ImagePositionPatient.__setitem__(0, 5))
    assert refusal_of(paths) == ["geometry.misaligned_slices"]


def test_a_tilted_series_without_one_of_its_slices_is_refused(tmp_path: Path) -> None:
    paths = tilted_series(tmp_path, tilt_degrees=15)
    assert refusal_of(paths[:2] + paths[3:]) == ["geometry.missing_slices"]


@pytest.mark.parametrize("shift_mm", [0.0, 1.25], ids=["at the same places", "in between"])
@pytest.mark.parametrize(
    ("keyword", "value"),
    [("AcquisitionNumber", 2), ("TemporalPositionIdentifier", 2), ("ConvolutionKernel", "B70f"), ("KVP", "140")],
)
def test_two_phases_in_one_series_are_refused(tmp_path: Path, shift_mm: float, keyword: str, value: object) -> None:
    arterial = written_series(tmp_path / "arterial")
    venous = written_series(tmp_path / "venous")
    for index, path in enumerate(venous):

        def later(dataset: Dataset, index: int = index) -> None:
            dataset.SOPInstanceUID = derive_uid("venous", str(index))
            dataset.ImagePositionPatient[2] += shift_mm
            setattr(dataset, keyword, value)

        edit(path, later)
    assert refusal_of([*arterial, *venous]) == ["input.multiple_phases"]


def test_passes_that_follow_one_another_along_the_table_are_one_stack(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    for index, path in enumerate(paths):
        edit(path, lambda dataset, number=index // 2 + 1: setattr(dataset, "AcquisitionNumber", number))
    np.testing.assert_array_equal(read_series(paths).volume.hu, counting_volume().hu)


def test_two_images_at_one_position_are_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    again = tmp_path / "again.dcm"
    shutil.copy(paths[2], again)
    edit(again, lambda dataset: setattr(dataset, "SOPInstanceUID", derive_uid("another")))
    assert refusal_of([*paths, again]) == ["geometry.duplicate_positions"]


def test_a_copy_of_an_instance_counts_once(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    again = tmp_path / "again.dcm"
    shutil.copy(paths[2], again)
    assert read_series([again, *paths]).volume.shape_zyx[0] == 6


def test_two_images_under_one_uid_are_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    edit(paths[2], lambda dataset: setattr(dataset, "SOPInstanceUID", read_series(paths).sop_instance_uids[4]))
    assert refusal_of(paths) == ["input.duplicate_sop_instance_uid"]


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("Modality", "MR", "input.modality_not_ct"),
        ("PatientID", "SOMEBODY-ELSE", "input.multiple_patients"),
        ("SeriesInstanceUID", "1.2.3", "input.multiple_series"),
        ("FrameOfReferenceUID", "1.2.3", "input.multiple_series"),
        ("PixelSpacing", [0.9, 0.7], "geometry.mixed_sizes"),
    ],
)
def test_what_is_not_one_ct_series_is_refused(tmp_path: Path, keyword: str, value: object, code: str) -> None:
    paths = written_series(tmp_path)
    edit(paths[0], lambda dataset: setattr(dataset, keyword, value))
    assert refusal_of(paths) == [code]


def test_mixed_orientations_are_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    for path in paths[:3]:
        edit(path, lambda dataset: setattr(dataset, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]))
    assert refusal_of(paths) == ["geometry.mixed_orientations"]


def test_images_without_a_position_are_refused(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        edit(path, removing("ImagePositionPatient"))
    assert refusal_of(paths) == ["geometry.no_geometry"]


def test_two_slices_are_too_few(tmp_path: Path) -> None:
    assert refusal_of(written_series(tmp_path)[:2]) == ["geometry.too_few_slices"]


@pytest.mark.parametrize("named", [True, False], ids=["by its image type", "by being the odd one out"])
def test_a_localizer_in_the_series_is_left_out_with_a_warning(tmp_path: Path, named: bool) -> None:
    paths = written_series(tmp_path / "stack")
    scout = written_series(tmp_path / "scout", counting_volume((3, 8, 8)))[0]

    def make_scout(dataset: Dataset) -> None:
        dataset.SOPInstanceUID = derive_uid("scout")
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER" if named else "AXIAL"]

    edit(scout, make_scout)
    source = read_series([scout, *paths])
    assert source.volume.shape_zyx == (6, 16, 24)
    assert [reason.code for reason in source.reasons] == ["geometry.localizer_ignored"]


@pytest.mark.parametrize("at", [0, -1], ids=["lowest", "highest"])
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (removing("ImagePositionPatient"), "geometry.no_geometry"),
        (
            lambda dataset: setattr(dataset, "ImageOrientationPatient", [1, 0, 0, 0, 0.995, 0.0998]),
            "geometry.mixed_orientations",
        ),
    ],
    ids=["without a position", "turned a little"],
)
def test_a_slice_at_the_end_is_never_taken_for_a_localizer(
    tmp_path: Path, at: int, change: Callable[[Dataset], object], code: str
) -> None:
    paths = written_series(tmp_path)
    edit(paths[at], change)
    assert refusal_of(paths) == [code]


def test_secondary_captures_in_the_series_are_left_out_with_a_warning(tmp_path: Path) -> None:
    paths = written_series(tmp_path / "stack")
    for path in (captures := written_series(tmp_path / "captures", counting_volume((4, 16, 24)))):

        def capture(dataset: Dataset) -> None:
            dataset.SOPClassUID = SecondaryCaptureImageStorage
            dataset.SOPInstanceUID = derive_uid("capture", str(dataset.InstanceNumber))
            removing("ImagePositionPatient", "ImageOrientationPatient")(dataset)

        edit(path, capture)
    source = read_series([*captures, *paths])
    np.testing.assert_array_equal(source.volume.hu, counting_volume().hu)
    assert [reason.code for reason in source.reasons] == ["input.other_objects_ignored"]
    assert refusal_of(captures) == ["input.modality_not_ct"]


def test_pixel_data_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:-100])
    with pytest.raises(NotAnalysable, match=r"000004\.dcm") as refusal:
        read_series(paths)
    assert refusal.value.code == "pixels.unreadable"


def test_rescale_is_applied_slice_by_slice(tmp_path: Path) -> None:
    paths = written_series(tmp_path)

    def rescale(dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = "2.5", "-7"

    edit(paths[4], rescale)
    hu = read_series(paths).volume.hu
    written = counting_volume().hu
    np.testing.assert_array_equal(hu[[0, 1, 2, 3, 5]], written[[0, 1, 2, 3, 5]])
    np.testing.assert_array_equal(hu[4], np.maximum(np.rint(written[4] * 2.5 - 7), -1024))


@pytest.mark.parametrize("content", [b"%PDF-1.7 a report, not an image", b"", b"DICM1234", b"\x00" * 132 + b"DICM"])
def test_what_is_not_dicom_is_named(tmp_path: Path, content: bytes) -> None:
    report = tmp_path / "report.dcm"
    report.write_bytes(content)
    for read in (read_series, inspect_headers):
        with pytest.raises(InputError, match=r"report\.dcm") as error:
            read([report])
        assert error.value.code == "input.not_dicom"


@pytest.mark.parametrize("sop_class_uid", [EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage])
def test_a_multi_frame_instance_is_read_like_its_slices(tmp_path: Path, sop_class_uid: UID) -> None:
    volume = counting_volume(affine=oblique_affine())
    order = [3, 0, 5, 1, 4, 2]
    path = written_multi_frame(volume, tmp_path / "enhanced.dcm", frame_order=order, sop_class_uid=sop_class_uid)
    source = read_series([path])
    np.testing.assert_array_equal(source.volume.hu, volume.hu)
    np.testing.assert_allclose(source.volume.affine_lps, volume.affine_lps, atol=1e-6)
    assert source.frame_indices == (1, 3, 5, 0, 4, 2)
    assert len(source.headers) == 1
    assert len(set(source.sop_instance_uids)) == 1


def test_frames_of_a_tilted_gantry_are_resampled(tmp_path: Path) -> None:
    frames, slices = tmp_path / "enhanced.dcm", tmp_path / "slices"
    source = read_series([written_multi_frame(counting_volume(), frames, frame_order=range(6), tilt_degrees=15)])
    expected = read_series(tilted_series(slices, tilt_degrees=15)).volume
    assert [reason.code for reason in source.reasons] == ["geometry.resampled"]
    np.testing.assert_array_equal(source.volume.hu, expected.hu)
    np.testing.assert_allclose(source.volume.affine_lps, expected.affine_lps, atol=1e-6)


def test_phases_and_gaps_among_frames_are_refused(tmp_path: Path) -> None:
    path = written_multi_frame(counting_volume(), tmp_path / "gap.dcm", frame_order=[0, 1, 2, 4, 5])
    assert refusal_of([path]) == ["geometry.missing_slices"]
    path = written_multi_frame(counting_volume(), tmp_path / "phases.dcm", frame_order=[0, 1, 2, 3, 0, 1, 2, 3])

    def tell_phases(dataset: Dataset) -> None:
        for number, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            frame.FrameContentSequence = [Dataset()]
            frame.FrameContentSequence[0].TemporalPositionIndex = number // 4 + 1

    edit(path, tell_phases)
    assert refusal_of([path]) == ["input.multiple_phases"]


def test_frames_of_a_signed_jpeg_2000_under_an_unsigned_header_keep_their_sign(tmp_path: Path) -> None:
    volume = counting_volume((4, 64, 64))
    path = written_multi_frame(volume, tmp_path / "enhanced.dcm", frame_order=range(4))
    dataset = pydicom.dcmread(path)
    dataset.PixelData, dataset.PixelRepresentation = volume.hu.astype("<i2").tobytes(), 1
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.PixelValueTransformationSequence[0].RescaleIntercept = "0"
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.PixelRepresentation = 0
    dataset.save_as(path)
    np.testing.assert_array_equal(read_series([path]).volume.hu, volume.hu)


def test_frames_in_jpeg_of_12_bits_are_refused(tmp_path: Path) -> None:
    volume = counting_volume((3, 64, 64))
    path = written_multi_frame(volume, tmp_path / "enhanced.dcm", frame_order=range(3))
    for slice_path in (slices := written_series(tmp_path / "slices", volume)):

        def store_12_bits(dataset: Dataset) -> None:
            dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
            dataset.PixelData = (np.frombuffer(dataset.PixelData, "<i2") + 1024).astype("<u2").tobytes()

        edit(slice_path, store_12_bits)
        subprocess.run(["dcmcjpeg", "+ee", slice_path, slice_path], check=True, timeout=60)
    jpegs = [next(generate_frames(pydicom.dcmread(file).PixelData, number_of_frames=1)) for file in slices]

    def put_in(dataset: Dataset) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = encapsulate(jpegs)
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit

    edit(path, put_in)
    assert refusal_of([path]) == ["pixels.unreadable"]


def test_headers_tell_the_series_apart(tmp_path: Path) -> None:
    first = written_series(tmp_path / "first")
    second = written_series(tmp_path / "second", counting_volume((3, 8, 8)))
    for path in second:
        edit(path, lambda dataset: setattr(dataset, "SeriesInstanceUID", "1.2.3"))
    summary = inspect_headers([*second, *first])
    assert [info.count for info in summary.series] == [6, 3]
    assert summary.patient_ids == {"PHANTOM-1"}
    info = summary.series[0]
    assert (info.modality, info.rows, info.columns, info.description) == ("CT", 16, 24, "Phantom CTPA")
    assert info.slice_spacing_mm == pytest.approx(2.5)
    assert summary.series[1].paths == tuple(second)
