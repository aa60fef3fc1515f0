"""RLE Lossless (PS3.5 Annex G) for pydicom, decoded in C: its segments are PackBits, which libtiff in Pillow knows.

pydicom's own decoder takes several times as long; it is asked where libtiff is not content.
"""

from __future__ import annotations

import io
import struct
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.pixels.decoders.base import DecodeRunner, RLELosslessDecoder
from pydicom.pixels.decoders.rle import _decode_frame as decode_frame_by_pydicom
from pydicom.uid import RLELossless

NAME = "libtiff"
DECODER_DEPENDENCIES = {RLELossless: ("numpy", "pillow")}
_PACK_BITS = 32773  # TIFF 6.0 section 9
_LONG, _SHORT = 4, 3  # types of TIFF fields


def is_available(uid: str) -> bool:
    """Asked by pydicom."""
    return uid == RLELossless


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes | bytearray:
    """One frame, as pydicom's decoders give it. Raises ValueError and what else they do."""
    values = values_of(src, runner.rows * runner.columns) if runner.samples_per_pixel == 1 else None
    if values is None or values.itemsize * 8 != runner.bits_allocated:
        return decode_frame_by_pydicom(src, runner)
    return values.tobytes()


def values_of(src: bytes, pixels: int) -> NDArray[Any] | None:
    """Unsigned values of a grey frame; None where libtiff cannot decode them. Raises struct.error where it is cut."""
    planes = _planes(src, pixels)
    if planes is None or len(planes) not in (1, 2, 4):
        return None
    values: NDArray[Any] = planes[0].astype(f"<u{len(planes)}")
    for plane in planes[1:]:  # the most significant byte of all pixels comes first, PS3.5 G.2
        values <<= 8
        values |= plane
    return values


def _planes(src: bytes, pixels: int) -> NDArray[np.uint8] | None:
    """One row of bytes per segment; None where they cannot be decoded."""
    count, *starts = struct.unpack_from("<16I", src)
    if not 1 <= count <= len(starts):
        return None
    bounds = [*starts[:count], len(src)]
    segments = [src[begin:end] for begin, end in pairwise(bounds)]
    if not all(segments):
        return None
    try:
        with Image.open(io.BytesIO(_tiff(segments, pixels)), formats=("TIFF",)) as image:
            return np.asarray(image, dtype=np.uint8).reshape(count, pixels)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None


def _tiff(segments: list[bytes], pixels: int) -> bytes:
    """The segments as the strips of a TIFF (6.0, section 2) of one row each."""
    count = len(segments)
    lengths = [len(segment) for segment in segments]
    after_directory = 8 + 2 + 12 * 9 + 4
    begin = after_directory + 8 * count
    starts = [begin + sum(lengths[:index]) for index in range(count)]
    fields = [
        (256, _LONG, 1, pixels),  # width
        (257, _LONG, 1, count),  # height
        (258, _SHORT, 1, 8),  # bits per sample
        (259, _SHORT, 1, _PACK_BITS),
        (262, _SHORT, 1, 1),  # black is zero
        (273, _LONG, count, after_directory if count > 1 else starts[0]),
        (277, _SHORT, 1, 1),  # samples per pixel
        (278, _LONG, 1, 1),  # rows per strip
        (279, _LONG, count, after_directory + 4 * count if count > 1 else lengths[0]),
    ]
    directory = struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields)
    tables = struct.pack(f"<I{2 * count}I", 0, *starts, *lengths)
    return b"".join([b"II*\0", struct.pack("<I", 8), directory, tables, *segments])


RLELosslessDecoder.add_plugin(NAME, (__name__, decode_frame.__name__))
