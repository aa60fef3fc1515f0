"""A CT volume from NIfTI, read as a stream within a bound, and the way back onto the file's own grid."""

from __future__ import annotations

import gzip
import math
import zlib
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
from imaging.sheared_stack import ShearedStack, shear_degrees
from imaging.volume import CtVolume
from services.dicom import reason_codes
from services.dicom.label_nifti import DESCRIPTION, affine_lps_of, smallest_unsigned
from services.dicom.pixel_reader import AIR_HU, INT16_MAX, exact_hu
from services.dicom.source_image import OnProgress, digest_of, refuse_too_many_voxels
from services.dicom.stack_geometry import MAX_TILT_DEGREES, MIN_SLICES

# What may follow the voxels before the file counts as unpacking without end.
MAX_TRAILING_BYTES = 1 << 20
# deflate cannot compress better (RFC 1951: 258 bytes per 2 bits): a smaller file cannot hold what its header promises.
MAX_DEFLATE_RATIO = 1032
ORTHOGONAL_WITHIN = 2e-3  # cosines between axes
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_GZIP_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True, eq=False)
class SourceNifti:
    """A NIfTI that has been read; a `SourceImage`. The volume's axes are the file's, slowest first: (k, j, i).

    Attributes:
        header: the file's own header; label maps are written with its affine, codes and axis order.
        sheared: how the file's slices lie on the volume's grid; None where they are the grid's slices.
    """

    volume: CtVolume
    header: Nifti1Header
    reasons: tuple[Reason, ...] = ()
    sheared: ShearedStack | None = None
    kind: Literal["nifti"] = "nifti"

    def sop_instance_uid_at(self, point_lps_mm: tuple[float, float, float]) -> str | None:
        return None

    def nifti_image(self, labels: NDArray[Any]) -> Nifti1Image:
        own = labels if self.sheared is None else self.sheared.on_slices(labels)
        data = smallest_unsigned(own).transpose(2, 1, 0)
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
        header = _read_header(stream, path)
        _shape_with_enough_slices(header)
        remaining = _data_bytes(header)
        while remaining:
            remaining -= len(_read_exactly(stream, min(remaining, 1 << 20), path))
        _read_to_end(stream, path)


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
        affine_lps, reasons = _affine_lps(header)
        shape = _shape_with_enough_slices(header)
        sheared = None
        if (shear := _gantry_tilt_degrees(affine_lps)) is not None:
            text = f"the slices are sheared by {shear:.1f} degrees"
            if exact:
                raise NotAnalysable([Reason(reason_codes.SHEARED, f"{text}: HU would have to be interpolated")])
            warning = Reason(reason_codes.RESAMPLED, f"{text}: moved within their planes onto an orthogonal grid")
            reasons = (*reasons, warning)
            sheared, affine_lps = ShearedStack.of(affine_lps, shape[::-1])
            refuse_too_many_voxels(sheared.grid_shape_zyx)
        hu = np.empty(shape[::-1], dtype=np.int16)
        slope, intercept = header.get_slope_inter()
        dtype = header.get_data_dtype()
        for k, plane in enumerate(hu):
            stored = np.frombuffer(_read_exactly(stream, plane.size * dtype.itemsize, path), dtype)
            stored = stored.reshape(plane.shape)
            if exact:
                plane[:] = exact_hu(stored, 1.0 if slope is None else slope, intercept or 0.0)
            else:
                plane[:] = _to_hu(stored, slope, intercept)
            if on_progress is not None:
                on_progress((k + 1) / len(hu))
        _read_to_end(stream, path)
    volume = CtVolume(sheared.straightened(hu) if sheared else hu, affine_lps)
    return SourceNifti(volume, header, reasons, sheared)


def _shape_with_enough_slices(header: Nifti1Header) -> tuple[int, int, int]:
    """(i, j, k) of the volume."""
    i, j, k = header.get_data_shape()[:3]
    if min(i, j, k) < MIN_SLICES:
        text = f"the volume has {i} x {j} x {k} voxels, at least {MIN_SLICES} slices are needed"
        raise NotAnalysable([Reason(reason_codes.TOO_FEW_SLICES, text)])
    return i, j, k


def _to_hu(stored: NDArray[Any], slope: float | None, intercept: float | None) -> NDArray[np.int16]:
    if slope is None and np.issubdtype(stored.dtype, np.integer):
        return np.asarray(np.clip(stored, AIR_HU, INT16_MAX), dtype=np.int16)
    values = stored.astype(np.float64) * (1.0 if slope is None else slope) + (intercept or 0.0)
    values = np.nan_to_num(values, nan=AIR_HU, posinf=INT16_MAX, neginf=AIR_HU)
    return np.asarray(np.clip(np.rint(values), AIR_HU, INT16_MAX), dtype=np.int16)


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where they are gzip."""
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not is_gzip:
                yield file
                return
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream  # type: ignore[misc]  # GzipFile is a BinaryIO in all that is used here
    except _GZIP_DAMAGE as error:
        raise InputError(
            f"{path.name} is a truncated or damaged gzip file: {error}", code="input.damaged_gzip"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}", code="input.unreadable") from error


def _read_exactly(stream: BinaryIO, count: int, path: Path) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise InputError(f"{path.name} ends before its last voxel", code="input.truncated", remedy="send it again")
    return data


def _read_to_end(stream: BinaryIO, path: Path) -> None:
    """Past the voxels to the end of the stream, so that gzip compares its checksum."""
    trailing = 0
    while chunk := stream.read(1 << 16):
        trailing += len(chunk)
        if trailing > MAX_TRAILING_BYTES:
            raise InputTooLarge(f"{path.name} goes on after its last voxel")


def _read_header(stream: BinaryIO, path: Path) -> Nifti1Header:
    """A header that has been checked; the stream then stands at the first voxel."""
    start = stream.read(4)
    size = next((n for n in (348, 540) if n in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))), None)
    if size is None:
        raise InputError(f"{path.name} is not a NIfTI file", code="input.not_nifti")
    header_class: Any = Nifti1Header if size == 348 else Nifti2Header
    try:
        header: Nifti1Header = header_class(start + _read_exactly(stream, size - 4, path), check=False)
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
        _read_exactly(stream, offset - size, path)
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
    if path.stat().st_size * MAX_DEFLATE_RATIO < _data_bytes(header):
        raise InputError(f"{path.name} is too short for its {math.prod(extents):,} voxels", code="input.truncated")


def _data_bytes(header: Nifti1Header) -> int:
    return math.prod(int(n) for n in header.get_data_shape()) * int(header.get_data_dtype().itemsize)


def _affine_lps(header: Nifti1Header) -> tuple[NDArray[np.float64], tuple[Reason, ...]]:
    try:
        affine_ras = np.asarray(header.get_best_affine(), dtype=np.float64)
        unit = header.get_xyzt_units()[0]
    except (HeaderDataError, KeyError, ValueError) as error:
        raise InputError(f"the NIfTI's position cannot be read: {error}", code="geometry.affine") from error
    affine_ras[:3] *= _MM_PER_UNIT.get(unit, 1.0)
    steps = affine_ras[:3, :3]
    lengths = np.linalg.norm(steps, axis=0)
    if not np.all(np.isfinite(affine_ras)) or lengths.min() < 1e-3:
        text = f"the affine {affine_ras.tolist()} gives voxels no size"
        raise NotAnalysable([Reason(reason_codes.NO_GEOMETRY, text)])
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        text = "neither sform nor qform is set: left and right are assumed, not known"
        return affine_lps_of(affine_ras), (Reason(reason_codes.ORIENTATION_UNKNOWN, text),)
    return affine_lps_of(affine_ras), ()


def _gantry_tilt_degrees(affine_lps: NDArray[np.float64]) -> float | None:
    """By how much the slices (j, i) are sheared along k; None where all axes are orthogonal.

    Raises:
        NotAnalysable: the axes within a slice are not orthogonal, or no gantry tilts so far.
    """
    cosines = affine_lps[:3, :3] / np.linalg.norm(affine_lps[:3, :3], axis=0)
    skew = np.abs(cosines.T @ cosines - np.eye(3))
    if skew.max() <= ORTHOGONAL_WITHIN:
        return None
    shear = shear_degrees(affine_lps)
    if skew[1, 2] > ORTHOGONAL_WITHIN or shear > MAX_TILT_DEGREES:
        angle = np.degrees(np.arcsin(min(1.0, float(skew.max()))))
        text = f"the axes are sheared by {angle:.1f} degrees, otherwise than by a tilted gantry"
        raise NotAnalysable([Reason(reason_codes.SHEARED, text)])
    return shear
