"""A CT series from its files to a `CtVolume`: complete and in its place in the patient, or refused with a reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from imaging.errors import InputError, NotAnalysable, Reason
from imaging.sheared_stack import ShearedStack, shear_degrees
from imaging.volume import CtVolume, Hu
from services.dicom import reason_codes
from services.dicom.headers import is_directory, read_header, text
from services.dicom.image_plane import ImagePlane, is_multi_frame, planes_of
from services.dicom.pixel_reader import read_hu
from services.dicom.series_summary import SeriesInfo, SeriesSummary, inspect_headers, kind_of, modality_of
from services.dicom.source_image import OnProgress, digest_of, refuse_too_many_voxels
from services.dicom.stack_geometry import arrange, drop_localizers
from services.dicom.storage import CT_STORAGE_SOP_CLASSES

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

__all__ = ["SeriesInfo", "SeriesSummary", "SourceSeries", "inspect_headers", "read_series"]

CT_CLASSES = frozenset(CT_STORAGE_SOP_CLASSES.values())
_Instance = tuple[Path, Dataset]
DECODING_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, eq=False)
class SourceSeries:
    """A CT series that has been read; a `SourceImage`.

    Attributes:
        volume: HU, slices sorted along the normal of the image plane; of a tilted gantry on an orthogonal grid.
        headers: data sets without pixel data, one per slice in volume order; for a multi-frame instance its only one.
        sop_instance_uids: one per slice (the same for all frames of one instance).
        frame_indices: 0-based frame of each slice within its instance; all 0 for single-frame instances.
        reasons: warnings, e.g. localizers that were left out.
        sheared: how the slices of a tilted gantry lie on the volume's grid; None where they are the grid's slices.
    """

    volume: CtVolume
    headers: tuple[Dataset, ...]
    sop_instance_uids: tuple[str, ...]
    study_instance_uid: str
    series_instance_uid: str
    reasons: tuple[Reason, ...] = ()
    frame_indices: tuple[int, ...] = ()
    sheared: ShearedStack | None = None
    kind: Literal["dicom"] = "dicom"

    @property
    def is_multi_frame(self) -> bool:
        return len(self.headers) == 1

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """Of a slice as acquired."""
        _, rows, columns = self.volume.shape_zyx if self.sheared is None else self.sheared.shape_zyx
        return rows, columns

    def position_lps_mm(self, index: int) -> NDArray[np.float64]:
        """Centre of the first voxel of a slice as acquired."""
        row, column = (0.0, 0.0) if self.sheared is None else self.sheared.offsets_px[index]
        return self.volume.point_lps_mm((index, row, column))

    def on_slices(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels (z, y, x) on the volume's grid -> on the slices as acquired, in volume order."""
        return labels if self.sheared is None else self.sheared.on_slices(labels)

    def with_reasons(self, *reasons: Reason) -> SourceSeries:
        return replace(self, reasons=(*self.reasons, *reasons))

    def sop_instance_uid_at(self, point_lps_mm: tuple[float, float, float]) -> str | None:
        index = round(float(self.volume.index_zyx(point_lps_mm)[0]))
        return self.sop_instance_uids[min(max(index, 0), len(self.sop_instance_uids) - 1)]

    def nifti_image(self, labels: NDArray[Any]) -> Nifti1Image:
        from services.dicom.label_nifti import nifti_of  # nibabel: the listener reads headers and needs none

        return nifti_of(labels, self.volume.affine_lps)

    def input_identity(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "study_instance_uid": self.study_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "sop_instance_uids": list(dict.fromkeys(self.sop_instance_uids)),
        }

    def content_digest(self) -> str:
        return digest_of(self.volume, self.study_instance_uid, self.series_instance_uid, *self.sop_instance_uids)


def read_series(paths: Sequence[Path], *, on_progress: OnProgress | None = None, exact: bool = False) -> SourceSeries:
    """Read one CT series. Memory: the int16 volume plus a few slices.

    Args:
        paths: the files of one series, in any order; copies of an instance count once, a DICOMDIR is passed over.
        on_progress: called with the fraction of slices decoded.
        exact: HU as they are stored, padding and values below -1024 among them.

    Raises:
        InputError: a file is not DICOM, is malformed, or the series is impossibly large; `exact`, and HU are not
            whole or do not fit 16 bits.
        NotAnalysable: no regular CT stack; codes in `reason_codes`.
    """
    return series_of([(path, read_header(path)) for path in paths], on_progress=on_progress, exact=exact)


def series_of(
    instances: Sequence[_Instance], *, on_progress: OnProgress | None = None, exact: bool = False
) -> SourceSeries:
    """As `read_series`, of files whose headers have been read whole."""
    instances = [(path, header) for path, header in instances if not is_directory(header)]
    images, reasons = _ct_images(instances)
    _refuse_other_than_one_ct_series([header for _, header in images])
    planes, warnings = drop_localizers(_distinct_planes(images))
    reasons = (*reasons, *warnings)
    # asked of the stack alone: a scout may have a frame of reference of its own
    _refuse_different_uids([plane.header for plane in planes], "FrameOfReferenceUID")
    _refuse_other_than_hu(planes)
    planes, affine = arrange(planes)
    sheared = None
    if tilt := shear_degrees(affine):
        text_ = f"slices are sheared by {tilt:.1f} degrees (gantry tilt)"
        if exact:
            raise NotAnalysable([Reason(reason_codes.GANTRY_TILT, f"{text_}: HU would have to be interpolated")])
        warning = Reason(reason_codes.RESAMPLED, f"{text_}: moved within their planes onto an orthogonal grid")
        reasons = (*reasons, warning)
        sheared, affine = ShearedStack.of(affine, (len(planes), planes[0].rows, planes[0].columns))
    refuse_too_many_voxels(sheared.grid_shape_zyx if sheared else (len(planes), planes[0].rows, planes[0].columns))
    hu = _decode(planes, on_progress, exact=exact)
    multi_frame = planes[0].frame_index is not None
    return SourceSeries(
        volume=CtVolume(sheared.straightened(hu) if sheared else hu, affine),
        headers=(planes[0].header,) if multi_frame else tuple(plane.header for plane in planes),
        sop_instance_uids=tuple(plane.sop_instance_uid for plane in planes),
        study_instance_uid=text(planes[0].header, "StudyInstanceUID"),
        series_instance_uid=text(planes[0].header, "SeriesInstanceUID"),
        reasons=reasons,
        frame_indices=tuple(plane.frame_index or 0 for plane in planes),
        sheared=sheared,
    )


def _ct_images(instances: Sequence[_Instance]) -> tuple[list[_Instance], tuple[Reason, ...]]:
    """The instances of a CT storage class, and a warning about others (secondary captures, reports) beside them.

    Raises:
        NotAnalysable: there are only others.
    """
    if not instances:
        raise InputError("no DICOM images were handed in", code="input.empty")
    images = [instance for instance in instances if text(instance[1], "SOPClassUID") in CT_CLASSES]
    if not images:
        kinds = sorted({kind_of(modality_of(header), text(header, "SOPClassUID")) for _, header in instances})
        text_ = f"the series holds {', '.join(kinds)}, only CT images can be analysed"
        raise NotAnalysable([Reason(reason_codes.MODALITY_NOT_CT, text_)])
    if not (others := len(instances) - len(images)):
        return images, ()
    warning = f"{others} objects of the series that are not CT images were ignored"
    return images, (Reason(reason_codes.OTHER_OBJECTS_IGNORED, warning),)


def _refuse_other_than_one_ct_series(headers: Sequence[Dataset]) -> None:
    if foreign := sorted({modality_of(header) or "unknown" for header in headers} - {"CT"}):
        text_ = f"modality is {', '.join(foreign)}, only CT can be analysed"
        raise NotAnalysable([Reason(reason_codes.MODALITY_NOT_CT, text_)])
    if (patients := len({text(header, "PatientID") for header in headers})) > 1:
        raise NotAnalysable([Reason(reason_codes.MULTIPLE_PATIENTS, f"images of {patients} patients")])
    _refuse_different_uids(headers, "SeriesInstanceUID", "StudyInstanceUID")
    if any(map(is_multi_frame, headers)) and len({text(header, "SOPInstanceUID") for header in headers}) > 1:
        raise NotAnalysable([Reason(reason_codes.MULTIPLE_SERIES, "several multi-frame instances in one series")])


def _refuse_different_uids(headers: Sequence[Dataset], *keywords: str) -> None:
    for keyword in keywords:
        if (different := len({text(header, keyword) for header in headers})) > 1:
            text_ = f"{different} different values of {keyword}: not one series"
            raise NotAnalysable([Reason(reason_codes.MULTIPLE_SERIES, text_)])


def _refuse_other_than_hu(planes: Sequence[ImagePlane]) -> None:
    """Perfusion maps, iodine maps and the like are stored as CT images too."""
    causes = Counter(plane.rescale.not_hu for plane in planes if plane.rescale.not_hu is not None)
    if causes:
        (cause, _), *_ = causes.most_common(1)
        text_ = f"{causes.total()} of {len(planes)} images do not hold Hounsfield units: {cause}"
        raise NotAnalysable([Reason(reason_codes.PIXELS_NOT_HU, text_)])


def _distinct_planes(instances: Sequence[tuple[Path, Dataset]]) -> list[ImagePlane]:
    """All planes, each SOP instance once.

    Raises:
        NotAnalysable: one UID names two different images: nothing can be referred to reliably.
    """
    known: dict[str, list[ImagePlane]] = {}
    for path, header in instances:
        planes = planes_of(path, header)
        same = known.setdefault(planes[0].sop_instance_uid, planes)
        if same is not planes and not _are_copies(same, planes):
            text_ = f"two different images share the SOP Instance UID {planes[0].sop_instance_uid}"
            raise NotAnalysable([Reason(reason_codes.DUPLICATE_SOP_INSTANCE_UID, text_)])
    return [plane for planes in known.values() for plane in planes]


def _are_copies(planes: Sequence[ImagePlane], others: Sequence[ImagePlane]) -> bool:
    def place(plane: ImagePlane) -> list[float]:
        return [] if plane.position_lps_mm is None else [round(float(value), 3) for value in plane.position_lps_mm]

    return [(p.rows, p.columns, place(p)) for p in planes] == [(p.rows, p.columns, place(p)) for p in others]


def _decode(planes: Sequence[ImagePlane], on_progress: OnProgress | None, *, exact: bool) -> Hu:
    first = read_hu(planes[0], exact=exact)  # memory for all is taken once one has the size that all announce
    hu = np.empty((len(planes), *first.shape), dtype=np.int16)
    hu[0] = first

    def decode_into(index: int) -> None:
        read_hu(planes[index], exact=exact, out=hu[index])

    with ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode") as pool:
        for done, _ in enumerate(pool.map(decode_into, range(1, len(planes))), start=2):
            if on_progress is not None:
                on_progress(done / len(planes))
    return hu
