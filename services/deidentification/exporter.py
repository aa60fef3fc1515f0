"""De-identified copies of DICOM files in a folder or a zip: whole, or not there at all."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    SegmentationStorage,
)

from imaging.errors import InputError
from services.deidentification.cleaning import CleaningOptions, cleaned
from services.deidentification.pseudonyms import Pseudonyms
from services.dicom.dicom_file import opened_dicom
from services.dicom.headers import MALFORMED, text
from services.dicom.storage import CT_STORAGE_SOP_CLASSES

LabelMapSegmentationStorage = "1.2.840.10008.5.1.4.1.1.66.7"
# What the table was gone through for. Secondary captures and documents name the patient in pixels and in a PDF.
_EXPORTED = {
    *CT_STORAGE_SOP_CLASSES.values(),
    SegmentationStorage,
    LabelMapSegmentationStorage,
    BasicTextSRStorage,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
}


_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass
class Exported:
    """What became of the files.

    Attributes:
        studies: by Study Instance UID before: the Patient ID and the number of instances by SOP class.
        left_out: number of files by SOP Class UID that are of no kind that can be cleaned: pictures and documents.
    """

    studies: dict[str, tuple[str, Counter[str]]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def instances(self) -> int:
        return sum(sum(counted.values()) for _, counted in self.studies.values())


def export_files(
    files: Iterable[Path],
    target: Path,
    pseudonyms: Pseudonyms,
    options: CleaningOptions,
    *,
    allow_burned_in: bool = False,
    before_it_is_there: Callable[[Exported], None] = lambda exported: None,
) -> Exported:
    """Write cleaned copies below `target`, a folder or a `.zip` that is not there yet.

    Args:
        before_it_is_there: called when all is written under another name; where it raises, nothing is exported.

    Raises:
        InputError: `export.burned_in` where an image says that there is text in its pixels; `export.target_exists`;
            `input.not_dicom` where a file cannot be read; `export.nothing`.
    """
    if target.exists():
        raise InputError(f"{target} is there already", code="export.target_exists", remedy="name a new one")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        exported = _write_all(files, folder / "copies", pseudonyms, options, allow_burned_in=allow_burned_in)
        if not exported.instances:
            raise InputError("there is no CT, SEG or SR to export", code="export.nothing")
        written = folder / "copies"
        if target.suffix == ".zip":
            written = folder / "copies.zip"
            _pack(folder / "copies", written)
        before_it_is_there(exported)
        written.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return exported


def _write_all(
    files: Iterable[Path], folder: Path, pseudonyms: Pseudonyms, options: CleaningOptions, *, allow_burned_in: bool
) -> Exported:
    exported = Exported()
    for path in files:
        dataset = _read(path)
        sop_class_uid = text(dataset, "SOPClassUID")
        if sop_class_uid not in _EXPORTED:
            exported.left_out[sop_class_uid] += 1
            continue
        if not allow_burned_in and text(dataset, "BurnedInAnnotation").upper() == "YES":
            raise InputError(
                "an image says that annotation is burnt into its pixels, where it may name the patient",
                code="export.burned_in",
                remedy="look at the images, and say --allow-burned-in where they name nobody",
            )
        clean = cleaned(dataset, pseudonyms, options)
        place = folder / clean.StudyInstanceUID / clean.SeriesInstanceUID / f"{clean.SOPInstanceUID}.dcm"
        if place.exists():
            continue  # two tenants, or an upload and a push, hold the same instance
        place.parent.mkdir(parents=True, exist_ok=True)
        clean.save_as(place, enforce_file_format=True)
        _, counted = exported.studies.setdefault(
            text(dataset, "StudyInstanceUID"), (text(dataset, "PatientID"), Counter())
        )
        counted[sop_class_uid] += 1
    return exported


def _read(path: Path) -> FileDataset:
    """Names no file in its error: an uploaded one may be called after the patient."""
    with suppress(*MALFORMED), opened_dicom(path) as file:
        dataset = dcmread(file, force=True)
        if all(text(dataset, keyword) for keyword in _NEEDED) and "TransferSyntaxUID" in dataset.file_meta:
            return dataset
    raise InputError("a file is no whole DICOM file", code="input.not_dicom")


def _pack(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in sorted(folder.rglob("*.dcm")):
            packed.write(path, str(path.relative_to(folder)))
