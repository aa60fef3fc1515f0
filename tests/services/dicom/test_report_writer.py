from __future__ import annotations

import subprocess
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import EncapsulatedPDFStorage

from imaging.errors import Reason
from imaging.findings import RESEARCH_USE_ONLY, Findings, Outcome
from services.dicom.report_page import _WARNING_RGB
from services.dicom.result_files import write_not_analysable, write_results
from services.dicom.result_kind import ResultKind
from services.dicom.series_reader import read_series
from tests.services.dicom.checked_objects import dcentvfy_errors, dciodvfy_errors
from tests.services.dicom.made_series import IDENTITY, edit, made_result, removing, written_series

REASONS = tuple(Reason(f"geometry.reason_{number}", "too little of it " * 12) for number in range(12))
ENDINGS = ["embolus found", "none found", "not analysable"]


def written_report(directory: Path, ending: str, files: list[Path]) -> Path:
    if ending == "not analysable":
        written = write_not_analysable(Findings(Outcome.NOT_ANALYSABLE, REASONS), directory, IDENTITY, files)
    else:
        source = read_series(files)
        result = made_result(source.volume, emboli=3 if ending == "embolus found" else 0).with_reasons(REASONS)
        written = write_results(source, result, directory, IDENTITY)
    (report,) = written.objects[ResultKind.REPORT]
    return report.path


def page_of(pdf: bytes) -> Image.Image:
    """The picture that the page consists of."""
    return Image.open(BytesIO(pdf[pdf.index(b"\xff\xd8") : pdf.rindex(b"\xff\xd9") + 2]))


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_has_a_page_that_others_can_read(tmp_path: Path, ending: str) -> None:
    files = written_series(tmp_path / "series")
    path = written_report(tmp_path / "result", ending, files)
    assert dciodvfy_errors(path) == []
    assert dcentvfy_errors([path, *files]) == []
    document = pydicom.dcmread(path)
    assert document.SOPClassUID == EncapsulatedPDFStorage
    assert RESEARCH_USE_ONLY in document.DocumentTitle
    assert ("no embolus" in document.SeriesDescription) == (ending == "none found")
    assert len(document.SourceInstanceSequence) == len(files)

    subprocess.run(["dcm2pdf", str(path), str(tmp_path / "page.pdf")], check=True, capture_output=True, timeout=60)
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf == document.EncapsulatedDocument[: document.EncapsulatedDocumentLength]
    assert pdf.startswith(b"%PDF-")
    assert pdf.count(b"/Type /Page\n") == 1
    page = page_of(pdf)
    assert page.height / page.width == pytest.approx(2**0.5, rel=1e-2)  # A4


@pytest.mark.parametrize("ending", ENDINGS)
def test_repeated_work_writes_the_same_bytes(tmp_path: Path, ending: str) -> None:
    files = written_series(tmp_path / "series")
    first = written_report(tmp_path / "first", ending, files)
    time.sleep(1.1)  # everything a PDF takes from the clock is counted in seconds
    second = written_report(tmp_path / "second", ending, files)
    assert first.read_bytes() == second.read_bytes()


def test_nothing_on_a_full_page_covers_what_made_it(tmp_path: Path) -> None:
    files = written_series(tmp_path / "series")
    path = written_report(tmp_path / "result", "embolus found", files)
    page = np.asarray(page_of(pydicom.dcmread(path).EncapsulatedDocument)).astype(int)
    lines_with_ink = (page.min(axis=2) < 128).any(axis=1)
    starts = np.flatnonzero(np.diff(lines_with_ink.astype(int)) == 1)
    assert np.count_nonzero(starts > 1600) == 3
    notice = (np.abs(page - _WARNING_RGB).sum(axis=2) < 60).any(axis=1)
    assert notice[:200].any()


def test_a_patient_of_any_letters_or_none_gets_a_report(tmp_path: Path) -> None:
    for name, patient_id in (("letters", "Ж-山田"), ("none", "")):
        files = written_series(tmp_path / name)
        for file in files:
            edit(file, removing("StudyDate", "ContentDate", "AcquisitionDate", "SeriesDate", "StudyTime"))
            edit(file, lambda dataset, patient_id=patient_id: setattr(dataset, "PatientID", patient_id))
        path = written_report(tmp_path / f"result {name}", "not analysable", files)
        assert dciodvfy_errors(path) == []
        assert pydicom.dcmread(path).PatientID == patient_id
