"""Pixels of the most ordinary image there is, straight from its file or its decoder: one grey frame of 16 bits.

pydicom, which knows every other image too, takes a millisecond or two a slice before it comes to the pixels.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from services.dicom import rle_decoder
from services.dicom.headers import MALFORMED, integer, text
from services.dicom.image_plane import ImagePlane
from services.dicom.plain_header import PixelDataPlace, PlainHeader, plain_header

_UNCOMPRESSED_LITTLE_ENDIAN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_ITEM, _SEQUENCE_DELIMITER = 0xE000FFFE, 0xE0DDFFFE  # tags as they lie in the file, PS3.5 7.5
_JPEG_ENDS = (b"\xff\xd9", b"\xff\xd9\0")  # EOI, ITU-T T.87 C.1, to an even length
_OVERLAY_BIT_POSITIONS = [BaseTag(tag) for tag in range(0x60000102, 0x60200102, 0x20000)]
_NAMED_ABOUT_PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
)  # fmt: skip
_ABOUT_PIXELS = frozenset({*map(Tag, _NAMED_ABOUT_PIXELS), *_OVERLAY_BIT_POSITIONS})


def plain_values(plane: ImagePlane, out: NDArray[np.int16] | None = None) -> NDArray[Any] | None:
    """Stored values (row, column) of the most ordinary image there is, straight from the file: 16 bits, uncompressed.

    Args:
        out: where to put them, int16 or (as a view) uint16.

    Returns:
        None where the image is another, or the file is no more what it was when its header was read.
    """
    header = plane.header
    if not isinstance(header, PlainHeader) or header.pixel_data is None or not _is_plain_image(header, plane):
        return None
    place = header.pixel_data
    if out is None:
        out = np.empty((plane.rows, plane.columns), dtype=np.int16)
    file = os.open(plane.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        about = os.fstat(file)
        if (about.st_size, about.st_mtime_ns) != (place.file_bytes, place.modified_at_ns):
            return None
        if os.preadv(file, [out.data], place.offset) != out.nbytes:
            return None
    finally:
        os.close(file)
    return _freed_of_unused_bits(out, header)


def _is_plain_image(header: PlainHeader, plane: ImagePlane) -> bool:
    return (
        header.pixel_data is not None
        and header.pixel_data.length == plane.rows * plane.columns * 2
        and plane.frame_index is None
        and text(header.file_meta, "TransferSyntaxUID") in _UNCOMPRESSED_LITTLE_ENDIAN
        and _is_one_grey_frame_of_16_bits(header)
    )


def _is_one_grey_frame_of_16_bits(header: PlainHeader) -> bool:
    bits_stored = integer(header, "BitsStored")
    return (
        integer(header, "BitsAllocated") == 16
        and bits_stored is not None
        and 1 <= bits_stored <= 16
        and integer(header, "HighBit") == bits_stored - 1
        and integer(header, "PixelRepresentation") in (0, 1)
        and integer(header, "SamplesPerPixel") == 1
        and text(header, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
        and "NumberOfFrames" not in header
        and not any(tag in header for tag in _OVERLAY_BIT_POSITIONS)
    )


def _freed_of_unused_bits(values: NDArray[Any], header: PlainHeader) -> NDArray[Any]:
    """16 bits each, as an image of one grey frame means them; changed in place."""
    bits_stored = integer(header, "BitsStored") or 16
    if integer(header, "PixelRepresentation") == 0:
        stored = values.view(np.uint16)
        if bits_stored < 16:
            np.bitwise_and(stored, np.uint16((1 << bits_stored) - 1), out=stored)
        return stored
    stored = values.view(np.int16)
    if bits_stored < 16:
        np.left_shift(stored, 16 - bits_stored, out=stored)
        np.right_shift(stored, 16 - bits_stored, out=stored)
    return stored


def compressed_values(path: Path) -> NDArray[Any] | None:
    """Of an ordinary image in JPEG-LS, JPEG 2000 or RLE, one grey frame of 16 bits in one fragment: by its decoder.

    Returns:
        None where the image is another, or where the decoder is not content: pydicom knows what can be done.
    """
    try:
        header = plain_header(path, _ABOUT_PIXELS)
        if header is None or header.pixel_data is None or not _is_one_grey_frame_of_16_bits(header):
            return None
        decode = _STRAIGHT_DECODERS.get(text(header.file_meta, "TransferSyntaxUID"))
        fragment = None if decode is None else _only_fragment(path, header.pixel_data)
        values = None if decode is None or fragment is None else decode(fragment, header)
    except (*MALFORMED, RuntimeError):
        return None
    return None if values is None else _freed_of_unused_bits(values, header)


def _only_fragment(path: Path, place: PixelDataPlace) -> bytes | None:
    """The one fragment after the offset table, be that empty or not (PS3.5 A.4); None where there are more."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        item, table_bytes = struct.unpack("<2I", os.pread(file, 8, place.offset))
        begin = place.offset + 8 + table_bytes + 8
        fragment, length = struct.unpack("<2I", os.pread(file, 8, begin - 8))
        (after,) = struct.unpack("<I", os.pread(file, 4, begin + length))
        is_only = (item, fragment, after) == (_ITEM, _ITEM, _SEQUENCE_DELIMITER) and table_bytes in (0, 4)
        return os.pread(file, length, begin) if is_only else None
    finally:
        os.close(file)


def _by_charls(fragment: bytes, header: PlainHeader) -> NDArray[np.uint16] | None:
    import jpeg_ls  # in the process that decodes: a gateway has no need of it

    if not fragment.endswith(_JPEG_ENDS):
        return None  # CharLS looks for the end of a small image for a quarter of a minute
    content, about = jpeg_ls.decode_pixel_data(fragment)
    shape = (integer(header, "Rows") or 0, integer(header, "Columns") or 0)
    depth = integer(header, "BitsStored")
    if (about["height"], about["width"]) != shape or about["components"] != 1 or about["bits_per_sample"] != depth:
        return None
    return np.frombuffer(content, dtype=np.uint16).reshape(shape) if about["bits_per_sample"] > 8 else None


def _by_openjpeg(fragment: bytes, header: PlainHeader) -> NDArray[np.uint16] | None:
    from openjpeg.utils import decode_pixel_data, get_parameters  # as above

    shape = (integer(header, "Rows") or 0, integer(header, "Columns") or 0)
    depth, is_signed = integer(header, "BitsStored"), integer(header, "PixelRepresentation") == 1
    about = get_parameters(fragment)
    named = ("rows", "columns", "samples_per_pixel", "precision", "is_signed")
    if tuple(about[name] for name in named) != (*shape, 1, depth, is_signed) or (depth or 0) <= 8:
        return None
    return np.frombuffer(decode_pixel_data(fragment, version=2), dtype=np.uint16).reshape(shape)


def _by_libtiff(fragment: bytes, header: PlainHeader) -> NDArray[np.uint16] | None:
    rows, columns = integer(header, "Rows") or 0, integer(header, "Columns") or 0
    values = rle_decoder.values_of(fragment, rows * columns)
    return None if values is None or values.dtype != np.uint16 else values.reshape(rows, columns)


_STRAIGHT_DECODERS: dict[str, Callable[[bytes, PlainHeader], NDArray[np.uint16] | None]] = {
    JPEGLSLossless: _by_charls,
    JPEGLSNearLossless: _by_charls,
    JPEG2000: _by_openjpeg,
    JPEG2000Lossless: _by_openjpeg,
    RLELossless: _by_libtiff,
}
