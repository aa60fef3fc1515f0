from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.sr import Comprehensive3DSR, ReferencedSegment, SourceImageForSegmentation
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage

from imaging.errors import Reason
from imaging.findings import RESEARCH_USE_ONLY, Findings, Outcome
from services.dicom import result_codes, sr_writer
from services.dicom.reference_headers import reference_headers
from services.dicom.refused_images import refused_images
from services.dicom.result_object import SopInstance
from services.dicom.seg_options import SegOptions
from services.dicom.seg_writer import write_seg
from services.dicom.series_reader import SourceSeries, read_series
from services.dicom.sr_writer import write_not_analysable_sr, write_sr
from tests.services.dicom.checked_objects import dcentvfy_errors, dciodvfy_errors, dsrdump
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import (
    IDENTITY,
    counting_volume,
    edit,
    made_result,
    removing,
    written_series,
)

REFUSED = Findings(
    Outcome.NOT_ANALYSABLE,
    reasons=(Reason("geometry.missing_slices", "3 of 240 slices"), Reason("contrast.too_low", "90 HU in größe.dcm")),
)
SUBOPTIMAL = Reason("contrast.suboptimal", "180 HU in the pulmonary artery")


@pytest.fixture(params=["single-frame", "multi-frame"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    if request.param == "multi-frame":
        return [
            written_multi_frame(counting_volume(), tmp_path / "enhanced.dcm", frame_order=[3, 0, 5, 1, 4, 2]),
        ]
    return written_series(tmp_path / "series")


@pytest.fixture
def source(files: list[Path]) -> SourceSeries:
    return read_series(files)


def seg_and_sr(source: SourceSeries, directory: Path, *, emboli: int = 2) -> tuple[SopInstance, SopInstance]:
    directory.mkdir(exist_ok=True)
    result = made_result(source.volume, emboli=emboli).with_reasons([SUBOPTIMAL])
    seg = write_seg(source, result, directory / "seg.dcm", identity=IDENTITY)
    return seg, write_sr(source, result, seg, directory / "sr.dcm", identity=IDENTITY)


def read_report(path: Path) -> Comprehensive3DSR:
    report = highdicom.sr.srread(path)
    assert isinstance(report, Comprehensive3DSR)
    return report


def answer(path: Path) -> str:
    """What the group about the scan says of pulmonary embolism."""
    (scan,) = read_report(path).content.get_image_measurement_groups()
    (evaluation,) = scan.get_qualitative_evaluations(codes.SCT.PulmonaryEmbolism)
    assert scan.finding_type is None  # "finding: pulmonary embolism" would be read as one
    return str(evaluation.value.value)


def codes_of(path: Path, name: object) -> list[str]:
    (scan,) = read_report(path).content.get_image_measurement_groups()
    return [evaluation.value.value for evaluation in scan.get_qualitative_evaluations(name)]


@pytest.mark.parametrize("emboli", [0, 1, 3])
def test_tools_of_others_find_no_error(source: SourceSeries, files: list[Path], tmp_path: Path, emboli: int) -> None:
    seg, sr = seg_and_sr(source, tmp_path, emboli=emboli)
    assert pydicom.dcmread(sr.path).SOPClassUID == Comprehensive3DSRStorage
    assert dciodvfy_errors(sr.path) == []
    assert dcentvfy_errors([seg.path, sr.path, *files]) == []
    text = dsrdump(sr.path)
    assert RESEARCH_USE_ONLY in text
    assert text.count('"Measurement Group"') == 1 + emboli


def test_every_embolus_has_its_measurements_and_its_segment(source: SourceSeries, tmp_path: Path) -> None:
    seg, sr = seg_and_sr(source, tmp_path)
    groups = read_report(sr.path).content.get_volumetric_roi_measurement_groups()
    segments = pydicom.dcmread(seg.path).SegmentSequence
    lesions = made_result(source.volume).findings.lesions
    assert len(groups) == len(lesions) == 2
    for lesion, group in zip(lesions, groups, strict=True):
        measured = {item.name.value: (item.value, item.unit.value) for item in group.get_measurements()}
        assert measured == {
            "118565006": (lesion.volume_ml, "ml"),
            "103339001": (lesion.max_diameter_mm, "mm"),
            "112031": (lesion.mean_hu, "[hnsf'U]"),
            "score": (lesion.score, "1"),
        }
        (level,) = group.get_qualitative_evaluations(result_codes.ARTERY_LEVEL)
        assert level.value.value == "lobar"
        assert (group.finding_category.value, group.finding_type.value) == ("49755003", "55584005")
        assert group.referenced_segment.referenced_sop_instance_uid == seg.sop_instance_uid
        segment = segments[lesion.id]
        assert group.tracking_identifier == segment.TrackingID
        assert group.tracking_uid == segment.TrackingUID
        assert group.referenced_segment[0].referenced_segment_numbers == [segment.SegmentNumber]


def test_the_segments_are_those_of_a_seg_without_artery(source: SourceSeries, tmp_path: Path) -> None:
    result, options = made_result(source.volume), SegOptions(artery=False)
    seg = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY, options=options)
    sr = write_sr(source, result, seg, tmp_path / "sr.dcm", identity=IDENTITY, options=options)
    groups = read_report(sr.path).content.get_volumetric_roi_measurement_groups()
    segments = pydicom.dcmread(seg.path).SegmentSequence
    referenced = [group.referenced_segment[0].referenced_segment_numbers for group in groups]
    assert referenced == [[segment.SegmentNumber] for segment in segments] == [[1], [2]]


def test_a_segment_is_referenced_with_the_images_that_show_it(source: SourceSeries, tmp_path: Path) -> None:
    _, sr = seg_and_sr(source, tmp_path, emboli=1)
    (group,) = read_report(sr.path).content.get_volumetric_roi_measurement_groups()
    images = group.referenced_segment.source_images_for_segmentation
    # The made embolus lies in slices 2 and 3
    if source.is_multi_frame:
        (image,) = images
        assert list(image.referenced_frame_numbers) == sorted(source.frame_indices[index] + 1 for index in (2, 3))
    else:
        assert [image.referenced_sop_instance_uid for image in images] == list(source.sop_instance_uids[2:4])


@pytest.mark.parametrize(
    ("emboli", "code", "total_ml"), [(0, codes.cid240.Absent, 0.0), (2, codes.cid240.Present, 0.04)]
)
def test_the_scan_has_an_answer_a_clot_burden_and_warnings(
    source: SourceSeries, tmp_path: Path, emboli: int, code: object, total_ml: float
) -> None:
    _, sr = seg_and_sr(source, tmp_path, emboli=emboli)
    assert answer(sr.path) == code.value  # type: ignore[attr-defined]
    (scan,) = read_report(sr.path).content.get_image_measurement_groups()
    (volume,) = scan.get_measurements(codes.SCT.Volume)
    assert (volume.value, volume.derivation) == (pytest.approx(total_ml), codes.SCT.Total)
    assert codes_of(sr.path, result_codes.WARNING) == ["contrast.suboptimal"]
    assert codes_of(sr.path, result_codes.WHY_NOT_ANALYSABLE) == []


def test_a_series_that_was_not_analysable_has_a_report_with_coded_reasons(files: list[Path], tmp_path: Path) -> None:
    images = refused_images(files)
    sr = write_not_analysable_sr(images, REFUSED, tmp_path / "sr.dcm", identity=IDENTITY)
    assert dciodvfy_errors(sr.path) == []
    assert dcentvfy_errors([sr.path, *files]) == []
    assert answer(sr.path) == "not_analysable"
    assert codes_of(sr.path, result_codes.WHY_NOT_ANALYSABLE) == ["geometry.missing_slices", "contrast.too_low"]
    (scan,) = read_report(sr.path).content.get_image_measurement_groups()
    assert scan.get_measurements() == []
    text = dsrdump(sr.path)
    assert "Absent" not in text
    assert "3 of 240 slices" in text
    assert "not analysable" in pydicom.dcmread(sr.path).SeriesDescription
    evidence = {uid for _, _, uid, _ in read_report(sr.path).get_evidence()}
    assert evidence == {image.SOPInstanceUID for image in images}


def test_the_report_names_the_algorithm_and_the_model_package(source: SourceSeries, tmp_path: Path) -> None:
    _, sr = seg_and_sr(source, tmp_path)
    text = dsrdump(sr.path)
    assert text.count(f"package_sha256={IDENTITY.package_sha256}") == 3  # for the scan and both emboli
    assert IDENTITY.device_uid in text
    equipment = pydicom.dcmread(sr.path).ContributingEquipmentSequence
    (embolens,) = [item for item in equipment if "DeviceUID" in item]
    assert embolens.DeviceUID == IDENTITY.device_uid
    assert embolens.ContributionDescription == RESEARCH_USE_ONLY


def test_candidates_are_no_findings(tmp_path: Path) -> None:
    source = read_series(written_series(tmp_path / "series"))
    made = made_result(source.volume)  # scores 0.9 and 0.8
    result = replace(made, findings=replace(made.findings, score_threshold=0.85))
    seg = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY)
    sr = write_sr(source, result, seg, tmp_path / "sr.dcm", identity=IDENTITY)
    assert len(read_report(sr.path).content.get_volumetric_roi_measurement_groups()) == 1
    assert "1 embolus found, 1 candidate" in dsrdump(sr.path)


def test_repeated_work_writes_the_same_bytes(source: SourceSeries, tmp_path: Path) -> None:
    _, first = seg_and_sr(source, tmp_path / "first")
    time.sleep(1.1)  # everything DICOM takes from the clock is counted in seconds
    _, second = seg_and_sr(source, tmp_path / "second")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_source_without_type_2_attributes_gets_a_valid_report(tmp_path: Path) -> None:
    paths = written_series(tmp_path / "series")
    for path in paths:
        edit(
            path,
            removing(
                *("Modality", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
                *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "SeriesNumber"),
                *("ContentDate", "ContentTime", "AcquisitionDate", "SeriesDate", "Manufacturer", "InstanceNumber"),
            ),
        )
    _, sr = seg_and_sr(read_series(paths), tmp_path)
    refusal = write_not_analysable_sr(refused_images(paths), REFUSED, tmp_path / "refusal.dcm", identity=IDENTITY)
    assert dciodvfy_errors(sr.path) == dciodvfy_errors(refusal.path) == []


@pytest.mark.parametrize("character_set", ["ISO_IR 100", "ISO_IR 192"])
def test_names_keep_their_letters(tmp_path: Path, character_set: str) -> None:
    paths = written_series(tmp_path / "series")
    for path in paths:

        def rename(dataset: pydicom.Dataset) -> None:
            dataset.SpecificCharacterSet = character_set
            dataset.PatientName = "Müller^Jürgen"

        edit(path, rename)
    sr = write_not_analysable_sr(refused_images(paths), REFUSED, tmp_path / "sr.dcm", identity=IDENTITY)
    assert str(pydicom.dcmread(sr.path).PatientName) == "Müller^Jürgen"
    assert r"gr\xf6\xdfe.dcm" in dsrdump(sr.path)  # a text of ours stays within every character set


def test_an_analysed_scan_gets_no_report_that_it_was_not(tmp_path: Path) -> None:
    images = refused_images(written_series(tmp_path / "series"))
    findings = made_result(counting_volume(), emboli=0).findings
    with pytest.raises(ValueError, match="no_embolus"):
        write_not_analysable_sr(images, findings, tmp_path / "sr.dcm", identity=IDENTITY)


def test_the_document_is_the_one_highdicom_makes_of_all_images_and_groups(source: SourceSeries, tmp_path: Path) -> None:
    seg, sr = seg_and_sr(source, tmp_path, emboli=3)
    result = made_result(source.volume, emboli=3).with_reasons([SUBOPTIMAL])
    headers = reference_headers(source)
    content = sr_writer._report(result.findings, IDENTITY)
    for lesion in result.findings.reported:
        slices = np.flatnonzero((result.embolus_labelmap == lesion.id).any(axis=(1, 2)))
        first, others = sr_writer._source_images(source, headers, slices)
        images = [first, *(SourceImageForSegmentation(headers[0].SOPClassUID, uid) for uid in others)]
        segment = ReferencedSegment(seg.sop_class_uid, seg.sop_instance_uid, lesion.id + 1, source_images=images)
        content.ContentSequence[-1].ContentSequence.extend(sr_writer._embolus_group(lesion, segment, IDENTITY))
    whole = Comprehensive3DSR(
        evidence=[*headers, sr_writer._seg_reference(seg)],
        content=content,
        series_instance_uid=sr.series_instance_uid,
        series_number=1,
        sop_instance_uid=sr.sop_instance_uid,
        instance_number=1,
        manufacturer="M",
    )
    written = pydicom.dcmread(sr.path)
    for keyword in ("ContentSequence", "CurrentRequestedProcedureEvidenceSequence"):
        assert written[keyword] == whole[keyword]


def test_a_source_image_more_costs_no_data_set(
    source: SourceSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counting(SourceImageForSegmentation):
        def __init__(self, sop_class_uid: str, sop_instance_uid: str, frames: list[int] | None = None) -> None:
            made.append(sop_instance_uid)
            super().__init__(sop_class_uid, sop_instance_uid, frames)

    monkeypatch.setattr(sr_writer, "SourceImageForSegmentation", Counting)
    seg_and_sr(source, tmp_path, emboli=3)
    assert len(made) == 3, "one for each embolus, however many slices show it"
