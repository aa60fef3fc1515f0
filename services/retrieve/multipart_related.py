"""The parts of a multipart/related answer as they come (RFC 2387, PS3.18 section 8.7.1), one in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from python_multipart.multipart import parse_options_header

from imaging.errors import InputError, NodeUnavailable
from services.multipart import MultipartReader

_MAX_PART_BYTES = 4 * 1024**3


def parts_of(content_type: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Each part's content.

    Raises:
        NodeUnavailable: the body is not multipart/related, is malformed, or ends before its last boundary. The parts
            before that were whole.
    """
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/related":
        raise NodeUnavailable(f"malformed multipart answer: Content-Type {content_type[:100]!r}")
    parts = _WholeParts()
    try:
        reader = MultipartReader(options.get(b"boundary", b""), parts)
        for piece in pieces:
            reader.feed(piece)
            yield from parts.taken()
        reader.end()
    except InputError as error:
        raise NodeUnavailable(error.message) from error


class _WholeParts:
    """Gathers the part that is coming."""

    def __init__(self) -> None:
        self._part = bytearray()
        self._whole: list[bytes] = []

    def taken(self) -> list[bytes]:
        """The parts that have ended since the last call."""
        whole, self._whole = self._whole, []
        return whole

    def begin(self, headers: Mapping[str, str]) -> None:
        self._part = bytearray()

    def write(self, piece: memoryview) -> None:
        if len(self._part) + len(piece) > _MAX_PART_BYTES:
            raise NodeUnavailable(f"a part of the answer is over {_MAX_PART_BYTES} bytes")
        self._part += piece

    def end(self) -> None:
        self._whole.append(bytes(self._part))
