"""NIfTI to a DICOM CT series and back, HU and geometry exact; label maps to a DICOM SEG and back, voxel by voxel.

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
from numpy.typing import NDArray

from imaging.errors import InputError, Reason
from imaging.geometry import laid_onto, nearest_onto, to_canonical
from imaging.volume import Affine, CtVolume
from services.dicom import reason_codes
from services.dicom.conversion_options import LabelSegOptions
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.input_reader import read_input
from services.dicom.label_nifti import nifti_of, save_nifti
from services.dicom.label_seg_writer import write_label_seg
from services.dicom.seg_reader import read_seg
from services.dicom.series_reader import SourceSeries
from services.dicom.source_image import OnProgress
from services.dicom.uids import derive_uid

# NIfTI keeps the affine in 32 bits: at 1 m from the origin that is 0.00006 mm.
SAME_PLACE_MM = 1e-3
MAX_LABELS = 1000
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


def label_map_to_seg(
    label_map: Path,
    series: Path | Sequence[Path],
    file: Path,
    *,
    options: LabelSegOptions | None = None,
    resample: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[Reason, ...]:
    """Writes a NIfTI or NRRD label map as a SEG over the CT series that it was drawn on, a segment for every label.

    The label map has the grid of the series, axes in any order and direction. Of a tilted series that is the orthogonal
    grid that `dicom_to_nifti` writes, `rounded`; what lies there beside the slices is left out with a warning.

    Args:
        resample: take a label map on another grid too, each voxel from the nearest one.

    Returns:
        warnings about the two.

    Raises:
        InputError / NotAnalysable: as `read_input`; labels that are negative, none or too many; another grid
            (`geometry.grid_differs`).
    """
    report = on_progress or _unheard
    source = _read_dicom_series(series, partial(_share, report, 0.0, _READ))
    labels, affine_lps, reasons = _read_labels(label_map)
    numbers = laid_onto(labels, affine_lps, source.volume)
    if numbers is None:
        if not resample:
            raise _other_grid(labels, affine_lps, source.volume)
        numbers = nearest_onto(labels, affine_lps, source.volume)
        reasons = (*reasons, Reason(reason_codes.RESAMPLED, "labels were taken from the nearest voxel of another grid"))
    if source.sheared is not None:
        before, numbers = np.count_nonzero(numbers), source.sheared.onto_grid(source.on_slices(numbers))
        if lost := before - np.count_nonzero(numbers):
            text = f"{lost} labelled voxels lie beside the tilted slices and are not part of the SEG"
            reasons = (*reasons, Reason(reason_codes.LABELS_BESIDE_SLICES, text))
    numbers, names, renumbered = _numbered_from_1(numbers)
    with _appearing(file) as unfinished:
        write_label_seg(source, numbers, names, unfinished, options or LabelSegOptions())
        report(_WRITTEN)
        if not np.array_equal(read_seg(unfinished, series=source).labels, numbers):
            raise InputError("the segments written are not the labels read", code="input.not_exact")
    return (*source.reasons, *reasons, *renumbered)


def seg_to_label_map(
    seg: Path,
    file: Path,
    *,
    series: Path | Sequence[Path] | None = None,
    only_segment: int | None = None,
) -> tuple[Reason, ...]:
    """Writes a DICOM SEG, ours or another maker's, as a NIfTI label map ``.nii.gz`` or ``.nii`` of segment numbers.

    Args:
        series: the CT series that it was drawn on, whose grid the label map then has; otherwise it reaches from the
            first frame to the last.
        only_segment: the number of the one segment to take, where segments share voxels.

    Raises:
        InputError / NotAnalysable: as `read_seg` and `read_input`.
    """
    source = None if series is None else _read_dicom_series(series, _unheard)
    found = read_seg(seg, series=source, only_segment=only_segment)
    with _appearing(file) as unfinished:
        save_nifti(nifti_of(found.labels, found.affine_lps), unfinished)
    return found.reasons


def _read_dicom_series(series: Path | Sequence[Path], on_progress: OnProgress) -> SourceSeries:
    source = read_input(series, on_progress=on_progress)
    if not isinstance(source, SourceSeries):
        raise InputError("a SEG lies over a DICOM series", code="input.not_dicom", remedy="hand in its CT images")
    return source


def _read_labels(file: Path) -> tuple[NDArray[np.int16], Affine, tuple[Reason, ...]]:
    """Labels (k, j, i) with their affine to LPS."""
    try:
        image = read_input(file, exact=True)
    except InputError as error:
        if error.code in ("input.hu_not_whole", "input.hu_beyond_16_bits"):
            text = f"{file.name} holds values that are no labels: whole numbers from 0 to 32767"
            raise InputError(text, code="input.not_labels") from error
        raise
    labels = image.volume.hu
    if (lowest := int(labels.min())) < 0:
        raise InputError(f"{file.name} holds {lowest}: a label is 0 or more", code="input.not_labels")
    return labels, image.volume.affine_lps, image.reasons


def _numbered_from_1(labels: NDArray[np.int16]) -> tuple[NDArray[np.uint16], dict[int, str], tuple[Reason, ...]]:
    """Segment numbers without a gap (PS3.3 C.8.20.2), their names, and a warning where labels had gaps."""
    present = [int(label) for label in np.flatnonzero(np.bincount(labels.ravel()))]
    present = [label for label in present if label]
    if not present:
        raise InputError("the label map is empty: a SEG has at least one segment", code="input.no_labels")
    if len(present) > MAX_LABELS:
        text = f"the file has {len(present)} different values, at most {MAX_LABELS} labels are taken"
        raise InputError(text, code="input.not_labels", remedy="hand in a label map, not an image")
    number_of = np.zeros(present[-1] + 1, dtype=np.uint16)
    number_of[present] = np.arange(1, len(present) + 1)
    names = {number: f"Label {label}" for number, label in enumerate(present, start=1)}
    if present == list(names):
        return labels.astype(np.uint16), names, ()
    text = f"the labels {', '.join(map(str, present[:20]))} became segments 1 to {len(present)}, named after them"
    return number_of[labels], names, (Reason(reason_codes.SEGMENTS_RENUMBERED, text),)


def _other_grid(labels: NDArray[np.int16], affine_lps: Affine, volume: CtVolume) -> InputError:
    said = " and ".join(
        f"{name} of {' x '.join(str(n) for n in shape[::-1])} voxels of "
        f"{' x '.join(f'{mm:.3f}' for mm in np.linalg.norm(affine[:3, :3], axis=0)[::-1])} mm "
        f"from ({', '.join(f'{mm:.2f}' for mm in affine[:3, 3])}) "
        f"to ({', '.join(f'{mm:.2f}' for mm in affine[:3] @ (*(n - 1 for n in shape), 1))}) mm LPS"
        for name, shape, affine in (
            ("a label map", labels.shape, affine_lps),
            ("a series", volume.shape_zyx, volume.affine_lps),
        )
    )
    return InputError(
        f"the voxels are not the same: {said}",
        code=reason_codes.GRID_DIFFERS,
        remedy="hand in the series it was drawn on, or have the nearest labels taken",
    )


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
