"""A CT volume from NRRD (teem.sourceforge.net/nrrd/format.html), read as a stream within a bound.

The header is read here and not by a library: libraries follow `data file` to any path on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from imaging.errors import InputError, NotAnalysable, Reason
from imaging.volume import Affine, CtVolume
from services.dicom import reason_codes
from services.dicom.file_grid import FileGrid, refuse_too_few_slices
from services.dicom.label_nifti import nifti_of
from services.dicom.source_image import OnProgress, digest_of, refuse_too_many_voxels
from services.dicom.voxel_stream import Voxels, opened, unpacked

NRRD_MAGIC = b"NRRD"
_MAX_LINES, _MAX_LINE_BYTES = 1000, 1 << 16
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names}
# The signs that turn the axes of a space into LPS.
_SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
_ENCODINGS = ("raw", "gzip", "gz")


@dataclass(frozen=True, slots=True, eq=False)
class SourceNrrd:
    """An NRRD that has been read; a `SourceImage`. The volume's axes are the file's, slowest first: (k, j, i).

    Attributes:
        affine_lps: of the file's own voxels (k, j, i).
        grid: the volume's, and how the file's slices lie on it.
    """

    volume: CtVolume
    affine_lps: Affine
    grid: FileGrid
    reasons: tuple[Reason, ...] = ()
    kind: Literal["nrrd"] = "nrrd"

    def sop_instance_uid_at(self, point_lps_mm: tuple[float, float, float]) -> str | None:
        return None

    def nifti_image(self, labels: NDArray[Any]) -> Nifti1Image:
        image = nifti_of(self.grid.on_file(labels), self.affine_lps)
        if self.grid.sheared is not None:
            image.set_qform(None, 0)  # a qform cannot be sheared
        return image

    def input_identity(self) -> dict[str, Any]:
        shape_kji = self.volume.shape_zyx if self.grid.sheared is None else self.grid.sheared.shape_zyx
        return {"kind": self.kind, "shape_ijk": list(shape_kji[::-1])}

    def content_digest(self) -> str:
        return digest_of(self.volume)


def is_nrrd(path: Path) -> bool:
    """By its first bytes."""
    with opened(path) as file:
        return file.read(4) == NRRD_MAGIC


def check_nrrd(path: Path) -> None:
    """Header, size and (for gzip) integrity of the whole stream, a megabyte at a time: nothing is held in memory.

    Raises:
        InputError / InputTooLarge: as `read_nrrd`.
        NotAnalysable: fewer than 3 slices along some axis.
    """
    with opened(path) as file:
        fields = _fields(file, path)
        voxels = _voxels(fields, path)
        refuse_too_few_slices(voxels.shape_kji)
        with _decoded(file, fields) as stream:
            voxels.check(stream)


def read_nrrd(
    path: Path, *, on_progress: OnProgress | None = None, exact: bool = False, unplaced_lie_on: CtVolume | None = None
) -> SourceNrrd:
    """Read a CT volume in HU from an NRRD with its data attached, raw or gzip.

    NaN and values below -1024 become -1024. Slices sheared by a tilted gantry are moved within their planes onto an
    orthogonal grid.

    Args:
        on_progress: called with the fraction of slices read.
        exact: values below -1024 as they are.
        unplaced_lie_on: the volume on whose grid a file of as many voxels lies whose header places it nowhere: a label
            map saved without its header.

    Raises:
        InputError: no NRRD, data in other files, another encoding, truncated or damaged, not three-dimensional, not
            one number per voxel; `exact`, and HU are not whole, not numbers or do not fit 16 bits.
        InputTooLarge: more than 1e9 voxels, or data without end behind them.
        NotAnalysable: fewer than 3 slices along some axis; no place in space, or one that is sheared.
    """
    with opened(path) as file:
        fields = _fields(file, path)
        voxels = _voxels(fields, path)
        affine_lps, reasons = _affine_lps(fields, voxels.shape_kji, unplaced_lie_on)
        grid = FileGrid.of(affine_lps, voxels.shape_kji, exact=exact)
        refuse_too_few_slices(voxels.shape_kji)
        with _decoded(file, fields) as stream:
            hu = voxels.read_hu(stream, exact=exact, on_progress=on_progress)
    return SourceNrrd(grid.volume(hu), affine_lps, grid, (*reasons, *grid.reasons))


def _fields(file: BinaryIO, path: Path) -> dict[str, str]:
    """The header's fields by lower-case name; the file then stands at the first byte of the data."""
    first = file.readline(16)
    if re.fullmatch(rb"NRRD000[1-6]\r?\n", first) is None:
        raise _malformed(path, "it does not begin with NRRD0001 to NRRD0006")
    fields: dict[str, str] = {}
    for number in range(2, _MAX_LINES):
        line = file.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _malformed(path, "its header does not end")
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        if not text:
            return fields
        if text.startswith("#") or re.match(r"[^:]*:=", text):
            continue  # a comment, or a key and value of somebody's own
        name, separator, value = text.partition(": ")
        name = name.strip().lower()
        if not separator or name in fields:
            raise _malformed(path, f"line {number} of its header")
        fields[name] = value.strip()
    raise _malformed(path, f"more than {_MAX_LINES} lines of header")


def _malformed(path: Path, what: str) -> InputError:
    return InputError(f"{path.name} is no NRRD that can be read: {what}", code="input.not_nrrd")


def _voxels(fields: dict[str, str], path: Path) -> Voxels:
    if "data file" in fields or "datafile" in fields:
        raise InputError(
            f"{path.name} has its voxels in other files",
            code="input.detached_data",
            remedy="save header and voxels as one .nrrd",
        )
    skips = [fields.get(name, "0") for name in ("line skip", "lineskip", "byte skip", "byteskip")]
    if (encoding := fields.get("encoding", "").lower()) not in _ENCODINGS or skips != ["0"] * 4:
        raise InputError(
            f"{path.name} has the encoding {encoding or 'none'}, skips {skips}",
            code="input.nrrd_encoding",
            remedy="save it raw or with gzip, without skips",
        )
    shape_kji = _shape_kji(fields, path)
    dtype = _DTYPES.get(" ".join(fields.get("type", "").lower().split()))
    if dtype is None or "old min" in fields or "old max" in fields:
        text = f"{path.name} holds {fields.get('type', 'nothing')} per voxel, one number in HU is needed"
        raise InputError(text, code="input.not_hu")
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and np.dtype(dtype).itemsize > 1:
        raise _malformed(path, f"endian is {endian or 'missing'}")
    voxels = Voxels(path, shape_kji, np.dtype(dtype).newbyteorder(">" if endian == "big" else "<"))
    voxels.refuse_impossible_size()
    return voxels


def _shape_kji(fields: dict[str, str], path: Path) -> tuple[int, int, int]:
    sizes = fields.get("sizes", "").split()
    kinds = fields.get("kinds", "").lower().split()
    if fields.get("dimension") != "3" or len(sizes) != 3 or any(kind not in ("domain", "space") for kind in kinds):
        said = f"sizes {fields.get('sizes', 'missing')}, kinds {fields.get('kinds', 'unsaid')}"
        text = f"{path.name} is not three-dimensional: {said}"
        raise InputError(text, code="input.not_3d", remedy="save one volume, one number per voxel")
    if not all(re.fullmatch(r"[1-9]\d{0,8}", size) for size in sizes):
        raise _malformed(path, f"sizes are {fields['sizes']}")
    i, j, k = (int(size) for size in sizes)
    refuse_too_many_voxels((i, j, k))
    return k, j, i


def _affine_lps(
    fields: dict[str, str], shape_kji: tuple[int, int, int], unplaced_lie_on: CtVolume | None
) -> tuple[Affine, tuple[Reason, ...]]:
    """The affine of (k, j, i), and a warning where the header does not say which side is which.

    Raises:
        NotAnalysable: it does not say how large a voxel is, or in words unknown here.
    """
    if unplaced_lie_on is not None and unplaced_lie_on.shape_zyx == shape_kji and _is_unplaced(fields):
        return unplaced_lie_on.affine_lps, ()
    space = fields.get("space", "").lower()
    signs = _SPACES.get(space or "lps")
    units = re.findall(r'"([^"]*)"', fields.get("space units", "") + fields.get("units", ""))
    if "space directions" in fields:
        steps = _vectors(fields["space directions"])
    else:
        spacings = _numbers(fields.get("spacings", "").split())
        steps = None if spacings is None or len(spacings) != 3 else np.diag(spacings)
    origin = _vectors(fields.get("space origin", "(0,0,0)"))
    if signs is None or steps is None or len(steps) != 3 or origin is None or set(units) - {"mm", ""}:
        said = {name: fields[name] for name in fields if name.startswith(("space", "spacings", "units"))}
        text = f"the header places no voxel in a space that is known: {said or 'nothing is said of it'}"
        raise NotAnalysable([Reason(reason_codes.NO_GEOMETRY, text)])
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = (steps * signs).T[:, ::-1]
    affine_lps[:3, 3] = origin[0] * signs
    if space and "space directions" in fields:
        return affine_lps, ()
    text = "the header names no space: left and right are assumed, not known"
    return affine_lps, (Reason(reason_codes.ORIENTATION_UNKNOWN, text),)


def _is_unplaced(fields: dict[str, str]) -> bool:
    """Whether the header says nothing of a place, or what a library writes that was told nothing."""
    origin = _vectors(fields.get("space origin", "(0,0,0)"))
    steps = _vectors(fields.get("space directions", "(1,0,0) (0,1,0) (0,0,1)"))
    if origin is None or origin.any() or steps is None or len(steps) != 3:
        return False
    lengths = np.diag(steps)
    return bool(np.all(lengths > 0) and np.array_equal(steps, np.diag(lengths)))


def _vectors(text: str) -> NDArray[np.float64] | None:
    """``(1,0,0) (0,1,0) (0,0,2.5)`` as rows, or None where that is not what it is."""
    number = r"\s*([^\s(),]+)\s*"
    vector = rf"\({number},{number},{number}\)"
    if re.fullmatch(rf"{vector}(\s+{vector}){{0,2}}", text) is None:
        return None
    values = _numbers([value for row in re.findall(vector, text) for value in row])
    return None if values is None else values.reshape(-1, 3)


def _numbers(texts: Sequence[str]) -> NDArray[np.float64] | None:
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return values if np.all(np.isfinite(values)) else None


@contextmanager
def _decoded(file: BinaryIO, fields: dict[str, str]) -> Iterator[BinaryIO]:
    if fields["encoding"].lower() == "raw":
        yield file
        return
    with unpacked(file) as stream:
        yield stream
