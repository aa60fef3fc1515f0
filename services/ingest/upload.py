"""What was uploaded: told by content, never by name, and narrowed to the one image that is to be segmented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from imaging.errors import InputError, Reason
from services.dicom.headers import MALFORMED, is_directory, text
from services.dicom.input_reader import is_volume_file
from services.dicom.nifti_reader import check_nifti
from services.dicom.nrrd_reader import check_nrrd, is_nrrd
from services.dicom.series_summary import SeriesInfo, SeriesSummary, inspect_headers, kind_of
from services.dicom.source_image import InputKind
from services.ingest.series_selection import SelectionRule, ranked
from services.ingest.zip_archive import CheckRoom, any_room, unpack_zip
from services.store.study_store import checked_uid

__all__ = ["UploadContents", "inspect_upload", "is_zip", "unpack_uploads", "unpack_zip"]

_WHAT_TO_SEND = "send DICOM files, a zip of them, one NIfTI or one NRRD"
_HEAD_BYTES = 1 << 16  # the SOP class is among the first elements
_ALWAYS_UNPACKED_BYTES = 64 * 1024**2
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an archive of nothing


@dataclass(frozen=True, slots=True)
class UploadContents:
    """The image in an upload.

    Attributes:
        files: of the one series that is segmented, or the one NIfTI or NRRD.
        instance_count: image planes of a DICOM series; 1 for a NIfTI or NRRD.
        warnings: what was left out and why; belongs into the job's reasons.
    """

    kind: InputKind
    files: tuple[Path, ...]
    instance_count: int
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    warnings: tuple[Reason, ...] = ()


def is_zip(path: Path) -> bool:
    """By its first bytes."""
    with path.open("rb") as file:
        return file.read(4) in _ZIP_MAGIC


def unpack_uploads(
    files: Sequence[Path],
    *,
    max_bytes: int,
    max_files: int,
    max_ratio: float = float("inf"),
    check_room: CheckRoom = any_room,
) -> list[Path]:
    """The files, each zip replaced by what it holds, unpacked beside it. The limits are those of all together.

    Args:
        max_ratio: what a zip unpacks to is at most this many times its size, or 64 MiB.

    Raises:
        InputError / InputTooLarge / StorageFull: as `unpack_zip`.
    """
    archives: list[Path] = []
    unpacked: list[Path] = []
    for file in files:
        (archives if is_zip(file) else unpacked).append(file)
    for archive in archives:
        into = archive.with_name(f"{archive.name}.unpacked")
        into.mkdir()
        by_size = max(_ALWAYS_UNPACKED_BYTES, archive.stat().st_size * max_ratio)
        members = unpack_zip(
            archive,
            into,
            max_bytes=int(min(max_bytes, by_size)),
            max_files=max_files - len(unpacked),
            check_room=check_room,
        )
        max_bytes -= sum(member.stat().st_size for member in members)
        unpacked += members
        archive.unlink()
    return unpacked


def inspect_upload(paths: Sequence[Path], selection: Sequence[SelectionRule] = ()) -> UploadContents:
    """Find the CT series, NIfTI or NRRD among uploaded files. Reads headers, and a volume to its end; none is kept.

    Args:
        selection: which of several CT series is the angiogram; without rules, the largest.

    Raises:
        InputError: `input.empty`, `input.not_dicom`, `input.several_volumes`, `input.multiple_patients`,
            `input.modality_not_ct`, `input.invalid_uid`; and what `check_nifti`, `check_nrrd` and
            `inspect_headers` raise.
        InputTooLarge: a volume beyond what is read.
    """
    if not paths:
        raise InputError("no file was sent", code="input.empty", remedy=_WHAT_TO_SEND)
    images = {path for path in paths if is_volume_file(path)}
    instances = dicom_files([path for path in paths if path not in images])
    if instances:
        return _dicom_contents(instances, selection, ignored_files=len(paths) - len(instances))
    if len(images) > 1:
        text = f"{len(images)} NIfTI or NRRD files in one upload"
        raise InputError(text, code="input.several_volumes", remedy="send one at a time")
    if images:
        (image,) = images
        kind: InputKind = "nrrd" if is_nrrd(image) else "nifti"
        check = check_nrrd if kind == "nrrd" else check_nifti
        check(image)
        return UploadContents(kind, (image,), 1, warnings=_files_ignored(len(paths) - 1))
    raise InputError(
        f"{'the file is' if len(paths) == 1 else f'the {len(paths)} files are'} neither DICOM nor NIfTI nor NRRD",
        code="input.not_dicom",
        remedy=_WHAT_TO_SEND,
    )


def dicom_files(paths: Sequence[Path]) -> list[Path]:
    """Those that are DICOM."""
    return [path for path in paths if _is_dicom(path)]


def _dicom_contents(
    instances: Sequence[Path], selection: Sequence[SelectionRule], *, ignored_files: int
) -> UploadContents:
    summary = inspect_headers(instances)
    if (patients := len(summary.patient_ids)) > 1:
        text = f"the upload holds images of {patients} patients"
        raise InputError(text, code="input.multiple_patients", remedy="send one patient's study at a time")
    chosen, warnings = _choose(summary, selection)
    return UploadContents(
        kind="dicom",
        files=chosen.paths,
        instance_count=chosen.count,
        study_instance_uid=_uid(chosen.study_instance_uid),
        series_instance_uid=_uid(chosen.series_instance_uid),
        warnings=warnings + _files_ignored(ignored_files),
    )


def _uid(uid: str) -> str | None:
    """None where the attribute is missing: such a series can be segmented all the same."""
    return checked_uid(uid) if uid else None


def _choose(summary: SeriesSummary, selection: Sequence[SelectionRule]) -> tuple[SeriesInfo, tuple[Reason, ...]]:
    """The CT series that is most likely the angiogram."""
    if not summary.ct_series:
        found = sorted({kind_of(series.modality, series.sop_class_uid) for series in summary.series})
        text = f"the upload holds {', '.join(found) or 'no image'}, only CT images can be segmented"
        raise InputError(text, code="input.modality_not_ct", remedy="send a CT series")
    best = ranked(summary.ct_series, selection)[0]
    chosen = best.series
    warnings = []
    if (number := len(summary.ct_series)) > 1:
        text = (
            f"{number} CT series in the upload; segmented is {chosen.series_instance_uid} with {chosen.count} slices"
            f" ({best.because})"
        )
        warnings.append(Reason("input.several_series", text))
    if other := len(summary.series) - number:
        warnings.append(Reason("input.other_objects_ignored", f"{other} series that are not CT images were left out"))
    return chosen, tuple(warnings)


def _files_ignored(number: int) -> tuple[Reason, ...]:
    return (Reason("input.files_ignored", f"{number} files that are not DICOM images were left out"),) if number else ()


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[128:132] == b"DICM":
        return True
    try:  # written before PS3.10 asked for a preamble, or stripped of it
        found = dcmread(BytesIO(head), force=True, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    except (OSError, *MALFORMED):
        return False
    return bool(text(found, "SOPClassUID")) or is_directory(found)
