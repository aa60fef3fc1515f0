"""The pixel data of one file, frame by frame: as it is stored, or decoded."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from imaging.errors import NotFound
from services.dicom.decoder_process import decoded
from services.dicom.headers import MALFORMED, integer, read_header
from services.dicom.pixel_reader import transfer_syntax_uid_of
from services.dicomweb.accept import NotAcceptable

_CHUNK_BYTES = 1024**2
_ELEMENT_HEAD_BYTES = 12  # of (7FE0,0010) in explicit VR little endian: tag, VR, reserved, length


class Frames:
    """The frames of an instance, counted from 0.

    Attributes:
        header: everything before the pixel data.
        count: of the frames; 0 where the instance has no pixels.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self.transfer_syntax_uid = UID(transfer_syntax_uid_of(self.header))
        has_pixels = bool(integer(self.header, "Rows")) and bool(integer(self.header, "BitsAllocated"))
        self.count = max(1, integer(self.header, "NumberOfFrames") or 1) if has_pixels else 0

    @property
    def is_encapsulated(self) -> bool:
        return bool(self.transfer_syntax_uid.is_encapsulated)

    def check_has(self, index: int) -> None:
        """Raises NotFound where there is no such frame."""
        if not 0 <= index < self.count:
            raise NotFound(f"no frame {index + 1}: the instance has {self.count}", remedy="frames are counted from 1")

    def stored(self, index: int) -> bytes:
        """One frame of an encapsulated file, compressed as it is stored.

        Raises:
            NotAcceptable: the fragments are malformed.
        """
        self.check_has(index)
        tables = (self.header.get("ExtendedOffsetTable"), self.header.get("ExtendedOffsetTableLengths"))
        try:
            with self.path.open("rb") as file:
                dcmread(file, stop_before_pixels=True, force=True)
                file.seek(_ELEMENT_HEAD_BYTES, io.SEEK_CUR)
                offsets = None if None in tables else tables
                return get_frame(file, index, extended_offsets=offsets, number_of_frames=self.count)
        except MALFORMED as error:
            raise self._cannot_be_decoded(error) from error

    def decoded(self, index: int) -> bytes:
        """One frame in little endian, laid out as the header says.

        Raises:
            NotAcceptable: it cannot be decoded here.
        """
        pixels = self._pixels(index, raw=True)
        if integer(self.header, "BitsAllocated") == 1:
            return np.packbits(pixels.astype(np.uint8), axis=None, bitorder="little").tobytes()
        if pixels.ndim == 3 and integer(self.header, "PlanarConfiguration") == 1:
            pixels = pixels.transpose(2, 0, 1)
        return pixels.astype(self._stored_type(pixels.dtype), copy=False).tobytes()

    def meant(self, index: int) -> NDArray[Any]:
        """One frame to look at: colour as RGB (rows, columns, 3), else stored values (rows, columns) as they are meant.

        Raises:
            NotAcceptable: it cannot be decoded here, or there are no pixels.
        """
        return self._pixels(index, raw=False)

    def whole(self) -> Iterator[bytes]:
        """The value of Pixel Data: as it lies in the file, or decoded."""
        if self.is_encapsulated:
            yield from map(self.decoded, range(self.count))
            return
        dataset = dcmread(self.path, force=True, specific_tags=["PixelData"])
        yield dataset.get_item("PixelData").value or b""

    def _stored_type(self, decoded: np.dtype[Any]) -> np.dtype[Any]:
        """What the header says of a value; a decoder may give more bits."""
        if decoded.kind == "f":
            return decoded.newbyteorder("<")
        sign = "i" if integer(self.header, "PixelRepresentation") == 1 else "u"
        return np.dtype(f"<{sign}{(integer(self.header, 'BitsAllocated') or 16) // 8}")

    def _pixels(self, index: int, *, raw: bool) -> NDArray[Any]:
        if self.count == 0:
            raise NotAcceptable("the instance has no pixels", remedy="retrieve the instance or its metadata")
        self.check_has(index)
        try:
            if self.is_encapsulated:  # in another process, which knows grey images alone
                if integer(self.header, "SamplesPerPixel") not in (None, 1):
                    raise ValueError("compressed colour is not decoded")
                return decoded(self.path, index if self.count > 1 else None)
            source: Path | Dataset = self.path
            if self.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:  # nothing of it lies at a known place
                source = dcmread(self.path)
            return pixel_array(source, index=index, raw=raw)
        except (*MALFORMED, RuntimeError, ImportError) as error:
            raise self._cannot_be_decoded(error) from error

    def _cannot_be_decoded(self, error: Exception) -> NotAcceptable:
        return NotAcceptable(
            f"a frame in {self.transfer_syntax_uid.name} cannot be decoded by this gateway ({type(error).__name__})",
            remedy="accept it as it is stored: transfer-syntax=*",
        )


def file_chunks(path: Path) -> Iterator[bytes]:
    """A file, a piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece
