"""The findings as a Comprehensive 3D SR by TID 1500, Measurement Report (PS3.3 A.35.13, PS3.16 TID 1500).

The first measurement group is about the scan: "pulmonary embolism" is present, absent or not analysable, with coded
reasons or warnings, and the clot burden. A group for every embolus follows: its measurements, its segment of the SEG.
Candidates below the threshold are no findings: only the SEG has them. A scan that was not analysable, or
on which the work failed, has the first group only, without any measurement.

highdicom makes the document around the first group, and every embolus's group around one source image. What refers to
each of some hundred images is encoded as it will stand in the file: highdicom would make a data set of each, search all
of them for references and copy them, and pydicom write them. The bytes are the same, as the tests say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag

from imaging.findings import RESEARCH_USE_ONLY, Findings, Lesion, Outcome
from imaging.label_areas import label_areas
from imaging.result import SegmentationResult
from services.dicom import result_codes
from services.dicom.explicit_encoding import DEFAULT_CHARACTER_SET, element, encoded, references, sequence
from services.dicom.identity import ResultIdentity
from services.dicom.reference_headers import reference_headers
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import (
    MANUFACTURER,
    MODEL_NAME,
    SopInstance,
    algorithm_parameters,
    contributing_equipment,
    save_whole,
    series_number,
)
from services.dicom.result_wording import headline, reason_line, series_description
from services.dicom.seg_options import DEFAULT_OPTIONS, SegOptions
from services.dicom.series_reader import SourceSeries

_ANSWER = {
    Outcome.EMBOLUS_FOUND: codes.cid240.Present,
    Outcome.NO_EMBOLUS: codes.cid240.Absent,
    Outcome.NOT_ANALYSABLE: result_codes.NOT_ANALYSABLE,
    Outcome.FAILED: result_codes.NOT_ANALYSED,
}
_WHY = {
    Outcome.EMBOLUS_FOUND: result_codes.WARNING,
    Outcome.NO_EMBOLUS: result_codes.WARNING,
    Outcome.NOT_ANALYSABLE: result_codes.WHY_NOT_ANALYSABLE,
    Outcome.FAILED: result_codes.WHY_NOT_ANALYSED,
}
_CONTENT, _EVIDENCE = Tag("ContentSequence"), Tag("CurrentRequestedProcedureEvidenceSequence")
_REFERENCED_SERIES, _REFERENCED_SOP = Tag("ReferencedSeriesSequence"), Tag("ReferencedSOPSequence")
_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID = Tag("StudyInstanceUID"), Tag("SeriesInstanceUID")


@dataclass(frozen=True, slots=True)
class _EmbolusGroup:
    """An embolus's measurements, as highdicom makes them with one source image, and the other images that show it."""

    content: VolumetricROIMeasurementsAndQualitativeEvaluations
    further_images: Sequence[str] = ()

    def encoded(self, character_set: str | list[str]) -> bytes:
        (group,) = self.content
        items = []
        for item in group.ContentSequence:
            items.append(encoded(item, character_set))
            if isinstance(item, SourceImageForSegmentation):
                sop_class_uid = item.ReferencedSOPSequence[0].ReferencedSOPClassUID
                rest = encoded(item[_REFERENCED_SOP + 1 :], character_set)
                items += [references(_REFERENCED_SOP, [(sop_class_uid, uid)]) + rest for uid in self.further_images]
        return _encoded_container(group, items, character_set)


def write_sr(
    source: SourceSeries,
    result: SegmentationResult,
    seg: SopInstance | None,
    path: Path,
    *,
    identity: ResultIdentity,
    options: SegOptions = DEFAULT_OPTIONS,
    headers: list[Dataset] | None = None,
) -> SopInstance:
    """Write the report on an analysed scan under `path`, complete or not at all; equal arguments write equal bytes.

    Args:
        seg: the result's SEG, whose segments the report refers to; None where no segment was to be written.
        options: the SEG's.
        headers: `reference_headers` of the source, from who has them already.
    """
    headers = headers or reference_headers(source)
    evidence = list(headers)
    groups = []
    if seg is not None:
        evidence.append(_seg_reference(seg))
    areas = label_areas(result.embolus_labelmap)
    for lesion in result.findings.reported:
        assert seg is not None, "emboli are segments"
        image, further = _source_images(source, headers, np.flatnonzero(areas[:, lesion.id]))
        number = options.segment_number(lesion.id)
        segment = ReferencedSegment(seg.sop_class_uid, seg.sop_instance_uid, number, source_images=[image])
        groups.append(_EmbolusGroup(_embolus_group(lesion, segment, identity), further))
    return _write(evidence, result.findings, groups, path, identity)


def write_not_analysable_sr(
    images: Sequence[Dataset], findings: Findings, path: Path, *, identity: ResultIdentity
) -> SopInstance:
    """Write the report that nothing is said about a scan, and why: it is not analysable, or the work on it failed.

    Args:
        images: from `refused_images`, at least one.
    """
    if findings.analysed:
        raise ValueError(f"{findings.outcome} needs a report with the images that were analysed")
    return _write(images, findings, [], path, identity)


def _write(
    evidence: Sequence[Dataset],
    findings: Findings,
    groups: Sequence[_EmbolusGroup],
    path: Path,
    identity: ResultIdentity,
) -> SopInstance:
    """Evidence is of one study."""
    content = _report(findings, identity)
    report = Comprehensive3DSR(
        evidence=evidence[:1],
        content=content,
        series_instance_uid=identity.uid("sr", "series"),
        series_number=series_number(ResultKind.SR, evidence[0]),
        sop_instance_uid=identity.uid("sr", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=identity.software_version,
        device_serial_number=identity.package_sha256[:16],
        is_complete=True,
        is_final=False,  # no person has read it
        series_description=series_description(findings),
        coding_schemes=[result_codes.scheme_identification()],
        contributing_equipment=[contributing_equipment(identity)],
    )
    character_set = report.get("SpecificCharacterSet", DEFAULT_CHARACTER_SET)
    ready: dict[int, list[bytes]] = {
        _EVIDENCE: [_encoded_evidence(evidence)],
        _CONTENT: [_encoded_content(content.ContentSequence, groups, character_set)],
    }
    return save_whole(report, evidence[0], path, ready)


def _encoded_content(
    items: Sequence[Dataset], groups: Iterable[_EmbolusGroup], character_set: str | list[str]
) -> bytes:
    """The document's content; its last item is the container of all measurement groups."""
    *others, measurements = items
    of_groups = [encoded(group, character_set) for group in measurements.ContentSequence]
    of_groups += [group.encoded(character_set) for group in groups]
    container = _encoded_container(measurements, of_groups, character_set)
    return sequence(_CONTENT, [*(encoded(item, character_set) for item in others), container])


def _encoded_container(container: Dataset, items: Iterable[bytes], character_set: str | list[str]) -> bytes:
    before, after = container[:_CONTENT], container[_CONTENT + 1 :]
    return encoded(before, character_set) + sequence(_CONTENT, items) + encoded(after, character_set)


def _encoded_evidence(evidence: Sequence[Dataset]) -> bytes:
    """The instances of one study by their series (PS3.3 table 10-3b)."""
    by_series: dict[str, list[tuple[str, str]]] = {}
    for one in evidence:
        by_series.setdefault(one.SeriesInstanceUID, []).append((one.SOPClassUID, one.SOPInstanceUID))
    series = [
        references(_REFERENCED_SOP, instances) + element(_SERIES_INSTANCE_UID, "UI", uid.encode())
        for uid, instances in by_series.items()
    ]
    study = element(_STUDY_INSTANCE_UID, "UI", evidence[0].StudyInstanceUID.encode())
    return sequence(_EVIDENCE, [sequence(_REFERENCED_SERIES, series) + study])


def _report(findings: Findings, identity: ResultIdentity) -> Dataset:
    """The document's content with the group about the scan."""
    device = DeviceObserverIdentifyingAttributes(
        uid=identity.device_uid,
        name="Embolens",
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=identity.package_sha256[:16],
    )
    (report,) = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, observer_identifying_attributes=device)
        ),
        procedure_reported=codes.cid100.CTUnspecifiedBodyRegion,
        imaging_measurements=[_scan_group(findings, identity)],
    )
    # For whoever reads the report as text. TID 1500 is extensible; what is measured stays the last container.
    content = report.ContentSequence
    measurements = content.pop()
    content.append(_text(codes.DCM.Comment, RESEARCH_USE_ONLY))
    content.append(_text(codes.DCM.Summary, headline(findings)))
    for reason in findings.reasons:
        content.append(_text(codes.DCM.Comment, reason_line(reason)))
    content.append(measurements)
    return report


def _text(name: hd.sr.CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name, value, RelationshipTypeValues.CONTAINS)


def _scan_group(findings: Findings, identity: ResultIdentity) -> MeasurementsAndQualitativeEvaluations:
    """Without a "finding" of embolism, which a reader who stops there would take for one: the evaluation says it."""
    why = _WHY[findings.outcome]
    measurements = []
    if findings.analysed:
        assert findings.scan_probability is not None, "given for every scan that was analysed"
        total_ml = round(findings.clot_burden_ml, 4)
        measurements = [
            Measurement(codes.SCT.Volume, total_ml, result_codes.MILLILITRE, derivation=codes.SCT.Total),
            Measurement(result_codes.SCORE, round(findings.scan_probability, 4), codes.UCUM.NoUnits),
        ]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identity.uid("tracking", "scan"), "Scan"),
        finding_sites=[FindingSite(codes.SCT.PulmonaryArtery)],
        algorithm_id=_algorithm(identity),
        measurements=measurements,
        qualitative_evaluations=[
            QualitativeEvaluation(codes.SCT.PulmonaryEmbolism, _ANSWER[findings.outcome]),
            *(QualitativeEvaluation(why, result_codes.reason_code(reason)) for reason in findings.reasons),
        ],
    )


def _embolus_group(
    lesion: Lesion, segment: ReferencedSegment, identity: ResultIdentity
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    name = f"Embolus {lesion.id}"
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identity.uid("tracking", "embolus", str(lesion.id)), name),
        referenced_segment=segment,
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_type=codes.SCT.Embolus,
        finding_sites=[FindingSite(codes.SCT.PulmonaryArtery)],
        algorithm_id=_algorithm(identity),
        measurements=[
            Measurement(codes.SCT.Volume, round(lesion.volume_ml, 4), result_codes.MILLILITRE),
            Measurement(codes.SCT.LongAxis, round(lesion.max_diameter_mm, 2), codes.UCUM.Millimeter),
            Measurement(
                codes.DCM.AttenuationCoefficient,
                round(lesion.mean_hu, 1),
                codes.UCUM.HounsfieldUnit,
                derivation=codes.SCT.Mean,
            ),
            Measurement(result_codes.SCORE, round(lesion.score, 4), codes.UCUM.NoUnits),
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(result_codes.ARTERY_LEVEL, result_codes.artery_level_code(lesion.artery_level))
        ],
    )


def _algorithm(identity: ResultIdentity) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name="Embolens",
        version=identity.software_version,
        parameters=[f"{name}={value}" for name, value in algorithm_parameters(identity).items()],
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )


def _source_images(
    source: SourceSeries, headers: Sequence[Dataset], slices: NDArray[np.intp]
) -> tuple[SourceImageForSegmentation, list[str]]:
    """The images from the first to the last of these slices: the first image, UIDs of the others."""
    shown = range(int(slices[0]), int(slices[-1]) + 1)
    sop_class_uid = headers[0].SOPClassUID
    if source.is_multi_frame:
        frames = sorted(source.frame_indices[index] + 1 for index in shown)
        return SourceImageForSegmentation(sop_class_uid, source.sop_instance_uids[0], frames), []
    first, *others = (source.sop_instance_uids[index] for index in shown)
    return SourceImageForSegmentation(sop_class_uid, first), others


def _seg_reference(seg: SopInstance) -> Dataset:
    reference = Dataset()
    reference.SOPClassUID, reference.SOPInstanceUID = seg.sop_class_uid, seg.sop_instance_uid
    reference.StudyInstanceUID, reference.SeriesInstanceUID = seg.study_instance_uid, seg.series_instance_uid
    return reference
