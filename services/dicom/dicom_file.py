"""A DICOM file opened so that what it says of its own size cannot make a reader take memory for more than is there."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from imaging.errors import InputTooLarge

MAX_INFLATED_BYTES = 1 << 31
_LARGE_READ_BYTES = 1 << 16
_HEAD_BYTES = 1024  # the file meta information comes first (PS3.10 7.1)
_CHUNK_BYTES = 1 << 20


class _WithinTheFile(io.BufferedReader):
    """Reads no more than the file holds: Python takes memory for all that is asked for before it looks."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._end = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _LARGE_READ_BYTES:
            size = min(size, max(0, self._end - self.tell()))
        return super().read(size)


@contextmanager
def opened_dicom(path: Path) -> Iterator[io.BufferedReader]:
    """The file for pydicom to read.

    Raises:
        InputTooLarge: a deflated data set that inflates to more than `MAX_INFLATED_BYTES`.
        OSError: the file system refuses.
        pydicom.errors and others of `headers.MALFORMED`: the file meta information of a deflated file is damaged.
    """
    with _WithinTheFile(path) as file:
        is_deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(_HEAD_BYTES)
        file.seek(0)
        if is_deflated:
            _refuse_deflate_bomb(file, path)
            file.seek(0)
        yield file


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
