"""Small volumes with answers worked by hand, and the DICOM series and results made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset

from imaging.findings import ArteryLevel, Findings, Lesion, Outcome
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.headers import decimal_strings
from services.dicom.identity import ResultIdentity

REAL_DATA = Path(__file__).parents[3] / "../shared/data"
IDENTITY = ResultIdentity(
    software_version="0.1.0",
    package_name="phantom-small",
    package_version="1",
    package_sha256="ab" * 32,
    configuration_sha256="cd" * 32,
    input_digest="ef" * 32,
)


def axial_affine(
    spacing_zyx_mm: tuple[float, float, float] = (2.5, 0.8, 0.7), origin_lps_mm: Sequence[float] = (-10.0, -20.0, 30.0)
) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_zyx_mm
    affine[:3, 3] = origin_lps_mm
    affine[3, 3] = 1
    return affine


def oblique_affine() -> np.ndarray:
    """The axial grid turned by 20 degrees about L and then 10 degrees about S."""
    a, b = np.radians(20), np.radians(10)
    about_l = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_s = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = axial_affine()
    affine[:3, :3] = about_s @ about_l @ affine[:3, :3]
    return affine


def counting_volume(shape_zyx: tuple[int, int, int] = (6, 16, 24), affine: np.ndarray | None = None) -> CtVolume:
    """HU = 100 z + 10 y + x - 1000, so that a voxel tells where it belongs."""
    z, y, x = np.indices(shape_zyx)
    hu = (100 * z + 10 * y + x - 1000).astype(np.int16)
    return CtVolume(hu, axial_affine() if affine is None else affine)


def written_series(directory: Path, volume: CtVolume | None = None) -> list[Path]:
    return write_ct_series(volume or counting_volume(), directory, patient_id="PHANTOM-1", patient_name="Phantom^One")


def tilted_series(directory: Path, *, tilt_degrees: float, volume: CtVolume | None = None) -> list[Path]:
    """The volume's slices, each moved along its columns as a tilted gantry would have it."""
    volume = volume or counting_volume()
    step_mm = volume.spacing_zyx_mm[0] * np.tan(np.radians(tilt_degrees)) * volume.direction_cosines[:, 1]
    paths = written_series(directory, volume)
    for index, path in enumerate(paths):
        position = volume.point_lps_mm((index, 0, 0)) + index * step_mm
        edit(path, lambda dataset, p=position: setattr(dataset, "ImagePositionPatient", decimal_strings(p)))
    return paths


def edit(path: Path, change: Callable[[FileDataset], object]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def removing(*keywords: str) -> Callable[[Dataset], None]:
    def remove(dataset: Dataset) -> None:
        for keyword in keywords:
            if keyword in dataset:
                delattr(dataset, keyword)

    return remove


def made_result(volume: CtVolume, *, emboli: int = 2) -> SegmentationResult:
    """An artery of slices 1..4, rows 2..9, columns 3..14; embolus k a 2x2x3 block inside it, at column 3k + 1."""
    artery = np.zeros(volume.shape_zyx, dtype=bool)
    artery[1:5, 2:10, 3:15] = True
    labelmap = np.zeros(volume.shape_zyx, dtype=np.uint16)
    lesions = []
    for number in range(1, emboli + 1):
        labelmap[1 + number : 3 + number, 4:6, 3 * number + 1 : 3 * number + 4] = number
        peak = tuple(float(value) for value in volume.point_lps_mm((1 + number, 4, 3 * number + 2)))
        lesions.append(
            Lesion(
                id=number,
                score=1 - number / 10,
                volume_ml=0.02,
                centroid_lps_mm=peak,  # type: ignore[arg-type]
                peak_lps_mm=peak,  # type: ignore[arg-type]
                max_diameter_mm=4.0,
                mean_hu=50.0,
                artery_level=ArteryLevel.LOBAR,
            )
        )
    findings = Findings(
        Outcome.EMBOLUS_FOUND if emboli else Outcome.NO_EMBOLUS,
        scan_probability=0.9 if emboli else 0.1,
        lesions=tuple(lesions),
        provenance={"threshold": 0.5},
    )
    return SegmentationResult(labelmap, artery, findings)
