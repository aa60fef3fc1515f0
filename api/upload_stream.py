"""An upload on its way from the socket to files, in memory that does not grow with it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import anyio
from anyio.to_thread import run_sync
from fastapi import Request
from python_multipart.multipart import parse_options_header

from api.gateway import opened_gateway
from api.problems import UNSUPPORTED_MEDIA_TYPE
from imaging.errors import InputError, InputTooLarge
from services.multipart import MultipartReader

FILES_FIELD = "files"
RAW_MEDIA_TYPES = (
    "application/zip",
    "application/dicom",
    "application/gzip",
    "application/x-gzip",
    "application/octet-stream",
)
_BATCH_BYTES = 32 * 1024  # handed to a thread at once; 200 uploads may come together
_FIELD_MAX_BYTES = 1024
_MAX_FIELDS = 16


@dataclass(frozen=True, slots=True)
class ReceivedUpload:
    """`files` lie complete in the given directory, each named by the SHA-256 of its content.

    Names given by the client are dropped: they may hold a patient's name or a path. `content_digest` depends on the
    contents of the files alone: not on their order, their names or the multipart boundary.
    """

    files: tuple[Path, ...]
    fields: dict[str, str]
    content_digest: str


async def receive_upload(
    request: Request, into: Path, *, max_bytes: int, max_files: int, check_room: Callable[[int], None]
) -> ReceivedUpload:
    """Write the request's body to files in `into`.

    Args:
        check_room: raises StorageFull where so many bytes more are too many for the disk.

    Raises:
        StorageFull: as `check_room`: before anything is read where the request says how long it is.
        InputTooLarge: over `max_bytes` or `max_files`; what lies beyond is not read.
        InputError: malformed multipart, an unknown media type or no file at all.
        ClientDisconnect: the client went away in the middle.
        OSError: the disk is full.
    """
    fields: dict[str, str] = {}
    files = _ArrivingFiles(into, max_bytes=max_bytes, max_files=max_files, check_room=check_room)
    body = _body(request.headers.get("content-type", ""), fields, files)
    check_room(min(announced_bytes(request), max_bytes))
    try:
        await feed_body(request, body, max_bytes=max_bytes, max_bytes_around=_FIELD_MAX_BYTES * _MAX_FIELDS)
    finally:
        files.close()
    if not files.digests:
        raise InputError(
            "the upload has no file",
            code="input.no_files",
            remedy=f"send one or more files in the multipart field {FILES_FIELD!r}",
        )
    content = hashlib.sha256("\n".join(sorted(files.digests)).encode())
    paths = tuple(dict.fromkeys(into / digest for digest in files.digests))
    return ReceivedUpload(paths, fields, content.hexdigest())


class Body(Protocol):
    """What takes a request's body in."""

    def feed(self, piece: bytes) -> None: ...

    def end(self) -> None: ...


async def feed_body(request: Request, body: Body, *, max_bytes: int, max_bytes_around: int) -> None:
    """Hand the request's body on in a thread, 32 KiB at least at a time, while the next piece comes.

    Args:
        max_bytes_around: what may come beside the `max_bytes` of files: form fields, part headers.

    Raises:
        InputTooLarge: the request announces more; nothing of it is read.
        ClientDisconnect: the client went away in the middle.
    """
    threads = opened_gateway(request).upload_threads
    if announced_bytes(request) > max_bytes + max_bytes_around:
        raise too_many_bytes(max_bytes)
    feeding: asyncio.Task[None] | None = None
    batch = b""
    try:
        async for chunk in request.stream():
            batch = batch + chunk if batch else chunk  # under load a chunk is a batch, and is not copied
            if len(batch) >= _BATCH_BYTES:
                if feeding is not None:
                    await feeding
                feeding = asyncio.create_task(run_sync(body.feed, batch, limiter=threads))
                batch = b""
    finally:
        if feeding is not None:  # nobody closes a file that is being written
            with anyio.CancelScope(shield=True):
                await asyncio.wait([feeding])
    if feeding is not None:
        await feeding
    await run_sync(body.feed, batch, limiter=threads)
    await run_sync(body.end, limiter=threads)


def announced_bytes(request: Request) -> int:
    """As the request says it is long; 0 where it does not say so."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isdigit() else 0


class _ArrivingFiles:
    """Files written one after the other, counted and digested on the way."""

    def __init__(self, into: Path, *, max_bytes: int, max_files: int, check_room: Callable[[int], None]) -> None:
        self.digests: list[str] = []
        self._check_room = check_room
        self._into = into
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._bytes = 0
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()

    def begin(self) -> None:
        if len(self.digests) >= self._max_files:
            raise InputTooLarge(
                f"more than {self._max_files} files in one upload",
                code="input.too_many_files",
                remedy="send one series, or a zip of it",
            )
        self._digest = hashlib.sha256()
        self._file = (self._into / "arriving").open("wb")

    def write(self, piece: bytes | memoryview) -> None:
        assert self._file is not None
        self._bytes += len(piece)
        if self._bytes > self._max_bytes:
            raise too_many_bytes(self._max_bytes)
        self._check_room(len(piece))
        self._digest.update(piece)
        self._file.write(piece)

    def end(self) -> None:
        assert self._file is not None
        self._file.close()
        digest = self._digest.hexdigest()
        (self._into / "arriving").replace(self._into / digest)
        self.digests.append(digest)
        self._file = None

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk has said so already
                self._file.close()


class _RawBody:
    """The body is the file."""

    def __init__(self, files: _ArrivingFiles) -> None:
        self._files = files
        self._empty = True

    def feed(self, piece: bytes) -> None:
        if piece and self._empty:
            self._empty = False
            self._files.begin()
        if piece:
            self._files.write(piece)

    def end(self) -> None:
        if not self._empty:
            self._files.end()


class _FormParts:
    """multipart/form-data (RFC 7578): files in the field `files`, short text in the others."""

    def __init__(self, fields: dict[str, str], files: _ArrivingFiles) -> None:
        self._fields = fields
        self._files = files
        self._field: str | None = None
        self._text = b""

    def begin(self, headers: Mapping[str, str]) -> None:
        _, options = parse_options_header(headers.get("content-disposition", ""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name == FILES_FIELD:
            self._field = None
            self._files.begin()
        elif not name or b"filename" in options or len(self._fields) >= _MAX_FIELDS:
            raise InputError(
                f"file in the multipart field {name!r}",
                code="input.unknown_field",
                remedy=f"files go into the field {FILES_FIELD!r}",
            )
        else:
            self._field = name
            self._text = b""

    def write(self, piece: memoryview) -> None:
        if self._field is None:
            self._files.write(piece)
            return
        self._text += piece
        if len(self._text) > _FIELD_MAX_BYTES:
            raise InputTooLarge(f"the field {self._field!r} is over {_FIELD_MAX_BYTES} bytes")

    def end(self) -> None:
        if self._field is None:
            self._files.end()
        else:
            self._fields[self._field] = self._text.decode("utf-8", "replace")


def _body(content_type: str, fields: dict[str, str], files: _ArrivingFiles) -> Body:
    media_type, options = parse_options_header(content_type)
    if media_type == b"multipart/form-data":
        return MultipartReader(options.get(b"boundary", b""), _FormParts(fields, files))
    if media_type.decode("latin-1") in RAW_MEDIA_TYPES:
        return _RawBody(files)
    raise InputError(
        f"Content-Type {content_type!r}",
        code=UNSUPPORTED_MEDIA_TYPE,
        remedy=f"send multipart/form-data or one of {', '.join(RAW_MEDIA_TYPES)}",
    )


def too_many_bytes(limit: int) -> InputTooLarge:
    return InputTooLarge(f"the upload is over the limit of {limit} bytes", remedy="send one series at a time")
