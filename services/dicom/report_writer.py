"""The report page as an Encapsulated PDF (PS3.3 A.45.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage

from imaging.findings import RESEARCH_USE_ONLY, Findings
from services.dicom.identity import ResultIdentity
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import SopInstance, plain_object, save_whole
from services.dicom.sop_reference import reference_to


def write_report(
    pdf: bytes, sources: Sequence[Dataset], findings: Findings, path: Path, *, identity: ResultIdentity
) -> SopInstance:
    """Write the PDF under `path`, complete or not at all; equal arguments write equal bytes.

    Args:
        sources: clean headers of the source images, all of which it refers to.
    """
    document = plain_object(EncapsulatedPDFStorage, ResultKind.REPORT, sources[0], findings, identity)
    document.Modality = "DOC"
    document.AcquisitionDateTime = ""
    document.BurnedInAnnotation = "YES"  # patient ID and study date stand on the page
    document.DocumentTitle = f"Embolens report. {RESEARCH_USE_ONLY}"
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator, title.CodeMeaning = codes.DCM.ImagingMeasurementReport[:3]
    document.ConceptNameCodeSequence = [title]
    document.SourceInstanceSequence = [reference_to(one.SOPClassUID, one.SOPInstanceUID) for one in sources]
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocumentLength = len(pdf)
    document.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    return save_whole(document, sources[0], path)
