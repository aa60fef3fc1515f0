"""A data set while it comes in, fragment by fragment."""

from __future__ import annotations

import errno
import mmap
import os
from io import SEEK_CUR, SEEK_SET, BytesIO, RawIOBase
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Self, cast

from services.store.disk_room import FULL_ERRNOS, no_room

_IN_MEMORY_BYTES = 1 << 20  # a slice of CT is smaller


class ArrivingDataSet:
    """The first MiB lies in memory, a longer one in a file that has no name, so that nothing is left of it when the
    association or this process ends. It stands in for pynetdicom's temporary file.

    A fragment that fills a PDU is received where it will lie (`room_for`, `keep`).
    """

    name = ""

    def __init__(self, directory: Path, memory: bytearray | None = None) -> None:
        """`memory` is used again by the data sets of one association, one after the other."""
        self.memory = bytearray() if memory is None else memory
        self.length = 0
        self._directory = directory
        self._in_memory = 0  # bytes
        self._file: BinaryIO | None = None
        self._full: OSError | None = None

    @classmethod
    def passed_on(cls, directory: Path, descriptor: int | None, length: int) -> Self:
        """What another process has got of a data set, as it told of it (`pass_on`)."""
        data_set = cls(directory)
        data_set.length = length
        if descriptor is None:
            data_set._full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            data_set._file = cast(BinaryIO, os.fdopen(descriptor, "r+b"))
        return data_set

    def pass_on(self) -> int | None:
        """The descriptor of a file with everything that has come; None where the disk had no room for it."""
        try:
            if self._file is None and self._full is None:
                self._file = cast(BinaryIO, os.fdopen(os.memfd_create("data set"), "r+b"))
                with memoryview(self.memory)[: self._in_memory] as begun:
                    self._write_file(begun)
                self._in_memory = 0
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            self._full = error
        return None if self._file is None or self._full is not None else self._file.fileno()

    @property
    def file(self) -> ArrivingDataSet:
        return self

    def room_for(self, count: int) -> memoryview:
        """Where the next `count` bytes are to be received. Release it before anything else."""
        self._make_room(count)
        begin = self._in_memory
        if len(self.memory) < begin + count:
            missing = bytes(begin + count - len(self.memory))
            try:
                self.memory += missing
            except BufferError:  # somebody still holds a view of an earlier data set
                self.memory = self.memory + missing
        return memoryview(self.memory)[begin : begin + count]

    def keep(self, count: int) -> None:
        """The first so many bytes of what was received in `room_for` are the next fragment of this data set."""
        self.length += count
        if self._file is None:
            self._in_memory += count
        else:
            with memoryview(self.memory)[:count] as received:
                self._write_file(received)

    def write(self, fragment: bytes | memoryview) -> None:
        """A disk that is full is told of when the instance is complete: until then the peer would not listen."""
        self.length += len(fragment)
        self._make_room(len(fragment))
        if self._file is not None:
            self._write_file(fragment)
            return
        self.memory[self._in_memory : self._in_memory + len(fragment)] = fragment
        self._in_memory += len(fragment)

    def flush(self) -> None:
        """Nobody reads before the end."""

    def whole(self) -> BinaryIO:
        """The content from its beginning.

        Raises:
            StorageFull: the disk had no room for it.
        """
        if self._file is None and self._full is None:
            return cast(BinaryIO, InMemory(memoryview(self.memory)[: self._in_memory]))
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            self._full = error
        if self._full is not None:
            raise no_room() from self._full
        assert self._file is not None
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _make_room(self, count: int) -> None:
        """Go over to a file before the memory is full."""
        if self._file is not None or self._in_memory + count <= _IN_MEMORY_BYTES:
            return
        try:
            self._file = cast(BinaryIO, TemporaryFile(dir=self._directory))  # noqa: SIM115  closed with the data set
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            self._full = error
            self._in_memory = 0  # it will be refused
            return
        with memoryview(self.memory)[: self._in_memory] as begun:
            self._write_file(begun)
        self._in_memory = 0

    def _write_file(self, fragment: bytes | memoryview) -> None:
        assert self._file is not None
        try:
            if self._full is None:
                self._file.write(fragment)
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            self._full = error


class InMemory(RawIOBase):
    """Bytes as a file, without copying them."""

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        begin = 0 if whence == SEEK_SET else self._at if whence == SEEK_CUR else len(self.content)
        self._at = max(0, begin + offset)
        return self._at

    def readinto(self, room: Any) -> int:
        piece = self.content[self._at : self._at + len(room)]
        room[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def view(content: BinaryIO) -> memoryview:
    """The bytes of a data set without reading a file into memory."""
    if isinstance(content, InMemory):
        return content.content
    if isinstance(content, BytesIO):
        return content.getbuffer()
    return memoryview(mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ))
