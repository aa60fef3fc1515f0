"""Which series lie in a heap of files, from a few attributes of each header: cheap enough to ask before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from imaging.errors import InputError
from services.dicom.headers import integer, is_directory, number, numbers, read_header, text
from services.dicom.storage import CT_STORAGE_SOP_CLASSES

MAX_PLANES = 100_000  # of one series; a whole body in slices of half a millimetre has 4,000

_KEYWORDS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "ConvolutionKernel",
    "ContrastBolusAgent",
)


_PLANES = ("sagittal", "coronal", "axial")  # by the axis that is normal to them: L, P, S
_NEAR_AN_AXIS = float(np.cos(np.radians(30.0)))


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """One series, as its headers describe it.

    Attributes:
        count: image planes: distinct SOP instances, or frames of multi-frame ones.
        rows / columns: of the most frequent size; 0 where there is none.
        slice_spacing_mm: median distance between neighbouring positions along the normal; None where unknown
            (multi-frame instances tell only when read).
        paths: the files, in the order they were given.
        kernel / image_type / contrast_agent: of the first instance that says so, several values joined by a backslash;
            empty where none does.
        orientation: "axial", "coronal", "sagittal" or, more than 30 degrees from each, "oblique"; empty where unknown.
        slice_thickness_mm: of the first instance that says so.
    """

    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    sop_class_uid: str
    description: str
    count: int
    rows: int
    columns: int
    slice_spacing_mm: float | None
    paths: tuple[Path, ...]
    kernel: str = ""
    image_type: str = ""
    contrast_agent: str = ""
    orientation: str = ""
    slice_thickness_mm: float | None = None

    @property
    def is_ct(self) -> bool:
        return self.modality == "CT" and self.sop_class_uid in CT_STORAGE_SOP_CLASSES.values()


@dataclass(frozen=True, slots=True)
class SeriesSummary:
    """All series found, largest first; `patient_ids` are the distinct ones."""

    series: tuple[SeriesInfo, ...]

    @property
    def patient_ids(self) -> frozenset[str]:
        return frozenset(info.patient_id for info in self.series)

    @property
    def ct_series(self) -> tuple[SeriesInfo, ...]:
        return tuple(info for info in self.series if info.is_ct)


def inspect_headers(paths: Sequence[Path]) -> SeriesSummary:
    """Group DICOM files by series. Reads a dozen attributes per file, never pixels; a DICOMDIR is passed over.

    Raises:
        InputError: `input.not_dicom`, naming the first file that is not DICOM; `input.unreadable`;
            `input.too_many_frames` beyond `MAX_PLANES`, whatever the file really holds.
    """
    return summary_of((path, read_header(path, keywords=_KEYWORDS)) for path in paths)


def summary_of(instances: Iterable[tuple[Path, Dataset]]) -> SeriesSummary:
    """As `inspect_headers`, of headers that have been read."""
    groups: dict[tuple[str, str, str], list[tuple[Path, Dataset]]] = {}
    for path, header in instances:
        if is_directory(header):
            continue
        key = (text(header, "PatientID"), text(header, "StudyInstanceUID"), text(header, "SeriesInstanceUID"))
        groups.setdefault(key, []).append((path, header))
    infos = [_series_info(key, members) for key, members in groups.items()]
    return SeriesSummary(tuple(sorted(infos, key=lambda info: (-info.count, info.series_instance_uid))))


def modality_of(header: Dataset) -> str:
    """The Modality; where the type 1 attribute is missing, what the SOP class says."""
    is_ct_class = text(header, "SOPClassUID") in CT_STORAGE_SOP_CLASSES.values()
    return text(header, "Modality") or ("CT" if is_ct_class else "")


def kind_of(modality: str, sop_class_uid: str) -> str:
    """What an object is, for people: ``CT as Secondary Capture Image Storage``."""
    return f"{modality or 'unknown'} as {UID(sop_class_uid).name}"


def _series_info(key: tuple[str, str, str], members: list[tuple[Path, Dataset]]) -> SeriesInfo:
    headers = [header for _, header in members]
    instances = {text(header, "SOPInstanceUID") or str(path): header for path, header in members}
    count = sum(max(1, integer(header, "NumberOfFrames") or 1) for header in instances.values())
    if count > MAX_PLANES:
        raise InputError(
            f"a series announces {count} frames, at most {MAX_PLANES} are read", code="input.too_many_frames"
        )
    sizes = Counter((integer(header, "Rows") or 0, integer(header, "Columns") or 0) for header in headers)
    (rows, columns), _ = sizes.most_common(1)[0]
    return SeriesInfo(
        patient_id=key[0],
        study_instance_uid=key[1],
        series_instance_uid=key[2],
        modality=Counter(modality_of(header) for header in headers).most_common(1)[0][0],
        sop_class_uid=Counter(text(header, "SOPClassUID") for header in headers).most_common(1)[0][0],
        description=_first_text(headers, "SeriesDescription"),
        count=count,
        rows=rows,
        columns=columns,
        slice_spacing_mm=_median_spacing(headers),
        paths=tuple(path for path, _ in members),
        kernel=_first_text(headers, "ConvolutionKernel"),
        image_type=_first_text(headers, "ImageType"),
        contrast_agent=_first_text(headers, "ContrastBolusAgent"),
        orientation=_orientation(headers),
        slice_thickness_mm=next(
            (thick for header in headers if (thick := number(header, "SliceThickness")) is not None), None
        ),
    )


def _first_text(headers: Sequence[Dataset], keyword: str) -> str:
    return next((found for header in headers if (found := text(header, keyword))), "")


def _orientation(headers: Sequence[Dataset]) -> str:
    """The plane that most slices lie in, by the axis of the patient that their normal is nearest to."""
    planes = Counter(
        _plane_of(tuple(cosines))
        for header in headers
        if (cosines := numbers(header, "ImageOrientationPatient", 6)) is not None
    )
    return planes.most_common(1)[0][0] if planes else ""


@lru_cache(maxsize=64)
def _plane_of(cosines: tuple[float, ...]) -> str:
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    return _PLANES[int(np.argmax(normal))] if normal.max() >= _NEAR_AN_AXIS else "oblique"


def _median_spacing(headers: Sequence[Dataset]) -> float | None:
    placed = [
        (position, orientation)
        for header in headers
        if "LOCALIZER" not in text(header, "ImageType").upper()
        and (position := numbers(header, "ImagePositionPatient", 3)) is not None
        and (orientation := numbers(header, "ImageOrientationPatient", 6)) is not None
    ]
    if len(placed) < 2:
        return None
    normal = np.cross(placed[0][1][:3], placed[0][1][3:])
    gaps = np.diff(np.sort([position @ normal for position, _ in placed]))
    gaps = gaps[gaps > 1e-3]
    return float(np.median(gaps)) if gaps.size else None
