"""Stored pixel values to Hounsfield units, one plane at a time."""

from __future__ import annotations

import mmap
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from imaging.errors import InputError, NotAnalysable, Reason
from services.dicom import reason_codes, rle_decoder
from services.dicom.decoder_process import decoded
from services.dicom.dicom_file import opened_dicom
from services.dicom.headers import MALFORMED, integer, number, text
from services.dicom.image_plane import ImagePlane
from services.dicom.plain_pixels import compressed_values, plain_values

# Air in a CT image; whatever lies below was never measured (circle outside the reconstruction, -2000 or -3024).
AIR_HU = -1024
INT16_MIN, INT16_MAX = -32768, 32767
WHOLE_WITHIN_HU = 1e-3
# HU that tissue and contrast medium have: a padding value in this range is believed only where the corners carry it.
TISSUE_HU = (-900.0, 3071.0)
_IMAGE_PIXEL = ("PixelRepresentation", "BitsStored", "HighBit", *range(0x60000102, 0x60200102, 0x20000))
# 12-bit JPEG (PS3.5 A.4.1) is decoded by none of pydicom's plugins under a permissive licence; GDCM in SimpleITK can.
DECODED_BY_SIMPLEITK = frozenset({JPEGExtended12Bit, "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55"})


def read_hu(plane: ImagePlane, *, exact: bool = False, out: NDArray[np.int16] | None = None) -> NDArray[np.int16]:
    """HU of one plane, int16 (row, column): rescaled, padding and everything below -1024 set to -1024.

    Args:
        exact: padding and everything below -1024 as it is stored.
        out: contiguous, (rows, columns) of the plane: where to put them, and what is returned.

    Raises:
        NotAnalysable: `pixels.unreadable` where the pixel data cannot be decoded or has another size than announced.
        InputError: `exact`, and HU are not whole or do not fit 16 bits.
        OSError: the file system refuses, which says nothing about the image.
    """
    try:
        stored = plain_values(plane, out)
        if stored is None:
            stored = _stored_values(plane, out)
    except (
        *MALFORMED,
        RuntimeError,
        OSError,
        ImportError,
    ) as error:  # the last: SimpleITK, where only headers are read
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _unreadable(plane, f"{type(error).__name__}: {error}") from error
    if stored.shape != (plane.rows, plane.columns):
        raise _unreadable(plane, f"decoded to {stored.shape}, announced {(plane.rows, plane.columns)}")
    slope, intercept = plane.rescale.slope, plane.rescale.intercept
    if exact:
        hu = exact_hu(stored, slope, intercept)
        if out is None:
            return hu
        out[:] = hu
        return out
    return to_hu(stored, slope, intercept, padding=_padding_range(plane.header), out=out)


def _unreadable(plane: ImagePlane, cause: str) -> NotAnalysable:
    frame = "" if plane.frame_index is None else f", frame {plane.frame_index + 1}"
    message = f"pixel data of {plane.path.name}{frame} cannot be read: {cause[:300]}"
    return NotAnalysable([Reason(reason_codes.PIXELS_UNREADABLE, message)])


def _stored_values(plane: ImagePlane, out: NDArray[np.int16] | None) -> NDArray[Any]:
    """Stored values (row, column) of a plane; compressed ones are decoded in another process, maybe into `out`."""
    syntax = text(getattr(plane.header, "file_meta", Dataset()), "TransferSyntaxUID")
    if syntax and UID(syntax).is_transfer_syntax and UID(syntax).is_encapsulated:
        return decoded(plane.path, plane.frame_index, out=out)
    return stored_values(plane.path, plane.frame_index)


def stored_values(path: Path, frame_index: int | None) -> NDArray[Any]:
    """Stored values (row, column) of a single-frame image, or of one frame."""
    if frame_index is None and (stored := compressed_values(path)) is not None:
        return stored
    return stored_values_by_pydicom(path, frame_index)


def stored_values_by_pydicom(path: Path, frame_index: int | None) -> NDArray[Any]:
    """As `stored_values`, whatever the image is."""
    if frame_index is not None:
        header = _image_pixel_header(path, path.stat().st_mtime_ns)
        with opened_dicom(path) as file:
            stored = _decoded(file, header, frame_index)
        return _as_meant(stored, header, path)
    with opened_dicom(path) as file:
        dataset = dcmread(file, force=True)
    if transfer_syntax_uid_of(dataset) in DECODED_BY_SIMPLEITK:
        return _decoded_by_simpleitk(path, dataset)
    if integer(dataset, "SamplesPerPixel") not in (None, 1):
        raise ValueError(f"SamplesPerPixel is {text(dataset, 'SamplesPerPixel')}, a CT image has 1")
    return _as_meant(_decoded(dataset, dataset), dataset, path)


@lru_cache(maxsize=4)
def _image_pixel_header(path: Path, modified_at_ns: int) -> Dataset:
    """Without the functional groups: of all frames, which are asked for one after the other, read once."""
    with opened_dicom(path) as file:
        return dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(_IMAGE_PIXEL))


def _is_unsigned_jpeg_2000(dataset: Dataset) -> bool:
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    return syntax in JPEG2000TransferSyntaxes and integer(dataset, "PixelRepresentation") == 0


def _decoder_of(dataset: Dataset) -> str:
    """Where pydicom's own choice is wrong or slow; empty where it is neither.

    OpenJPEG alone for JPEG 2000: Pillow moves values instead of wrapping where a sign has to be restored, and GDCM
    divides each image among threads, which takes a fifth more of the cores than an image for each of our processes.
    CharLS itself for JPEG-LS, likewise.
    """
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if syntax == RLELossless:
        return rle_decoder.NAME
    if syntax in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    return "pylibjpeg" if syntax in JPEG2000TransferSyntaxes else ""


def _decoded(source: Dataset | BinaryIO, dataset: Dataset, index: int | None = None) -> NDArray[Any]:
    decoder = _decoder_of(dataset)
    try:
        return pixel_array(source, index=index, decoding_plugin=decoder)
    except (*MALFORMED, RuntimeError):
        if decoder != "pyjpegls":
            raise
        return pixel_array(source, index=index)  # GDCM takes some that CharLS alone does not


def _as_meant(stored: NDArray[Any], dataset: Dataset, path: Path) -> NDArray[Any]:
    """What the decoder gave, freed of overlays, and with a sign where the codestream has one.

    Raises:
        ValueError: values that do not begin at the lowest bit (PS3.5 8.1.1 forbids it), which no decoder shifts.
    """
    bits_stored, high_bit = integer(dataset, "BitsStored"), integer(dataset, "HighBit")
    is_plain = not UID(text(dataset.file_meta, "TransferSyntaxUID")).is_encapsulated
    if is_plain and bits_stored is not None and high_bit not in (None, bits_stored - 1):
        raise ValueError(f"HighBit is {high_bit} where BitsStored is {bits_stored}")
    if _is_unsigned_jpeg_2000(dataset):
        return _with_the_codestreams_sign(stored, path)
    if _overlay_in_pixels(dataset):
        return _lowest_bits(stored, bits_stored or 16)
    return stored


def _decoded_by_simpleitk(path: Path, dataset: Dataset) -> NDArray[Any]:
    import SimpleITK  # here: 140 MB that the gateway, which only looks at headers, does without

    values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    # GDCM has applied the rescale already; it is taken back, since padding is told by stored values
    slope, intercept = number(dataset, "RescaleSlope") or 1.0, number(dataset, "RescaleIntercept") or 0.0
    stored = np.rint((values - intercept) / slope)
    return np.asarray(stored.reshape(values.shape[-2:]), dtype=np.int32)


def _overlay_in_pixels(dataset: Dataset) -> bool:
    """Whether high bits of the stored values hold an overlay, as before 2004 (PS3.5 8.1.2, retired)."""
    groups = range(0x6000, 0x6020, 2)
    return any(element.value for group in groups if (element := dataset.get((group, 0x0102))) is not None)


def _with_the_codestreams_sign(stored: NDArray[Any], path: Path) -> NDArray[Any]:
    """JPEG 2000 whose PixelRepresentation says unsigned, as its codestream means it.

    Decoders disagree about such a contradiction: GDCM and OpenJPEG wrap -1000 around to 64536, Pillow moves every value
    up by half the range. Taken is what the codestream says (PS3.5 8.2.1), since only a negative value can have been
    written as one. The opposite contradiction, an unsigned codestream of values that are signed, is read alike by all:
    its bits are two's complement, as PixelRepresentation says.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        sign_and_depth = _sign_and_depth(content)
    if not sign_and_depth & 0x80:
        return stored
    return _lowest_bits(stored.view(f"i{stored.itemsize}"), (sign_and_depth & 0x7F) + 1)


def _sign_and_depth(content: bytes | mmap.mmap) -> int:
    """Ssiz of the first frame's codestream: its highest bit says signed, the others the depth less one."""
    start = content.find(b"\xff\x4f\xff\x51")  # SOC and SIZ, ITU-T T.800 A.5.1
    return content[start + 42] if 0 <= start < len(content) - 42 else 0


def _lowest_bits(stored: NDArray[Any], bits: int) -> NDArray[Any]:
    """Whole numbers of so many bits, as they were before higher bits were used otherwise."""
    unused = stored.itemsize * 8 - bits
    return stored << unused >> unused


def transfer_syntax_uid_of(dataset: Dataset) -> str:
    """Of the file meta information; guessed, and put there for pydicom, where the file has none."""
    found = text(dataset.file_meta, "TransferSyntaxUID")
    if not found:
        is_implicit, is_little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
        found = ImplicitVRLittleEndian if is_implicit else explicit
        dataset.file_meta.TransferSyntaxUID = found
    return found


def _padding_range(header: Dataset) -> tuple[float, float] | None:
    """PixelPaddingValue and PixelPaddingRangeLimit as stored values, lowest first (PS3.3 C.7.5.1.1.2)."""
    value = integer(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer(header, "PixelPaddingRangeLimit")
    # Written as US where the pixels are signed (63536 for -2000), as many archives do
    signed = integer(header, "PixelRepresentation") == 1
    values = [v - 65536 if signed and v > 32767 else v for v in (value, value if limit is None else limit)]
    return float(min(values)), float(max(values))


def exact_hu(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.int16]:
    """HU = stored * slope + intercept, which must be what int16 can hold, as every use of a CT after it does.

    Raises:
        InputError: a value is not whole, by more than a thousandth, or beyond 16 bits, or not a number.
    """
    hu = stored.astype(np.float64) * slope + intercept
    whole = np.rint(hu)
    with np.errstate(invalid="ignore"):  # infinite less infinite
        is_whole = np.abs(hu - whole) <= WHOLE_WITHIN_HU
    if not is_whole.all():
        raise InputError(
            f"{hu[~is_whole][0]} HU is not a whole number", code="input.hu_not_whole", remedy="have them rounded"
        )
    if whole.min() < INT16_MIN or whole.max() > INT16_MAX:
        raise InputError(
            f"HU from {whole.min():.0f} to {whole.max():.0f} do not fit 16 bits",
            code="input.hu_beyond_16_bits",
            remedy="have them rounded and limited, or correct slope and intercept of the file",
        )
    return np.asarray(whole, dtype=np.int16)


def to_hu(
    stored: NDArray[Any],
    slope: float,
    intercept: float,
    padding: tuple[float, float] | None,
    out: NDArray[np.int16] | None = None,
) -> NDArray[np.int16]:
    """HU = stored * slope + intercept (PS3.3 C.11.1.1.2), padded and clipped to -1024..32767, rounded to int16.

    Args:
        out: where to put them, and what is returned; may lie over `stored`.
    """
    is_padding = None if padding is None else _is_padding(stored, slope, intercept, padding)
    if out is None:
        out = np.empty(stored.shape, dtype=np.int16)
    if not _add_within_16_bits(stored, slope, intercept, out):
        np.copyto(out, np.clip(_rescaled(stored, slope, intercept), AIR_HU, INT16_MAX), casting="unsafe")
    if is_padding is not None:
        out[is_padding] = AIR_HU
    return out


def _rescaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    if slope == 1.0 and float(intercept).is_integer() and np.issubdtype(stored.dtype, np.integer):
        return stored.astype(np.int32) + np.int32(np.clip(intercept, -(2**30), 2**30))
    return np.asarray(np.rint(stored.astype(np.float64) * slope + intercept))


def _add_within_16_bits(stored: NDArray[Any], slope: float, intercept: float, out: NDArray[np.int16]) -> bool:
    """What nearly every CT needs: stored values limited so that their HU will be, then moved. False: not done."""
    if slope != 1.0 or stored.dtype not in (np.int16, np.uint16) or not float(intercept).is_integer():
        return False
    limits = np.iinfo(stored.dtype)
    lowest, highest = max(AIR_HU - int(intercept), limits.min), min(INT16_MAX - int(intercept), limits.max)
    if lowest > highest:
        return False
    limited = out.view(stored.dtype)
    # looking takes a tenth of limiting, which hardly any image needs
    if (highest < limits.max and stored.max() > highest) or (lowest > limits.min and stored.min() < lowest):
        np.clip(stored, lowest, highest, out=limited)
    elif not np.may_share_memory(stored, out):
        np.copyto(limited, stored)
    if intercept:
        bits = out.view(np.uint16)  # adding wraps around, and what is limited comes out right
        np.add(bits, np.uint16(int(intercept) & 0xFFFF), out=bits)
    return True


def _is_padding(
    stored: NDArray[Any], slope: float, intercept: float, padding: tuple[float, float]
) -> NDArray[np.bool_] | None:
    """Which values are padding; None where none is, or all of it becomes air by being below."""
    low, high = sorted((padding[0] * slope + intercept, padding[1] * slope + intercept))
    if high <= AIR_HU:
        return None
    is_padding: NDArray[np.bool_] = (stored >= padding[0]) & (stored <= padding[1])
    is_tissue = high > TISSUE_HU[0] and low < TISSUE_HU[1]
    corners = is_padding[[0, 0, -1, -1], [0, -1, 0, -1]]
    return is_padding if not is_tissue or corners.any() else None
