"""The multipart reader, however a body is cut, and whatever is sent as one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.errors import InputError
from services.multipart import MultipartReader

CONTENTS = st.binary(max_size=300) | st.lists(
    st.sampled_from([b"\r\n", b"--limit", b"--", b"\r", b"\n", b"-", b"limit", b"x"]), max_size=20
).map(b"".join)


class Gathered:
    """Parts as a list."""

    def __init__(self) -> None:
        self.parts: list[tuple[dict[str, str], bytes]] = []
        self.open: bytes | None = None

    def begin(self, headers: Mapping[str, str]) -> None:
        assert self.open is None
        self.headers, self.open = dict(headers), b""

    def write(self, piece: memoryview) -> None:
        assert self.open is not None
        self.open += piece

    def end(self) -> None:
        assert self.open is not None
        self.parts.append((self.headers, self.open))
        self.open = None


def read(body: bytes, cuts: list[int]) -> list[tuple[dict[str, str], bytes]]:
    gathered = Gathered()
    reader = MultipartReader(b"limit", gathered)
    at = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for begin, end in pairwise(at):
        reader.feed(body[begin:end])
    reader.end()
    return gathered.parts


@given(
    contents=st.lists(CONTENTS.filter(lambda one: b"\r\n--limit" not in b"\r\n" + one), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 10_000), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_parts_come_out_as_they_went_in_however_the_body_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    body = b"".join(b"--limit\r\nContent-Type: application/dicom\r\nX-Y:  z\r\n\r\n%s\r\n" % one for one in contents)
    headers = {"content-type": "application/dicom", "x-y": "z"}
    assert read(body + b"--limit--\r\n", cuts) == [(headers, one) for one in contents]


@given(
    body=st.binary(max_size=400) | CONTENTS.map(lambda one: b"--limit\r\n" + one), cuts=st.lists(st.integers(0, 400))
)
@settings(max_examples=150, deadline=None)
def test_anything_else_is_read_or_refused(body: bytes, cuts: list[int]) -> None:
    with suppress(InputError):
        read(body, cuts)


@pytest.mark.parametrize("boundary", [b"", b"x" * 1000])
def test_a_boundary_that_is_missing_or_overlong_is_refused(boundary: bytes) -> None:
    with pytest.raises(InputError, match="malformed multipart"):
        MultipartReader(boundary, Gathered())


def test_headers_without_an_end_are_refused() -> None:
    reader = MultipartReader(b"limit", Gathered())
    with pytest.raises(InputError, match="malformed multipart"):
        reader.feed(b"--limit\r\n" + b"X: " + b"y" * 5000)


def test_what_is_fed_is_handed_on_in_one_piece_and_not_copied() -> None:
    class Pieces(Gathered):
        def write(self, piece: memoryview) -> None:
            pieces.append(piece)

    pieces: list[memoryview] = []
    reader = MultipartReader(b"limit", Pieces())
    reader.feed(b"--limit\r\n\r\n")
    fed = [bytes(1 << 20) for _ in range(3)]
    for piece in fed:
        reader.feed(piece)
    assert [piece.obj for piece in pieces] == fed
    assert all(piece.obj is one for piece, one in zip(pieces, fed, strict=True))
