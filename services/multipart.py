"""Multipart bodies (RFC 2046), read piece by piece: what a part holds is handed on as it comes and never gathered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from imaging.errors import InputError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MALFORMED_MULTIPART = "input.malformed_multipart"
_MOST_HEADERS = 16
_LONGEST_HEADER_BYTES = 4096


class Parts(Protocol):
    """What becomes of the parts, one after the other."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """`headers` of the part, their names in lower case."""

    def write(self, piece: memoryview) -> None:
        """The next bytes of the part: a view of what was fed, not a copy."""

    def end(self) -> None:
        """The part is complete."""


class MultipartReader:
    """Hands the parts of one body on. Memory: one piece and the headers of one part, which are bounded."""

    def __init__(self, boundary: bytes, parts: Parts) -> None:
        """Raises InputError (`input.malformed_multipart`) where the boundary is missing or overlong."""
        self._parts = parts
        self._ended = False
        self._headers: dict[str, str] = {}
        self._name = self._value = b""
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": lambda: parts.begin(self._headers),
            "on_part_data": lambda data, start, end: parts.write(memoryview(data)[start:end]),
            "on_part_end": parts.end,
            "on_end": self._on_end,
        }
        if not boundary:
            raise malformed("Content-Type has no boundary")
        try:
            self._parser = MultipartParser(
                boundary, callbacks, max_header_count=_MOST_HEADERS, max_header_size=_LONGEST_HEADER_BYTES
            )
        except FormParserError as error:
            raise malformed(str(error)) from error

    def feed(self, piece: bytes) -> None:
        """Raises InputError where the body is no multipart, and whatever `parts` raises."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise malformed(str(error)) from error

    def end(self) -> None:
        """Raises InputError where the body broke off."""
        if not self._ended:
            raise malformed("the body ends before its last boundary")

    def _on_part_begin(self) -> None:
        self._headers = {}
        self._name = self._value = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name = self._value = b""

    def _on_end(self) -> None:
        self._ended = True


def malformed(what: str) -> InputError:
    return InputError(f"malformed multipart body: {what}", code=MALFORMED_MULTIPART)
