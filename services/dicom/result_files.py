"""A result as files: what the gateway serves, the folder destination takes and the command line writes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from imaging.findings import Findings
from imaging.result import SegmentationResult
from services.dicom.identity import ResultIdentity
from services.dicom.label_nifti import save_nifti
from services.dicom.preview import write_preview
from services.dicom.refused_images import refused_images
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import SopInstance
from services.dicom.seg_writer import write_seg
from services.dicom.series_reader import SourceSeries
from services.dicom.source_image import SourceImage
from services.dicom.sr_writer import write_not_analysable_sr, write_sr

FINDINGS_FILE = "findings.json"
MASK_FILE = "mask.nii.gz"
ARTERY_FILE = "artery.nii.gz"
PREVIEW_FILE = "preview.png"
SEG_FILE = "seg.dcm"
SR_FILE = "sr.dcm"


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """Where the parts of a result lie.

    Attributes:
        findings: as written: with provenance, and a source image for every lesion.
        mask_path / artery_path / preview_path: None where the scan was not analysable.
        objects: the DICOM objects by their kind; none for NIfTI input, no SEG where the scan was not analysable.
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
    source: SourceImage, result: SegmentationResult, directory: Path, identity: ResultIdentity
) -> ResultFiles:
    """Write findings.json, mask.nii.gz, artery.nii.gz, preview.png and, for a DICOM source, seg.dcm and sr.dcm.

    Everything is written beside `directory` first and moved in whole, findings.json last: where it lies, the others do.
    Files of the same names are replaced, others in `directory` are left alone. Equal arguments write equal bytes.
    """
    findings = completed_findings(result.findings, identity, source)
    result = replace(result, findings=findings)
    with _arriving(directory) as arriving:
        save_nifti(source.nifti_image(result.embolus_labelmap), arriving / MASK_FILE)
        save_nifti(source.nifti_image(result.artery), arriving / ARTERY_FILE)
        write_preview(source.volume, result, arriving / PREVIEW_FILE)
        objects = _write_objects(source, result, arriving, identity) if isinstance(source, SourceSeries) else {}
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
    """Write findings.json and, of DICOM images of one study, sr.dcm: that nothing can be said, and why."""
    findings = completed_findings(findings, identity, source=None)
    images = refused_images(files)
    objects: dict[ResultKind, tuple[SopInstance, ...]] = {}
    with _arriving(directory) as arriving:
        if images:
            # The digest is of files, down to names and sizes alone: what is said of these images is named after them.
            uids = "\n".join([identity.input_digest, *(str(image.SOPInstanceUID) for image in images)])
            of_images = replace(identity, input_digest=hashlib.sha256(uids.encode()).hexdigest())
            sr = write_not_analysable_sr(images, findings, arriving / SR_FILE, identity=of_images)
            objects[ResultKind.SR] = (sr,)
        _write_json(findings, arriving / FINDINGS_FILE)
    return ResultFiles(
        directory=directory,
        findings=findings,
        findings_path=directory / FINDINGS_FILE,
        objects=_moved(objects, directory),
    )


def _write_objects(
    source: SourceSeries, result: SegmentationResult, directory: Path, identity: ResultIdentity
) -> dict[ResultKind, tuple[SopInstance, ...]]:
    seg = write_seg(source, result, directory / SEG_FILE, identity=identity)
    sr = write_sr(source, result, seg, directory / SR_FILE, identity=identity)
    return {ResultKind.SEG: (seg,), ResultKind.SR: (sr,)}


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
