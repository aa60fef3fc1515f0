"""A multipart/related answer (RFC 2387), written part by part."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class Part:
    """`content_type` with its parameters; `content` is read when it is the part's turn."""

    content_type: str
    content: Iterable[bytes]


@dataclass(frozen=True, slots=True)
class RelatedBody:
    """A body and the header that goes with it."""

    content_type: str
    chunks: Iterator[bytes]


def related_body(media_type: str, parts: Iterator[Part]) -> RelatedBody:
    """The parts as one body. The first chunk of the first part is made at once: what it raises can still be answered.

    Args:
        media_type: of the (first) part.
    """
    boundary = uuid.uuid4().hex
    chunks = _chunks(parts, boundary)
    beginning = [next(chunks), next(chunks)]  # the first part's header, the first of its content
    return RelatedBody(f'multipart/related; type="{media_type}"; boundary={boundary}', chain(beginning, chunks))


def _chunks(parts: Iterator[Part], boundary: str) -> Iterator[bytes]:
    for part in parts:
        yield f"--{boundary}\r\nContent-Type: {part.content_type}\r\n\r\n".encode()
        yield from part.content
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
