"""A DICOM file opened so that what it says of its own size cannot make a reader take memory for more than is there."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from imaging.errors import InputTooLarge

MAX_INFLATED_BYTES = 1 << 31
MAX_HEADER_READS = 500_000  # two for an element: some 5000 frames of an Enhanced CT
MAX_INFLATED_HEADER_BYTES = 1 << 24
_LARGE_READ_BYTES = 1 << 16
_HEAD_BYTES = 1024  # the file meta information comes first (PS3.10 7.1)
_CHUNK_BYTES = 1 << 20


class _WithinTheFile(io.BufferedReader):
    """Reads no more than the file holds: Python takes memory for all that is asked for before it looks."""

    def __init__(self, path: Path, reads_left: float) -> None:
        super().__init__(io.FileIO(path))
        self._path = path
        self._end = path.stat().st_size
        self._reads_left = reads_left

    def read(self, size: int | None = -1) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise InputTooLarge(f"{self._path.name} has more elements than any image")
        if size is not None and size > _LARGE_READ_BYTES:
            size = min(size, max(0, self._end - self.tell()))
        return super().read(size)


@contextmanager
def opened_dicom(path: Path, *, header_only: bool = False) -> Iterator[BinaryIO]:
    """The file for pydicom to read.

    Args:
        header_only: what lies before the pixel data is read; of a deflated data set only its beginning is inflated.

    Raises:
        InputTooLarge: a deflated data set that inflates to more than `MAX_INFLATED_BYTES`; a header of elements by the
            hundred thousand, each of which would take memory many times its size.
        OSError: the file system refuses.
        pydicom.errors and others of `headers.MALFORMED`: the file meta information of a deflated file is damaged.
    """
    with _WithinTheFile(path, MAX_HEADER_READS if header_only else float("inf")) as file:
        is_deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(_HEAD_BYTES)
        file.seek(0)
        if is_deflated:
            _refuse_deflate_bomb(file, path)
            file.seek(0)
            if header_only:
                yield _beginning_of_deflated(file)
                return
        yield file


def _beginning_of_deflated(file: io.BufferedReader) -> io.BytesIO:
    """The file with no more than a header's worth of its data set, which pydicom inflates as a whole."""
    read_preamble(file, force=True)
    _read_file_meta_info(file)
    data_set_begin = file.tell()
    packed = file.read(MAX_INFLATED_HEADER_BYTES)
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_INFLATED_HEADER_BYTES)
    stored = zlib.compressobj(0, wbits=-zlib.MAX_WBITS)
    file.seek(0)
    return io.BytesIO(file.read(data_set_begin) + stored.compress(inflated) + stored.flush())


def _refuse_deflate_bomb(file: io.BufferedReader, path: Path) -> None:
    """Inflate once without keeping anything, since pydicom inflates all of it at once."""
    read_preamble(file, force=True)
    _read_file_meta_info(file)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = 0
    while not inflater.eof and (packed := inflater.unconsumed_tail or file.read(_CHUNK_BYTES)):
        inflated += len(inflater.decompress(packed, _CHUNK_BYTES))
        if inflated > MAX_INFLATED_BYTES:
            raise InputTooLarge(f"{path.name} inflates to more than {MAX_INFLATED_BYTES:,} bytes")
