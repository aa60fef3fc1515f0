from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from imaging.findings import Findings, Outcome
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.dicom.seg_options import SegOptions, SegType
from services.dicom.seg_writer import segment_numbers, write_seg
from services.dicom.series_reader import SourceSeries, read_series
from tests.services.dicom.checked_objects import dciodvfy_errors
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import (
    IDENTITY,
    REAL_DATA,
    axial_affine,
    counting_volume,
    edit,
    made_result,
    oblique_affine,
    removing,
    tilted_series,
    written_series,
)

SEGIMAGE2ITKIMAGE = Path(sys.executable).parent / "segimage2itkimage"


def onto_grid(volume: CtVolume, points_lps_mm: NDArray[np.float64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values at patient points -> array on the volume's grid; the points must be its voxel centres."""
    index = volume.index_zyx(points_lps_mm)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-2)
    grid = np.zeros(volume.shape_zyx, dtype=np.int64)
    grid[tuple(np.rint(index).astype(int).T)] = values
    return grid


def read_by_highdicom(path: Path, volume: CtVolume) -> NDArray[np.int64]:
    stored = highdicom.seg.segread(path).get_volume(combine_segments=True)
    index = np.argwhere(stored.array > 0)
    points = index @ stored.affine[:3, :3].T + stored.affine[:3, 3]
    return onto_grid(volume, points, stored.array[tuple(index.T)])


def read_by_dcmqi(path: Path, volume: CtVolume, directory: Path, *, merged: bool = False) -> NDArray[np.int64]:
    """Segment numbers on the volume's grid, from a file for each segment or from one for all of them."""
    directory.mkdir()
    subprocess.run(
        [
            str(SEGIMAGE2ITKIMAGE),
            "--inputDICOM",
            str(path),
            "--outputDirectory",
            str(directory),
            "--outputType",
            "nrrd",
            *(["--mergeSegments"] if merged else []),
        ],
        check=True,
        capture_output=True,
        timeout=100,
    )
    grid = np.zeros(volume.shape_zyx, dtype=np.int64)
    for file in directory.glob("*.nrrd"):
        image = SimpleITK.ReadImage(str(file))
        values = SimpleITK.GetArrayFromImage(image)
        index = np.argwhere(values > 0)
        if len(index):
            points = np.array([image.TransformIndexToPhysicalPoint([int(i) for i in zyx[::-1]]) for zyx in index])
            grid += onto_grid(volume, points, values[tuple(index.T)] if merged else np.full(len(index), int(file.stem)))
    return grid


@pytest.fixture(params=["axial", "oblique", "multi-frame"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> SourceSeries:
    affine = axial_affine() if request.param == "axial" else oblique_affine()
    volume = counting_volume(affine=affine)
    if request.param == "multi-frame":
        return read_series([written_multi_frame(volume, tmp_path / "enhanced.dcm", frame_order=[3, 0, 5, 1, 4, 2])])
    return read_series(written_series(tmp_path / "series", volume))


@pytest.mark.parametrize("emboli", [0, 1, 3])
def test_highdicom_and_dcmqi_read_it_back_onto_the_same_voxels(
    source: SourceSeries, tmp_path: Path, emboli: int
) -> None:
    result = made_result(source.volume, emboli=emboli)
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY).path
    expected = segment_numbers(result)
    assert expected.max() == emboli + 1
    np.testing.assert_array_equal(read_by_highdicom(path, source.volume), expected)
    np.testing.assert_array_equal(read_by_dcmqi(path, source.volume, tmp_path / "dcmqi"), expected)


@pytest.mark.parametrize("multi_frame", [False, True], ids=["slices", "frames"])
def test_emboli_of_a_tilted_gantry_come_back_on_the_slices_as_acquired(tmp_path: Path, multi_frame: bool) -> None:
    if multi_frame:
        order = [3, 0, 5, 1, 4, 2]
        enhanced = tmp_path / "enhanced.dcm"
        source = read_series([written_multi_frame(counting_volume(), enhanced, frame_order=order, tilt_degrees=18.5)])
    else:
        source = read_series(tilted_series(tmp_path / "series", tilt_degrees=18.5))
    result = made_result(source.volume)
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY).path
    assert dciodvfy_errors(path) == []
    dataset = pydicom.dcmread(path)
    assert (dataset.Rows, dataset.Columns) == (16, 24)
    places = [tuple(source.position_lps_mm(index)) for index in range(6)]
    place_of = dict(zip(zip(source.sop_instance_uids, source.frame_indices, strict=True), places, strict=True))
    found = dict.fromkeys(range(1, 4), 0)
    for frame, groups in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        image = groups.DerivationImageSequence[0].SourceImageSequence[0]
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        frame_index = image.ReferencedFrameNumber - 1 if multi_frame else 0
        assert position == pytest.approx(place_of[image.ReferencedSOPInstanceUID, frame_index])
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        rows, columns = np.nonzero(frame)
        # every voxel lies, to half a pixel, where the cascade saw the segment
        in_plane = np.stack([0.7 * columns, 0.8 * rows, 0 * rows], axis=1)
        points = np.array([float(value) for value in position]) + in_plane
        z, y, x = np.rint(source.volume.index_zyx(points)).astype(int).T
        assert np.all(segment_numbers(result)[z, y, x] == number)
        found[number] += len(rows)
    on_slices = source.on_slices(segment_numbers(result))
    assert found == {number: np.count_nonzero(on_slices == number) for number in (1, 2, 3)}


def test_the_artery_can_be_left_out(source: SourceSeries, tmp_path: Path) -> None:
    options = SegOptions(artery=False)
    result = made_result(source.volume)
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY, options=options).path
    np.testing.assert_array_equal(read_by_highdicom(path, source.volume), result.embolus_labelmap)
    np.testing.assert_array_equal(read_by_dcmqi(path, source.volume, tmp_path / "dcmqi"), result.embolus_labelmap)
    assert dciodvfy_errors(path) == []
    empty = made_result(source.volume, emboli=0)
    with pytest.raises(ValueError, match="at least one segment"):
        write_seg(source, empty, tmp_path / "empty.dcm", identity=IDENTITY, options=options)


def test_a_labelmap_holds_the_same_voxels(source: SourceSeries, tmp_path: Path) -> None:
    result = made_result(source.volume)
    options = SegOptions(SegType.LABELMAP)
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY, options=options).path
    assert pydicom.dcmread(path).SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation Storage
    np.testing.assert_array_equal(read_by_highdicom(path, source.volume), segment_numbers(result))
    merged = read_by_dcmqi(path, source.volume, tmp_path / "dcmqi", merged=True)
    np.testing.assert_array_equal(merged, segment_numbers(result))
    # Of 2022, before the storage class came: it knows neither that nor the background as segment 0
    for error in dciodvfy_errors(path):
        assert "Information Object Not found" in error or "SegmentNumber of 0" in error


def test_a_fractional_seg_says_how_probable_each_voxel_of_an_embolus_is(source: SourceSeries, tmp_path: Path) -> None:
    made = made_result(source.volume)
    probability = np.arange(made.artery.size).reshape(made.artery.shape) % 200 + 50
    probability = np.where(made.embolus_labelmap > 0, probability, 0).astype(np.uint8)
    result = replace(made, lesion_probability=probability)
    options = SegOptions(SegType.FRACTIONAL)
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY, options=options).path
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_by_dcmqi(path, source.volume, tmp_path / "dcmqi"), result.embolus_labelmap)
    seg = highdicom.seg.segread(path)
    assert (seg.SegmentationFractionalType, seg.MaximumFractionalValue) == ("PROBABILITY", 255)
    stored = seg.get_volume(rescale_fractional=True)
    values = np.zeros(source.volume.shape_zyx)
    for segment in range(stored.array.shape[-1]):
        index = np.argwhere(stored.array[..., segment] > 0)
        points = index @ stored.affine[:3, :3].T + stored.affine[:3, 3]
        found = 255 * stored.array[..., segment][tuple(index.T)]
        grid = onto_grid(source.volume, points, np.rint(found).astype(np.int64))
        np.testing.assert_array_equal(grid > 0, result.embolus_labelmap == segment + 1)
        values += grid
    np.testing.assert_array_equal(values, probability)


def test_probabilities_of_a_tilted_gantry_lie_on_the_slices_as_acquired(tmp_path: Path) -> None:
    source = read_series(tilted_series(tmp_path / "series", tilt_degrees=18.5))
    made = made_result(source.volume)
    probability = np.where(made.embolus_labelmap > 0, 10 * made.embolus_labelmap + 100, 0).astype(np.uint8)
    result, options = replace(made, lesion_probability=probability), SegOptions(SegType.FRACTIONAL)
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY, options=options).path
    assert dciodvfy_errors(path) == []
    written, counts = np.unique(pydicom.dcmread(path).pixel_array, return_counts=True)
    expected, expected_counts = np.unique(source.on_slices(probability), return_counts=True)
    assert dict(zip(written[1:], counts[1:], strict=True)) == dict(zip(expected[1:], expected_counts[1:], strict=True))


def test_without_probabilities_no_fractional_seg_is_made_up(source: SourceSeries, tmp_path: Path) -> None:
    result, options = made_result(source.volume), SegOptions(SegType.FRACTIONAL)
    with pytest.raises(ValueError, match="needs the probabilities"):
        write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY, options=options)
    assert not list(tmp_path.glob("*seg.dcm*"))


@pytest.mark.parametrize("emboli", [0, 3])
def test_dciodvfy_reports_no_error(source: SourceSeries, tmp_path: Path, emboli: int) -> None:
    path = write_seg(source, made_result(source.volume, emboli=emboli), tmp_path / "seg.dcm", identity=IDENTITY).path
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("emboli", [0, 3])
def test_without_any_artery_there_is_still_a_valid_seg(source: SourceSeries, tmp_path: Path, emboli: int) -> None:
    result = made_result(source.volume, emboli=emboli)
    result = replace(result, artery=np.zeros_like(result.artery))
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY).path
    np.testing.assert_array_equal(read_by_highdicom(path, source.volume), segment_numbers(result))
    assert dciodvfy_errors(path) == []


def test_repeated_work_writes_the_same_bytes(source: SourceSeries, tmp_path: Path) -> None:
    result = made_result(source.volume)
    first = write_seg(source, result, tmp_path / "first.dcm", identity=IDENTITY)
    time.sleep(1.1)  # everything DICOM takes from the clock is counted in seconds
    second = write_seg(source, result, tmp_path / "second.dcm", identity=IDENTITY)
    assert first.path.read_bytes() == second.path.read_bytes()


def test_other_weights_write_another_object(source: SourceSeries, tmp_path: Path) -> None:
    result = made_result(source.volume)
    first = write_seg(source, result, tmp_path / "first.dcm", identity=IDENTITY)
    other = replace(IDENTITY, package_sha256="00" * 32)
    second = write_seg(source, result, tmp_path / "second.dcm", identity=other)
    assert first.sop_instance_uid != second.sop_instance_uid
    assert first.series_instance_uid != second.series_instance_uid


def test_a_flipped_slice_order_yields_the_same_segment_in_patient_space(tmp_path: Path) -> None:
    volume = counting_volume()
    result = made_result(volume)
    paths = written_series(tmp_path / "series", volume)
    upside_down = written_series(
        tmp_path / "flipped",
        CtVolume(
            np.ascontiguousarray(volume.hu[::-1]),
            np.column_stack(
                [-volume.affine_lps[:, 0], *volume.affine_lps[:, 1:3].T, [*volume.point_lps_mm((5, 0, 0)), 1]]
            ),
        ),
    )
    grids = []
    for index, files in enumerate((paths, upside_down)):
        source = read_series(files)
        written = write_seg(source, result, tmp_path / f"{index}.dcm", identity=IDENTITY)
        grids.append(read_by_highdicom(written.path, volume))
    np.testing.assert_array_equal(grids[0], grids[1])
    np.testing.assert_array_equal(grids[0], segment_numbers(result))


def test_segments_say_what_they_are(source: SourceSeries, tmp_path: Path) -> None:
    path = write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path
    seg = highdicom.seg.segread(path)
    artery, first, second = (seg.get_segment_description(number) for number in (1, 2, 3))
    assert artery.segmented_property_type.value == "81040000"
    assert artery.segmented_property_category.value == "91723000"
    assert [first.segment_label, second.segment_label] == ["Embolus 1", "Embolus 2"]
    assert first.segmented_property_type.value == "55584005"
    assert first.segmented_property_category.value == "49755003"
    assert first.anatomic_regions[0].value == "81040000"
    assert first.tracking_uid != second.tracking_uid
    assert first.algorithm_type.value == "AUTOMATIC"
    parameters = first.algorithm_identification.parameters
    assert parameters["package_sha256"] == IDENTITY.package_sha256
    assert seg.SegmentsOverlap == "NO"


def test_it_belongs_to_the_patient_and_study_and_refers_to_the_source(source: SourceSeries, tmp_path: Path) -> None:
    seg = pydicom.dcmread(write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path)
    assert (seg.PatientID, str(seg.PatientName)) == ("PHANTOM-1", "Phantom^One")
    assert seg.StudyInstanceUID == source.study_instance_uid
    assert seg.FrameOfReferenceUID == source.headers[0].FrameOfReferenceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.series_instance_uid
    assert seg.SeriesInstanceUID != source.series_instance_uid
    for frame in seg.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        item = frame.DerivationImageSequence[0].SourceImageSequence[0]
        index = round(float(source.volume.index_zyx(position)[0]))
        assert item.ReferencedSOPInstanceUID == source.sop_instance_uids[index]
        if source.is_multi_frame:
            assert item.ReferencedFrameNumber == source.frame_indices[index] + 1
    embolens = [item for item in seg.ContributingEquipmentSequence if item.Manufacturer == "Embolens"]
    assert IDENTITY.package_sha256 in embolens[-1].SoftwareVersions
    assert embolens[-1].DeviceUID == IDENTITY.device_uid


def test_segments_of_candidates_say_so(source: SourceSeries, tmp_path: Path) -> None:
    made = made_result(source.volume)  # scores 0.9 and 0.8
    result = replace(made, findings=replace(made.findings, score_threshold=0.85))
    seg = highdicom.seg.segread(write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY).path)
    described = [seg.get_segment_description(number) for number in (2, 3)]
    assert [one.segment_label for one in described] == ["Embolus 1", "Candidate 2"]
    assert [one.tracking_id for one in described] == ["Embolus 1", "Candidate 2"]
    assert seg.SeriesDescription == "Embolens: 1 embolus, 1 candidate (research use only)"


def test_many_emboli_fit(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series"))
    template = made_result(source.volume, emboli=1)
    labelmap = np.zeros(source.volume.shape_zyx, dtype=np.uint16)
    labelmap.reshape(-1)[1::7][:300] = np.arange(1, 301)
    lesions = tuple(replace(template.findings.lesions[0], id=number) for number in range(1, 301))
    result = SegmentationResult(labelmap, template.artery, replace(template.findings, lesions=lesions))
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY).path
    np.testing.assert_array_equal(read_by_highdicom(path, source.volume), segment_numbers(result))


def test_a_scan_that_was_not_analysable_gets_no_seg(tmp_path: Path) -> None:
    from imaging.errors import Reason

    source = read_series(written_series(tmp_path / "series"))
    findings = Findings(Outcome.NOT_ANALYSABLE, reasons=(Reason("coverage.too_short", "40 mm"),))
    result = replace(made_result(source.volume, emboli=0), findings=findings)
    with pytest.raises(ValueError, match="not analysable"):
        write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_source_without_type_2_attributes_gets_a_valid_seg(tmp_path: Path) -> None:
    paths = written_series(tmp_path / "series")
    for path in paths:
        edit(
            path,
            removing(
                *("Modality", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
                *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "SeriesNumber"),
                *("ContentDate", "ContentTime", "AcquisitionDate", "SeriesDate", "Manufacturer", "SliceThickness"),
                *("SpecificCharacterSet", "InstanceNumber", "ImageType"),
            ),
        )
    source = read_series(paths)
    path = write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_by_highdicom(path, source.volume), segment_numbers(made_result(source.volume)))


def test_malformed_values_are_left_out(tmp_path: Path) -> None:
    paths = written_series(tmp_path / "series")
    malformed = {
        "StudyDate": b"yesterday ",
        "StudyTime": b"noon",
        "ContentDate": b"31.12.2020",
        "PatientSex": b"unknown ",
        "PatientAge": b"old ",
        "PatientWeight": b"heavy ",
        "SpecificCharacterSet": b"ISO_IR 999",
        "SeriesNumber": b"one ",
    }
    for path in paths:

        def spoil(dataset: pydicom.Dataset) -> None:
            for keyword, value in malformed.items():
                vr = pydicom.datadict.dictionary_VR(keyword)
                tag = pydicom.tag.Tag(keyword)
                dataset[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)

        edit(path, spoil)
    source = read_series(paths)
    path = write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Müller^Jürgen"),
        ("ISO_IR 100", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_names_keep_their_letters(tmp_path: Path, character_set: str | list[str], name: str) -> None:
    paths = written_series(tmp_path / "series")
    for path in paths:

        def rename(dataset: pydicom.Dataset) -> None:
            dataset.SpecificCharacterSet = character_set
            dataset.PatientName = name

        edit(path, rename)
    source = read_series(paths)
    path = write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path
    assert str(pydicom.dcmread(path).PatientName) == name


@pytest.mark.skipif(
    not (REAL_DATA / "hard_dicom/no_Modality_tag_lungmask").is_dir(),
    reason="../shared/data/hard_dicom/no_Modality_tag_lungmask is absent",
)
def test_a_real_series_without_modality_patient_and_frame_of_reference(tmp_path: Path) -> None:
    # Two slices are too few to be read, so the first is given neighbours
    paths = []
    for index in range(4):
        path = tmp_path / f"{index}.dcm"
        shutil.copy(REAL_DATA / "hard_dicom/no_Modality_tag_lungmask/0.dcm", path)

        def move(dataset: pydicom.Dataset, index: int = index) -> None:
            dataset.SOPInstanceUID = f"1.2.3.{index}"
            dataset.ImagePositionPatient[2] += index

        edit(path, move)
        paths.append(path)
    source = read_series(paths)
    artery = np.zeros(source.volume.shape_zyx, dtype=bool)
    artery[1:3, 200:300, 200:300] = True
    result = SegmentationResult(
        np.zeros(artery.shape, dtype=np.uint16), artery, Findings(Outcome.NO_EMBOLUS, scan_probability=0.1)
    )
    path = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY).path
    assert dciodvfy_errors(path) == []
    np.testing.assert_array_equal(read_by_highdicom(path, source.volume), artery)
