"""Label maps as NIfTI, byte for byte the same whenever they are written."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from imaging.volume import Affine

DESCRIPTION = b"Embolens, research use only"
_NO_EXTENSION = bytes(4)
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\x04\xff"  # deflate, no name, no time, fastest, unknown system
_PIECE_BYTES = 1 << 15
_RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_ras_of(affine_lps: Affine) -> Affine:
    """(z, y, x) index -> LPS becomes NIfTI's (x, y, z) index -> RAS."""
    return np.asarray(_RAS_OF_LPS @ affine_lps[:, [2, 1, 0, 3]])


def affine_lps_of(affine_ras: Affine) -> Affine:
    """NIfTI's (x, y, z) index -> RAS becomes (z, y, x) index -> LPS."""
    return np.asarray((_RAS_OF_LPS @ affine_ras)[:, [2, 1, 0, 3]])


def smallest_unsigned(labels: NDArray[Any]) -> NDArray[Any]:
    """The labels as uint8 where they fit, else uint16."""
    return labels.astype(np.uint8 if labels.size == 0 or labels.max() <= 255 else np.uint16, copy=False)


def nifti_of(labels: NDArray[Any], affine_lps: Affine) -> Nifti1Image:
    """Labels (z, y, x) as NIfTI with axes (x, y, z); position in scanner coordinates in both sform and qform."""
    image = Nifti1Image(smallest_unsigned(labels).transpose(2, 1, 0), affine_ras_of(affine_lps))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    image.header["descrip"] = DESCRIPTION
    return image


def save_nifti(image: Nifti1Image, path: Path) -> None:
    """Write ``.nii`` or, without the time and name gzip would add, ``.nii.gz``."""
    if path.suffix == ".nii":
        with path.open("wb") as file:
            image.to_stream(file)
        return
    header = image.header.copy()
    header.set_data_offset(header.sizeof_hdr + len(_NO_EXTENSION))
    header.set_slope_inter(1, 0)
    voxels = np.asarray(image.dataobj).astype(image.get_data_dtype(), copy=False)
    with path.open("wb") as file:
        _write_gzip(file, header.binaryblock + _NO_EXTENSION, np.ascontiguousarray(voxels.T))  # x runs fastest


def _write_gzip(file: BinaryIO, head: bytes, voxels: NDArray[Any]) -> None:
    """One member (RFC 1952), without a time; of the many pieces that are all zeros only the first is compressed."""
    content = voxels.reshape(-1).view(np.uint8)
    whole = len(content) - len(content) % _PIECE_BYTES
    of_zeros = _deflated(bytes(_PIECE_BYTES))
    file.write(_GZIP_HEAD + _deflated(head))
    pieces = content[:whole].reshape(-1, _PIECE_BYTES)
    for piece, occupied in zip(pieces, np.any(pieces, axis=1).tolist(), strict=True):
        file.write(_deflated(piece.data) if occupied else of_zeros)
    file.write(_deflated(content[whole:].data))
    file.write(zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS).flush())  # the last block, empty
    file.write(struct.pack("<II", zlib.crc32(content.data, zlib.crc32(head)), (len(head) + len(content)) % 2**32))


def _deflated(piece: bytes | memoryview) -> bytes:
    """Raw deflate (RFC 1951) that ends on a whole byte and refers to nothing before it, so that pieces can follow."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)
