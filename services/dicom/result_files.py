"""A result as files: what the gateway serves, the folder destination takes and the command line writes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from pydicom.dataset import Dataset

from imaging.findings import Findings
from imaging.result import SegmentationResult
from services.dicom.identity import ResultIdentity
from services.dicom.key_image_writer import write_key_images
from services.dicom.key_pictures import embolus_pictures, overview_picture, refusal_picture
from services.dicom.label_nifti import save_nifti
from services.dicom.preview import preview_picture
from services.dicom.reference_headers import reference_headers
from services.dicom.refused_images import refused_images
from services.dicom.report_page import report_pdf
from services.dicom.report_writer import write_report
from services.dicom.result_kind import REPORT_FILE, ResultKind
from services.dicom.result_object import SopInstance
from services.dicom.seg_options import DEFAULT_OPTIONS, SegOptions
from services.dicom.seg_writer import has_segments, write_seg
from services.dicom.series_reader import SourceSeries
from services.dicom.source_image import SourceImage
from services.dicom.sr_writer import write_not_analysable_sr, write_sr

FINDINGS_FILE = "findings.json"
MASK_FILE = "mask.nii.gz"
ARTERY_FILE = "artery.nii.gz"
PREVIEW_FILE = "preview.png"
SEG_FILE = "seg.dcm"
SR_FILE = "sr.dcm"
MOST_KEY_IMAGES = 8  # of emboli, the most probable ones; the overview comes before them


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """Where the parts of a result lie.

    Attributes:
        findings: as written: with provenance, and a source image for every lesion.
        mask_path / artery_path / preview_path: None where the scan was not analysable.
        objects: the DICOM objects by their kind; none for NIfTI input, no SEG where nothing was analysed or segmented.
    """

    directory: Path
    findings: Findings
    findings_path: Path
    mask_path: Path | None = None
    artery_path: Path | None = None
    preview_path: Path | None = None
    objects: Mapping[ResultKind, tuple[SopInstance, ...]] = field(default_factory=dict)

    def objects_of(self, kinds: Collection[ResultKind]) -> list[SopInstance]:
        return [one for kind, written in self.objects.items() if kind in kinds for one in written]


def write_results(
    source: SourceImage,
    result: SegmentationResult,
    directory: Path,
    identity: ResultIdentity,
    seg_options: SegOptions = DEFAULT_OPTIONS,
) -> ResultFiles:
    """Write findings.json, mask.nii.gz, artery.nii.gz, preview.png and, for a DICOM source, an object of every kind.

    Everything is written beside `directory` first and moved in whole, findings.json last: where it lies, the others do.
    Files of the same names are replaced, others in `directory` are left alone. Equal arguments write equal bytes.
    """
    findings = completed_findings(result.findings, identity, source)
    result = replace(result, findings=findings)
    # Pictures are made, and all is compressed, without the GIL.
    with _arriving(directory) as arriving, ThreadPoolExecutor(2, "result") as beside:
        masks = beside.submit(_write_masks, source, result, arriving)
        preview = preview_picture(source.volume, result)
        preview.save(arriving / PREVIEW_FILE, format="PNG", compress_level=6)
        objects = {}
        if isinstance(source, SourceSeries):
            objects = _write_objects(source, result, preview, arriving, identity, seg_options, beside)
        masks.result()
        _write_json(findings, arriving / FINDINGS_FILE)
    return ResultFiles(
        directory=directory,
        findings=findings,
        findings_path=directory / FINDINGS_FILE,
        mask_path=directory / MASK_FILE,
        artery_path=directory / ARTERY_FILE,
        preview_path=directory / PREVIEW_FILE,
        objects=_moved(objects, directory),
    )


def write_not_analysable(
    findings: Findings, directory: Path, identity: ResultIdentity, files: Sequence[Path]
) -> ResultFiles:
    """Write findings.json and, of DICOM images of one study, all but a SEG: that nothing is said, and why.

    Also where the work failed (`Outcome.FAILED`).
    """
    findings = completed_findings(findings, identity, source=None)
    images = refused_images(files)
    objects: dict[ResultKind, tuple[SopInstance, ...]] = {}
    with _arriving(directory) as arriving:
        if images:
            # The digest is of files, down to names and sizes alone: what is said of these images is named after them.
            uids = "\n".join([identity.input_digest, *(str(image.SOPInstanceUID) for image in images)])
            of_images = replace(identity, input_digest=hashlib.sha256(uids.encode()).hexdigest())
            objects = _write_refusal(images, findings, arriving, of_images)
        _write_json(findings, arriving / FINDINGS_FILE)
    return ResultFiles(
        directory=directory,
        findings=findings,
        findings_path=directory / FINDINGS_FILE,
        objects=_moved(objects, directory),
    )


def _write_masks(source: SourceImage, result: SegmentationResult, directory: Path) -> None:
    save_nifti(source.nifti_image(result.embolus_labelmap), directory / MASK_FILE)
    save_nifti(source.nifti_image(result.artery), directory / ARTERY_FILE)


def _write_objects(
    source: SourceSeries,
    result: SegmentationResult,
    preview: Image.Image,
    directory: Path,
    identity: ResultIdentity,
    seg_options: SegOptions,
    beside: ThreadPoolExecutor,
) -> dict[ResultKind, tuple[SopInstance, ...]]:
    headers, findings = reference_headers(source), result.findings
    seg_and_sr = beside.submit(_write_seg_and_sr, source, result, headers, directory, identity, seg_options)
    shown = findings.reported[:MOST_KEY_IMAGES]
    emboli = embolus_pictures(source.volume, result, shown)
    key_images = [
        (overview_picture(preview, findings), None),
        *zip(emboli, (lesion.sop_instance_uid for lesion in shown), strict=True),
    ]
    pdf = report_pdf(findings, [preview, *emboli], headers[0], identity)
    pictures = write_key_images(key_images, headers[0], findings, directory, identity=identity)
    document = write_report(pdf, headers, findings, directory / REPORT_FILE, identity=identity)
    seg, sr = seg_and_sr.result()
    return {
        ResultKind.SEG: () if seg is None else (seg,),
        ResultKind.SR: (sr,),
        ResultKind.KEY_IMAGES: pictures,
        ResultKind.REPORT: (document,),
    }


def _write_seg_and_sr(
    source: SourceSeries,
    result: SegmentationResult,
    headers: list[Dataset],
    directory: Path,
    identity: ResultIdentity,
    seg_options: SegOptions,
) -> tuple[SopInstance | None, SopInstance]:
    seg = None
    if has_segments(result.findings, seg_options):
        seg = write_seg(source, result, directory / SEG_FILE, identity=identity, options=seg_options)
    sr = write_sr(source, result, seg, directory / SR_FILE, identity=identity, options=seg_options, headers=headers)
    return seg, sr


def _write_refusal(
    images: Sequence[Dataset], findings: Findings, directory: Path, identity: ResultIdentity
) -> dict[ResultKind, tuple[SopInstance, ...]]:
    picture = refusal_picture(findings)
    pdf = report_pdf(findings, [], images[0], identity)
    return {
        ResultKind.SR: (write_not_analysable_sr(images, findings, directory / SR_FILE, identity=identity),),
        ResultKind.KEY_IMAGES: write_key_images([(picture, None)], images[0], findings, directory, identity=identity),
        ResultKind.REPORT: (write_report(pdf, images, findings, directory / REPORT_FILE, identity=identity),),
    }


def _moved(
    objects: Mapping[ResultKind, tuple[SopInstance, ...]], directory: Path
) -> dict[ResultKind, tuple[SopInstance, ...]]:
    return {
        kind: tuple(replace(one, path=directory / one.path.name) for one in written)
        for kind, written in objects.items()
    }


def completed_findings(findings: Findings, identity: ResultIdentity, source: SourceImage | None) -> Findings:
    """The findings with who made them, out of what, and the source image that shows each lesion's peak.

    The source's warnings join the reasons; what the cascade wrote into `provenance` stays.
    """
    provenance = {**findings.provenance, **identity.to_dict()}
    if source is None:
        return replace(findings, provenance=provenance)
    lesions = tuple(
        replace(lesion, sop_instance_uid=source.sop_instance_uid_at(lesion.peak_lps_mm)) for lesion in findings.lesions
    )
    warnings = tuple(reason for reason in source.reasons if reason not in findings.reasons)
    return replace(
        findings,
        lesions=lesions,
        reasons=(*findings.reasons, *warnings),
        provenance={**provenance, "input": source.input_identity()},
    )


def _write_json(findings: Findings, path: Path) -> None:
    path.write_text(json.dumps(findings.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _arriving(directory: Path) -> Iterator[Path]:
    """A fresh folder beside `directory`; its files move in when it is left without an exception, findings.json last."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    arriving = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    arriving.mkdir()
    try:
        yield arriving
        if directory.exists():
            for file in sorted(arriving.iterdir(), key=lambda file: (file.name == FINDINGS_FILE, file.name)):
                os.replace(file, directory / file.name)
        else:
            os.replace(arriving, directory)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
