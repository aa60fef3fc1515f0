"""NIfTI to a DICOM CT series and back, HU and geometry exact.

HU are stored as 16-bit integers, slope 1, in both: that holds every CT. HU that are not whole or do not fit are refused
rather than scaled; or, on demand, taken as `segment` reads them: rounded, and -1024 where they are lower or padding.
What was written is read back and compared before it gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from imaging.errors import InputError, Reason
from imaging.geometry import to_canonical
from imaging.volume import CtVolume
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.input_reader import read_input
from services.dicom.source_image import OnProgress
from services.dicom.uids import derive_uid

# NIfTI keeps the affine in 32 bits: at 1 m from the origin that is 0.00006 mm.
SAME_PLACE_MM = 1e-3
_READ, _WRITTEN = 0.4, 0.8  # of the work


def nifti_to_dicom(
    source: Path | Sequence[Path],
    directory: Path,
    *,
    patient_id: str | None = None,
    patient_name: str = "",
    rounded: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[Reason, ...]:
    """Writes a NIfTI as a CT series, one file per slice along its third axis, into a new `directory`.

    The same file and patient give the same UIDs. What a NIfTI does not say (dates, tube voltage) stays empty.

    Args:
        patient_id: one derived from the image where not given.
        rounded: take HU that are not whole or do not fit, see above.

    Returns:
        warnings about the image.

    Raises:
        InputError / NotAnalysable: as `read_input`; axes so far from orthogonal that DICOM cannot say where they lie.
    """
    report = on_progress or _unheard
    image = read_input(source, exact=not rounded, on_progress=partial(_share, report, 0.0, _READ))
    digest = image.content_digest()
    patient = patient_id or f"NIFTI-{digest[:12].upper()}"
    study_uid = derive_uid("converted study", patient, digest)
    with _appearing(directory) as unfinished:
        write_ct_series(
            image.volume,
            unfinished,
            patient_id=patient,
            patient_name=patient_name,
            study_instance_uid=study_uid,
            series_instance_uid=derive_uid("converted series", study_uid),
            series_description="Converted from NIfTI",
            study_description="Converted from NIfTI",
            study_date="",
            study_time="",
            protocol_name="",
            manufacturer_model_name="NIfTI converter",
            kvp="",
            body_part_examined="",
            on_progress=partial(_share, report, _READ, _WRITTEN),
        )
        _compare(image.volume, unfinished, partial(_share, report, _WRITTEN, 1.0))
    return image.reasons


def dicom_to_nifti(
    source: Path | Sequence[Path], file: Path, *, rounded: bool = False, on_progress: OnProgress | None = None
) -> tuple[Reason, ...]:
    """Writes the CT series in a folder (or files, or one multi-frame file) as `file`, ``.nii.gz`` or ``.nii``.

    Axes (x, y, z) are column, row and slice of the DICOM images, slices along the normal of the image plane.

    Returns:
        warnings about the series.

    Raises:
        InputError / NotAnalysable: as `read_input`.
    """
    report = on_progress or _unheard
    series = read_input(source, exact=not rounded, on_progress=partial(_share, report, 0.0, _READ))
    file.parent.mkdir(parents=True, exist_ok=True)
    with _appearing(file) as unfinished:
        write_ct_nifti(series.volume, unfinished)
        _compare(series.volume, unfinished, partial(_share, report, _WRITTEN, 1.0))
    return series.reasons


def _compare(volume: CtVolume, written: Path, on_progress: OnProgress) -> None:
    """Raises InputError where what is written is not the volume: other HU, or another place in the patient."""
    expected, _ = to_canonical(volume)
    found, _ = to_canonical(read_input(written, exact=True, on_progress=on_progress).volume)
    if not np.array_equal(expected.hu, found.hu):
        raise InputError("the HU written are not those read", code="input.not_exact")
    z, y, x = (n - 1 for n in expected.shape_zyx)
    corners = np.array([(k, j, i) for k in (0, z) for j in (0, y) for i in (0, x)])
    distance_mm = np.linalg.norm(expected.point_lps_mm(corners) - found.point_lps_mm(corners), axis=1).max()
    if distance_mm > SAME_PLACE_MM:
        raise InputError(
            f"voxels would be displaced by up to {distance_mm:.3f} mm, since the axes are not orthogonal",
            code="geometry.not_exact",
            remedy="resample the image to orthogonal axes first",
        )


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A path of the same name in a hidden folder beside `path`; what was written there moves to `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield hidden / path.name
        (hidden / path.name).replace(path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _share(report: OnProgress, start: float, stop: float, fraction: float) -> None:
    report(start + (stop - start) * fraction)


def _unheard(fraction: float) -> None:
    pass
