"""Voxels from the stream of a file, which may end early or never; a slice at a time, nothing else is held in memory."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from imaging.errors import InputError, InputTooLarge
from imaging.volume import Hu
from services.dicom.pixel_reader import AIR_HU, INT16_MAX, exact_hu
from services.dicom.source_image import OnProgress

# What may follow the voxels before the file counts as unpacking without end.
MAX_TRAILING_BYTES = 1 << 20
# deflate cannot compress better (RFC 1951: 258 bytes per 2 bits): a smaller file cannot hold what its header promises.
MAX_DEFLATE_RATIO = 1032
GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20
_GZIP_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, its troubles (and those of a gzip stream in it) told as ours."""
    try:
        with path.open("rb") as file:
            yield file
    except _GZIP_DAMAGE as error:
        raise InputError(
            f"{path.name} is a truncated or damaged gzip file: {error}", code="input.damaged_gzip"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path.name}: {error.strerror}", code="input.unreadable") from error


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """What a gzip stream holds that begins where the file stands."""
    with gzip.GzipFile(fileobj=file) as stream:
        yield stream  # type: ignore[misc]  # GzipFile is a BinaryIO in all that is used here


def read_exactly(stream: BinaryIO, count: int, path: Path) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise InputError(f"{path.name} ends before its last voxel", code="input.truncated", remedy="send it again")
    return data


@dataclass(frozen=True, slots=True)
class Voxels:
    """What a file's header says of its voxels.

    Attributes:
        shape_kji: extents, slowest axis first.
        slope / intercept: HU = stored * slope + intercept.
    """

    path: Path
    shape_kji: tuple[int, int, int]
    dtype: DTypeLike
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def slice_bytes(self) -> int:
        return self.shape_kji[1] * self.shape_kji[2] * np.dtype(self.dtype).itemsize

    def refuse_impossible_size(self) -> None:
        """Before memory is taken for them.

        Raises:
            InputError: the file could not hold so many, compressed as well as can be.
        """
        if self.path.stat().st_size * MAX_DEFLATE_RATIO < self.shape_kji[0] * self.slice_bytes:
            text = f"{self.path.name} is too short for its {' x '.join(str(n) for n in self.shape_kji[::-1])} voxels"
            raise InputError(text, code="input.truncated")

    def check(self, stream: BinaryIO) -> None:
        """Read all of them, and the stream to its end, so that gzip compares its checksum.

        Of a plain file the last byte, without which it is too short.
        """
        remaining = self.shape_kji[0] * self.slice_bytes
        if not isinstance(stream, gzip.GzipFile):
            stream.seek(remaining - 1, os.SEEK_CUR)
            remaining = 1
        while remaining:
            remaining -= len(read_exactly(stream, min(remaining, _CHUNK_BYTES), self.path))
        self._read_to_end(stream)

    def read_hu(self, stream: BinaryIO, *, exact: bool, on_progress: OnProgress | None) -> Hu:
        """HU (k, j, i); rounded and limited to -1024..32767, NaN as -1024, unless `exact`.

        Raises:
            InputError: `exact`, and HU are not whole, not numbers or do not fit 16 bits.
        """
        hu = np.empty(self.shape_kji, dtype=np.int16)
        for k, plane in enumerate(hu):
            stored = np.frombuffer(read_exactly(stream, self.slice_bytes, self.path), self.dtype).reshape(plane.shape)
            plane[:] = exact_hu(stored, self.slope, self.intercept) if exact else self._limited_hu(stored)
            if on_progress is not None:
                on_progress((k + 1) / len(hu))
        self._read_to_end(stream)
        return hu

    def _limited_hu(self, stored: NDArray[Any]) -> Hu:
        if (self.slope, self.intercept) == (1.0, 0.0) and np.issubdtype(stored.dtype, np.integer):
            return np.asarray(np.clip(stored, AIR_HU, INT16_MAX), dtype=np.int16)
        values = stored.astype(np.float64) * self.slope + self.intercept
        values = np.nan_to_num(values, nan=AIR_HU, posinf=INT16_MAX, neginf=AIR_HU)
        return np.asarray(np.clip(np.rint(values), AIR_HU, INT16_MAX), dtype=np.int16)

    def _read_to_end(self, stream: BinaryIO) -> None:
        trailing = 0
        while chunk := stream.read(1 << 16):
            trailing += len(chunk)
            if trailing > MAX_TRAILING_BYTES:
                raise InputTooLarge(f"{self.path.name} goes on after its last voxel")
