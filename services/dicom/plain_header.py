"""The header of an ordinary DICOM file, of which a series has hundreds: read in one piece and cut into its elements.

pydicom asks the file for every element by itself, which takes about a millisecond a header. Here the elements are the
same raw ones, to be parsed by pydicom when somebody asks. Whatever is not as PS3.10 has it is left to pydicom from the
start: it knows the ways in which files are odd.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag
from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPIPHTJ2KReferencedDeflate,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

# Most headers lie within the first; one that does not lie within the last is left to pydicom.
_BLOCKS_BYTES = (1 << 13, 1 << 15, 1 << 17)
_PREAMBLE_BYTES = 128  # and then DICM, PS3.10 7.1
_META_TAGS = (0x0002_0000, 0x0003_0000)
_PIXEL_DATA = 0x7FE0_0010
_DATA_SET_TAGS = (0x0008_0000, 0x7FE0_0008)  # up to pixel data of any kind (PS3.3 C.7.6.3, C.7.6.24, C.7.6.25)
_CHARACTER_SET = BaseTag(0x0008_0005)
_TRANSFER_SYNTAX = BaseTag(0x0002_0010)
_UNDEFINED_LENGTH = 0xFFFF_FFFF
_LITTLE_ENDIAN_SYNTAXES = {
    uid.encode(): uid
    for uid in AllTransferSyntaxes
    if uid not in (ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPIPHTJ2KReferencedDeflate)
}
_VALUE_REPRESENTATIONS = {
    str(vr).encode(): (str(vr), vr in EXPLICIT_VR_LENGTH_32) for vr in EXPLICIT_VR_LENGTH_16 | EXPLICIT_VR_LENGTH_32
}

_new = tuple.__new__  # a named tuple's own takes twice as long, and a series has elements by the ten thousand
_Elements = dict[BaseTag, RawDataElement | DataElement]


@dataclass(frozen=True, slots=True)
class PixelDataPlace:
    """Where the value of the pixel data lies in its file, and by what one sees that the file is still the same.

    Attributes:
        length: in bytes, as announced; None where it is encapsulated.
    """

    offset: int
    length: int | None
    file_bytes: int
    modified_at_ns: int


class PlainHeader(FileDataset):
    """Elements before the pixel data, and where those are."""

    pixel_data: PixelDataPlace | None = None


class _BeyondTheBlock(Exception):
    """The header goes on after what was read of the file."""


class _Odd(Exception):
    """Not as PS3.10 has it, or not known here."""


def plain_header(path: Path, tags: Collection[int] | None = None) -> PlainHeader | None:
    """Everything before the pixel data; only `tags` and the character set where given; None for pydicom to read it.

    Raises:
        OSError: the file system refuses.
        Others of `headers.MALFORMED`: a sequence is damaged.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for block_bytes in _BLOCKS_BYTES:
            head = os.pread(file, block_bytes, 0)
            try:
                return _header(head, path, file, None if tags is None else {*tags, _CHARACTER_SET})
            except _Odd:
                return None
            except _BeyondTheBlock:
                if len(head) < block_bytes:
                    return None
        return None
    finally:
        os.close(file)


def _header(head: bytes, path: Path, file: int, tags: set[int] | None) -> PlainHeader:
    if head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] != b"DICM":
        raise _Odd
    meta: _Elements = {}
    at = _cut(head, _PREAMBLE_BYTES + 4, meta, _META_TAGS, None)
    syntax = _LITTLE_ENDIAN_SYNTAXES.get(getattr(meta.get(_TRANSFER_SYNTAX), "value", b"").rstrip(b"\0"))
    if syntax is None or len(head) < at + 8:
        raise _Odd
    is_implicit = syntax == ImplicitVRLittleEndian
    if is_implicit and all(0x40 < byte < 0x5B for byte in head[at + 4 : at + 6]):
        raise _Odd  # explicit all the same
    elements: _Elements = {}
    cut = _cut_implicit if is_implicit else _cut
    at = cut(head, at, elements, _DATA_SET_TAGS, tags)
    header = PlainHeader(str(path), elements, head[:_PREAMBLE_BYTES], _file_meta(meta), is_implicit, True)
    header.set_original_encoding(is_implicit, True, _encodings(elements))
    header.pixel_data = _pixel_data_place(head, at, file, is_implicit=is_implicit)
    return header


def _file_meta(elements: _Elements) -> FileMetaDataset:
    meta = FileMetaDataset(elements)
    meta.set_original_encoding(False, True, default_encoding)
    return meta


def _pixel_data_place(head: bytes, at: int, file: int, *, is_implicit: bool) -> PixelDataPlace | None:
    group, element, vr = struct.unpack_from("<HH2s", head, at)
    if group << 16 | element != _PIXEL_DATA or not (is_implicit or vr in (b"OW", b"OB")):
        return None
    at += 4 if is_implicit else 8
    (length,) = struct.unpack_from("<I", head, at)
    about = os.fstat(file)
    return PixelDataPlace(
        offset=at + 4,
        length=None if length == _UNDEFINED_LENGTH else length,
        file_bytes=about.st_size,
        modified_at_ns=about.st_mtime_ns,
    )


def _cut(head: bytes, at: int, elements: _Elements, within: tuple[int, int], tags: set[int] | None) -> int:
    """Add the elements from `at` on, in Explicit VR; returns where the first one that is not `within` begins."""
    lowest, end_of_tags = within
    while True:
        begun_at = at
        number, tag, vr, has_long_length, length = _explicit_start(head[at : at + 8])
        if not lowest <= number < end_of_tags:
            break
        if not vr:
            raise _Odd
        at += 8
        if has_long_length:
            length = int.from_bytes(head[at : at + 4], "little")
            at += 4
        if length == _UNDEFINED_LENGTH:
            at = _add_undefined_length(head, begun_at, elements, tags, is_implicit=False)
        else:
            value = head[at : at + length] if length else empty_value_for_VR(vr, raw=True)
            at += length
            if tags is None or number in tags:
                elements[tag] = _new(RawDataElement, (tag, vr, length, value, 0, False, True))
        if at > len(head):
            raise _BeyondTheBlock
    if lowest == _DATA_SET_TAGS[0] and not end_of_tags <= number <= _PIXEL_DATA:
        raise _Odd
    if begun_at + 12 > len(head):
        raise _BeyondTheBlock
    return begun_at


def _cut_implicit(head: bytes, at: int, elements: _Elements, within: tuple[int, int], tags: set[int] | None) -> int:
    """As `_cut`, in Implicit VR."""
    lowest, end_of_tags = within
    while True:
        begun_at = at
        number, tag, length = _implicit_start(head[at : at + 8])
        if not lowest <= number < end_of_tags:
            break
        at += 8
        if length == _UNDEFINED_LENGTH:
            at = _add_undefined_length(head, begun_at, elements, tags, is_implicit=True)
        else:
            value = head[at : at + length] if length else empty_value_for_VR(None, raw=True)
            at += length
            if tags is None or number in tags:
                elements[tag] = _new(RawDataElement, (tag, None, length, value, 0, True, True))
        if at > len(head):
            raise _BeyondTheBlock
    if not end_of_tags <= number <= _PIXEL_DATA:
        raise _Odd
    return begun_at


@lru_cache(maxsize=4096)
def shared_tag(number: int) -> BaseTag:
    """One object for each tag: two equal ones are compared by pydicom in Python, an object with itself is not."""
    return BaseTag(number)


# Of a series nearly all elements begin with the same eight bytes in every file.
@lru_cache(maxsize=4096)
def _explicit_start(start: bytes) -> tuple[int, BaseTag, str, bool, int]:
    """Tag, value representation, whether four bytes of length follow, and else the length (PS3.5 7.1.2).

    The tag also as a number, since tags compare slowly; no value representation where it is none that is known.
    """
    if len(start) < 8:
        raise _BeyondTheBlock
    group, element, vr, length = struct.unpack("<HH2sH", start)
    name, has_long_length = _VALUE_REPRESENTATIONS.get(vr, ("", False))
    number = group << 16 | element
    return number, shared_tag(number), name, has_long_length, length


@lru_cache(maxsize=4096)
def _implicit_start(start: bytes) -> tuple[int, BaseTag, int]:
    """Tag, as a number too, and length (PS3.5 7.1.3)."""
    if len(start) < 8:
        raise _BeyondTheBlock
    group, element, length = struct.unpack("<HHI", start)
    number = group << 16 | element
    return number, shared_tag(number), length


def _add_undefined_length(
    head: bytes, begun_at: int, elements: _Elements, tags: set[int] | None, *, is_implicit: bool
) -> int:
    """One element that ends with a delimiter, mostly a sequence, as pydicom reads it; returns where the next begins."""
    block = io.BytesIO(head)
    block.seek(begun_at)
    encodings = _encodings(elements)
    try:
        element: Any = next(data_element_generator(block, is_implicit, True, encoding=encodings))
    except (OSError, EOFError, StopIteration, struct.error) as error:
        raise _BeyondTheBlock from error
    if block.tell() >= len(head):
        raise _BeyondTheBlock
    if tags is None or element.tag in tags:
        elements[element.tag] = element
    return block.tell()


def _encodings(elements: _Elements) -> str | list[str]:
    raw = elements.get(_CHARACTER_SET)
    return default_encoding if raw is None else list(_encodings_of(raw))


@lru_cache(maxsize=64)
def _encodings_of(raw: RawDataElement) -> tuple[str, ...]:
    return tuple(convert_encodings(convert_raw_data_element(raw).value))
