"""One door for every kind of image: DICOM files, a folder of them, one NIfTI or one NRRD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imaging.errors import InputError, NotAnalysable, Reason
from services.dicom import reason_codes
from services.dicom.headers import read_header
from services.dicom.nifti_reader import SourceNifti, read_nifti
from services.dicom.nrrd_reader import NRRD_MAGIC, SourceNrrd, is_nrrd, read_nrrd
from services.dicom.series_reader import SourceSeries, series_of
from services.dicom.series_summary import summary_of
from services.dicom.source_image import OnProgress
from services.dicom.voxel_stream import GZIP_MAGIC, opened

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_HEADER_SIZES = {348, 540}  # sizeof_hdr of NIfTI-1 and NIfTI-2, the first four bytes


def is_nifti(path: Path) -> bool:
    """By its first bytes, or its name: uploads are stored without one, and damage should be named as a NIfTI's.

    Anything compressed with gzip counts as one; `check_nifti` looks inside.
    """
    return _is_nifti(_first_bytes(path), path)


def is_volume_file(path: Path) -> bool:
    """Whether a file is a whole volume, NIfTI or NRRD, and no DICOM instance."""
    first = _first_bytes(path)
    return first == NRRD_MAGIC or _is_nifti(first, path)


def _first_bytes(path: Path) -> bytes:
    with opened(path) as file:
        return file.read(4)


def _is_nifti(first: bytes, path: Path) -> bool:
    sizes = {int.from_bytes(first, "little"), int.from_bytes(first, "big")} if len(first) == 4 else set()
    by_content = first[:2] == GZIP_MAGIC or bool(sizes & _HEADER_SIZES)
    return by_content or path.name.lower().endswith(NIFTI_SUFFIXES)


def read_input(
    path: Path | Sequence[Path], *, on_progress: OnProgress | None = None, exact: bool = False
) -> SourceSeries | SourceNifti | SourceNrrd:
    """Read one CT image. All results are a `SourceImage`: `.volume`, `.reasons`, and what the writers need.

    Args:
        path: a folder, one file, or files. DICOM objects of other series (reports, earlier results, scouts of their
            own) are left out with a warning, provided exactly one CT series is there.
        on_progress: called with the fraction read.
        exact: HU as they are stored; otherwise rounded, and -1024 where they are lower or padding.

    Raises:
        InputError: not an image; nothing there; `exact`, and HU are not whole or do not fit 16 bits.
        NotAnalysable: several patients or CT series, no CT, or no regular stack.
    """
    files = _files(path)
    if not files:
        raise InputError("no files were handed in", code="input.empty")
    if any(is_volume_file(file) for file in files):
        if len(files) > 1:
            raise InputError(
                f"{len(files)} files with a NIfTI or NRRD among them",
                code="input.several_volumes",
                remedy="hand in one at a time",
            )
        read = read_nrrd if is_nrrd(files[0]) else read_nifti
        return read(files[0], on_progress=on_progress, exact=exact)
    return _read_dicom(files, on_progress, exact=exact)


def _files(path: Path | Sequence[Path]) -> list[Path]:
    if not isinstance(path, Path):
        return list(path)
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not path.is_file():
        raise InputError(f"no such file or folder: {path.name}", code="input.unreadable")
    return [path]


def _read_dicom(files: Sequence[Path], on_progress: OnProgress | None, *, exact: bool) -> SourceSeries:
    headers = {file: read_header(file) for file in files}
    summary = summary_of(headers.items())
    if len(summary.patient_ids) > 1:
        text = f"images of {len(summary.patient_ids)} patients, hand in one at a time"
        raise NotAnalysable([Reason(reason_codes.MULTIPLE_PATIENTS, text)])
    if len(summary.ct_series) > 1:
        text = f"{len(summary.ct_series)} CT series, hand in one at a time"
        raise NotAnalysable([Reason(reason_codes.MULTIPLE_SERIES, text)])
    if not summary.ct_series or len(summary.series) == 1:
        return series_of([*headers.items()], on_progress=on_progress, exact=exact)
    chosen = [(file, headers[file]) for file in summary.ct_series[0].paths]
    source = series_of(chosen, on_progress=on_progress, exact=exact)
    ignored = len(files) - len(summary.ct_series[0].paths)
    warning = Reason(reason_codes.OTHER_OBJECTS_IGNORED, f"{ignored} objects of other series were ignored")
    return source.with_reasons(warning)
