"""A CT volume from NIfTI, read as a stream within a bound, and the way back onto the file's own grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header, Nifti1Image
from nibabel.nifti2 import Nifti2Header, Nifti2Image
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from imaging.errors import InputError, InputTooLarge, NotAnalysable, Reason
from imaging.volume import CtVolume
from services.dicom import reason_codes
from services.dicom.file_grid import FileGrid, refuse_too_few_slices
from services.dicom.label_nifti import DESCRIPTION, affine_lps_of, smallest_unsigned
from services.dicom.source_image import OnProgress, digest_of, refuse_too_many_voxels
from services.dicom.voxel_stream import GZIP_MAGIC, MAX_TRAILING_BYTES, Voxels, opened, read_exactly, unpacked

_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True, slots=True, eq=False)
class SourceNifti:
    """A NIfTI that has been read; a `SourceImage`. The volume's axes are the file's, slowest first: (k, j, i).

    Attributes:
        header: the file's own header; label maps are written with its affine, codes and axis order.
        grid: the volume's, and how the file's slices lie on it.
    """

    volume: CtVolume
    header: Nifti1Header
    grid: FileGrid
    reasons: tuple[Reason, ...] = ()
    kind: Literal["nifti"] = "nifti"

    def sop_instance_uid_at(self, point_lps_mm: tuple[float, float, float]) -> str | None:
        return None

    def nifti_image(self, labels: NDArray[Any]) -> Nifti1Image:
        data = smallest_unsigned(self.grid.on_file(labels)).transpose(2, 1, 0)
        header = self.header.as_byteswapped("<")
        header.extensions.clear()  # may carry the patient's name
        header.set_data_shape(data.shape)
        header.set_data_dtype(data.dtype)
        header.set_slope_inter(1, 0)
        for field, value in {
            "descrip": DESCRIPTION,
            "aux_file": b"",
            "cal_min": 0,
            "cal_max": 0,
            "vox_offset": 0,
        }.items():
            header[field] = value
        image_class: Any = Nifti2Image if isinstance(header, Nifti2Header) else Nifti1Image
        image: Nifti1Image = image_class(data, header.get_best_affine(), header)
        return image

    def input_identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape_ijk": [int(n) for n in self.header.get_data_shape()[:3]]}

    def content_digest(self) -> str:
        return digest_of(self.volume)


def check_nifti(path: Path) -> None:
    """Header, size and (for gzip) integrity of the whole stream, a megabyte at a time: nothing is held in memory.

    Raises:
        InputError / InputTooLarge: as `read_nifti`.
        NotAnalysable: fewer than 3 slices along some axis.
    """
    with _unpacked(path) as stream:
        voxels = _voxels(_read_header(stream, path), path)
        refuse_too_few_slices(voxels.shape_kji)
        voxels.check(stream)


def read_nifti(path: Path, *, on_progress: OnProgress | None = None, exact: bool = False) -> SourceNifti:
    """Read a CT volume in HU from ``.nii`` or ``.nii.gz`` (told apart by content, not by name).

    scl_slope and scl_inter are applied, NaN and values below -1024 become -1024; sform comes before qform. Slices
    sheared by a tilted gantry are moved within their planes onto an orthogonal grid.

    Args:
        on_progress: called with the fraction of slices read.
        exact: values below -1024 as they are.

    Raises:
        InputError: no NIfTI-1 or -2 single file, truncated or damaged, not three-dimensional, not one number per voxel;
            `exact`, and HU are not whole, not numbers or do not fit 16 bits.
        InputTooLarge: more than 1e9 voxels, or data without end behind them.
        NotAnalysable: fewer than 3 slices along some axis; axes sheared otherwise than by a tilted gantry, or at all
            where `exact`.
    """
    with _unpacked(path) as stream:
        header = _read_header(stream, path)
        voxels = _voxels(header, path)
        affine_lps, reasons = _affine_lps(header)
        grid = FileGrid.of(affine_lps, voxels.shape_kji, exact=exact)
        refuse_too_few_slices(voxels.shape_kji)
        hu = voxels.read_hu(stream, exact=exact, on_progress=on_progress)
    return SourceNifti(grid.volume(hu), header, grid, (*reasons, *grid.reasons))


def _voxels(header: Nifti1Header, path: Path) -> Voxels:
    i, j, k = (int(n) for n in header.get_data_shape()[:3])
    slope, intercept = header.get_slope_inter()
    return Voxels(path, (k, j, i), header.get_data_dtype(), 1.0 if slope is None else slope, intercept or 0.0)


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where they are gzip."""
    with opened(path) as file:
        is_gzip = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not is_gzip:
            yield file
            return
        with unpacked(file) as stream:
            yield stream


def _read_header(stream: BinaryIO, path: Path) -> Nifti1Header:
    """A header that has been checked; the stream then stands at the first voxel."""
    start = stream.read(4)
    size = next((n for n in (348, 540) if n in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))), None)
    if size is None:
        raise InputError(f"{path.name} is not a NIfTI file", code="input.not_nifti")
    header_class: Any = Nifti1Header if size == 348 else Nifti2Header
    try:
        header: Nifti1Header = header_class(start + read_exactly(stream, size - 4, path), check=False)
        if bytes(header["magic"])[:3] != b"n+" + (b"1" if size == 348 else b"2"):
            raise InputError(
                f"{path.name} is no single-file NIfTI (magic {bytes(header['magic'])!r})",
                code="input.not_nifti",
                remedy="an Analyze or .hdr/.img pair must be converted to .nii",
            )
        _check_header(header, path)
        offset = int(max(header["vox_offset"], size + 4))
        if offset > size + MAX_TRAILING_BYTES * 16:
            raise InputTooLarge(f"{path.name}: the first voxel would lie at byte {offset}")
        read_exactly(stream, offset - size, path)
    except (HeaderDataError, ValueError, OverflowError, KeyError, TypeError) as error:
        raise InputError(f"{path.name} has a malformed NIfTI header: {error}", code="input.not_nifti") from error
    return header


def _check_header(header: Nifti1Header, path: Path) -> None:
    dimensions = [int(n) for n in header["dim"]]
    count = dimensions[0]
    extents = dimensions[1 : count + 1] if 1 <= count <= 7 else []
    while len(extents) > 3 and extents[-1] == 1:
        extents.pop()
    if len(extents) == 2:
        raise NotAnalysable([Reason(reason_codes.TOO_FEW_SLICES, f"{path.name} holds a single slice")])
    if len(extents) != 3 or min(extents) < 1:
        raise InputError(f"{path.name} is not three-dimensional: dim = {dimensions}", code="input.not_3d")
    refuse_too_many_voxels(extents)
    header.set_data_shape(extents)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{path.name} holds {dtype} per voxel, one real number is needed", code="input.not_hu")
    _voxels(header, path).refuse_impossible_size()


def _affine_lps(header: Nifti1Header) -> tuple[NDArray[np.float64], tuple[Reason, ...]]:
    try:
        affine_ras = np.asarray(header.get_best_affine(), dtype=np.float64)
        unit = header.get_xyzt_units()[0]
    except (HeaderDataError, KeyError, ValueError) as error:
        raise InputError(f"the NIfTI's position cannot be read: {error}", code="geometry.affine") from error
    affine_ras[:3] *= _MM_PER_UNIT.get(unit, 1.0)
    if header["sform_code"] and header["qform_code"] and _turned(affine_ras, _qform(header)):
        text = "sform and qform turn the image differently: sform is taken, left and right may be wrong"
        return affine_lps_of(affine_ras), (Reason(reason_codes.ORIENTATION_UNKNOWN, text),)
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        text = "neither sform nor qform is set: left and right are assumed, not known"
        return affine_lps_of(affine_ras), (Reason(reason_codes.ORIENTATION_UNKNOWN, text),)
    return affine_lps_of(affine_ras), ()


def _qform(header: Nifti1Header) -> NDArray[np.float64]:
    """The qform; one that says nothing where it is no rotation."""
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)


def _turned(affine: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether an axis of one affine lies more than 45 degrees from that of the other, or the other has none."""
    steps, others = affine[:3, :3], other[:3, :3]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (steps * others).sum(axis=0) / np.linalg.norm(steps, axis=0) / np.linalg.norm(others, axis=0)
    return not bool(np.all(cosines > np.sqrt(0.5)))
