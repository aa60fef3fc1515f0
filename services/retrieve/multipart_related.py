"""The parts of a multipart/related body as they come (RFC 2387, PS3.18 section 8.7.1), one in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from imaging.errors import NodeUnavailable

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PART_BYTES = 4 * 1024**3


def parts_of(content_type: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Each part's content.

    Raises:
        NodeUnavailable: the body is not multipart/related, is malformed, or ends before its last boundary. The parts
            before that were whole.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if media_type != b"multipart/related" or not boundary:
        raise _malformed(f"Content-Type {content_type[:100]!r}")
    body = _Body(boundary)
    for piece in pieces:
        yield from body.feed(piece)
    if not body.has_ended:
        raise _malformed("it ends before its last boundary")


class _Body:
    def __init__(self, boundary: bytes) -> None:
        self.has_ended = False
        self._part = bytearray()
        self._whole: list[bytes] = []
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_part_data": self._take,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        self._parser = MultipartParser(boundary, callbacks)

    def feed(self, piece: bytes) -> list[bytes]:
        """The parts that end in this piece."""
        self._whole = []
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _malformed(str(error)) from error
        return self._whole

    def _begin(self) -> None:
        self._part = bytearray()

    def _take(self, data: bytes, start: int, end: int) -> None:
        if len(self._part) + end - start > _MAX_PART_BYTES:
            raise _malformed(f"a part is over {_MAX_PART_BYTES} bytes")
        self._part += data[start:end]

    def _end_part(self) -> None:
        self._whole.append(bytes(self._part))

    def _end(self) -> None:
        self.has_ended = True


def _malformed(what: str) -> NodeUnavailable:
    return NodeUnavailable(f"malformed multipart answer: {what}")
