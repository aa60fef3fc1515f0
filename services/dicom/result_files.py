"""A result as files: what the gateway serves, the folder destination takes and the command line writes."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imaging.findings import Findings
from imaging.result import SegmentationResult
from services.dicom.identity import ResultIdentity
from services.dicom.label_nifti import save_nifti
from services.dicom.preview import write_preview
from services.dicom.seg_writer import SopInstance, write_seg
from services.dicom.series_reader import SourceSeries
from services.dicom.source_image import SourceImage

FINDINGS_FILE = "findings.json"
MASK_FILE = "mask.nii.gz"
ARTERY_FILE = "artery.nii.gz"
PREVIEW_FILE = "preview.png"
SEG_FILE = "seg.dcm"


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """Where the parts of a result lie.

    Attributes:
        findings: as written: with provenance, and a source image for every lesion.
        mask_path / artery_path / preview_path: None where the scan was not analysable.
        seg: the DICOM SEG; None for NIfTI input and where the scan was not analysable.
    """

    directory: Path
    findings: Findings
    findings_path: Path
    mask_path: Path | None = None
    artery_path: Path | None = None
    preview_path: Path | None = None
    seg: SopInstance | None = None


def write_results(
    source: SourceImage, result: SegmentationResult, directory: Path, identity: ResultIdentity
) -> ResultFiles:
    """Write findings.json, mask.nii.gz, artery.nii.gz, preview.png and, for a DICOM source, seg.dcm.

    Everything is written beside `directory` first and moved in whole, findings.json last: where it lies, the others do.
    Files of the same names are replaced, others in `directory` are left alone. Equal arguments write equal bytes.
    """
    findings = completed_findings(result.findings, identity, source)
    result = replace(result, findings=findings)
    with _arriving(directory) as arriving:
        save_nifti(source.nifti_image(result.embolus_labelmap), arriving / MASK_FILE)
        save_nifti(source.nifti_image(result.artery), arriving / ARTERY_FILE)
        write_preview(source.volume, result, arriving / PREVIEW_FILE)
        seg = None
        if isinstance(source, SourceSeries):
            seg = write_seg(source, result, arriving / SEG_FILE, identity=identity)
            seg = replace(seg, path=directory / SEG_FILE)
        _write_json(findings, arriving / FINDINGS_FILE)
    return ResultFiles(
        directory=directory,
        findings=findings,
        findings_path=directory / FINDINGS_FILE,
        mask_path=directory / MASK_FILE,
        artery_path=directory / ARTERY_FILE,
        preview_path=directory / PREVIEW_FILE,
        seg=seg,
    )


def write_findings(
    findings: Findings, directory: Path, identity: ResultIdentity, source: SourceImage | None = None
) -> ResultFiles:
    """Write findings.json alone: what there is to say about a scan that was not analysable."""
    findings = completed_findings(findings, identity, source)
    with _arriving(directory) as arriving:
        _write_json(findings, arriving / FINDINGS_FILE)
    return ResultFiles(directory=directory, findings=findings, findings_path=directory / FINDINGS_FILE)


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
