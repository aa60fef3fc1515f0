"""The identifying elements of a data set in memory, without pydicom's objects for what lies before them."""

from __future__ import annotations

import struct

from services.store.study_store import is_uid

_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018
_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E
_IDENTIFIERS = frozenset((_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID))
_FIRST_TAG = 0x00080000
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST_SEQUENCE = 8

# PS3.5 7.1.2 and 7.1.3; those with a length of 32 bits have two reserved bytes before it.
_TAG_VR_LENGTH = struct.Struct("<HH2sH")
_TAG_LENGTH = struct.Struct("<HHI")
_LENGTH = struct.Struct("<I")
_unpack_tag_vr_length = _TAG_VR_LENGTH.unpack_from
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
# fmt: off
_SHORT_VRS = frozenset((
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
))
# fmt: on
_LONGEST_HEADER = 12


class _Unusual(Exception):
    """Not written as the Standard says, or not whole: for pydicom to judge."""


def scan_identifiers(data_set: memoryview, *, is_implicit_vr: bool) -> tuple[str, str, str, str] | None:
    """SOP Class, SOP Instance, Study and Series Instance UID of a little-endian data set.

    None where anything is unusual, be it right or wrong.
    """
    try:
        return _scan(data_set, is_implicit_vr)
    except (_Unusual, struct.error):
        return None


def _scan(data_set: memoryview, is_implicit_vr: bool) -> tuple[str, str, str, str]:
    found: dict[int, str] = {}
    at, last, before_last_header = 0, 0, len(data_set) - _LONGEST_HEADER
    if is_implicit_vr and _looks_explicit(data_set):
        raise _Unusual
    while True:
        if is_implicit_vr or at > before_last_header:
            tag, vr, length, begin = _header(data_set, at, is_implicit_vr)
        else:  # what `_header` does: most elements that come by are such
            group, element, vr, length = _unpack_tag_vr_length(data_set, at)
            tag, begin = group << 16 | element, at + 8
            if vr not in _SHORT_VRS:
                tag, vr, length, begin = _header(data_set, at, is_implicit_vr)
        if tag <= last or tag < _FIRST_TAG:
            raise _Unusual
        last = tag
        if tag in _IDENTIFIERS:
            found[tag] = _uid(data_set, begin, length, vr)
        elif tag > _SERIES_INSTANCE_UID:
            if len(found) < len(_IDENTIFIERS):
                raise _Unusual
            return (
                found[_SOP_CLASS_UID],
                found[_SOP_INSTANCE_UID],
                found[_STUDY_INSTANCE_UID],
                found[_SERIES_INSTANCE_UID],
            )
        at = (
            begin + length
            if length != _UNDEFINED_LENGTH
            else _end(data_set, begin, length, vr, is_implicit_vr, depth=0)
        )


def _header(data_set: memoryview, at: int, is_implicit_vr: bool) -> tuple[int, bytes, int, int]:
    """Tag, VR (empty where it is implicit), length of the value, and where the value begins."""
    if at + _LONGEST_HEADER > len(data_set):
        raise _Unusual
    if is_implicit_vr:
        group, element, length = _TAG_LENGTH.unpack_from(data_set, at)
        return group << 16 | element, b"", length, at + _TAG_LENGTH.size
    group, element, vr, length = _TAG_VR_LENGTH.unpack_from(data_set, at)
    if vr in _SHORT_VRS:
        return group << 16 | element, vr, length, at + _TAG_VR_LENGTH.size
    if vr in _LONG_VRS:
        return group << 16 | element, vr, _LENGTH.unpack_from(data_set, at + 8)[0], at + _LONGEST_HEADER
    raise _Unusual


def _looks_explicit(data_set: memoryview) -> bool:
    return bytes(data_set[4:6]).isalpha()


def _uid(data_set: memoryview, begin: int, length: int, vr: bytes) -> str:
    if vr not in (b"", b"UI") or length > 64 or begin + length > len(data_set):
        raise _Unusual
    value = str(data_set[begin : begin + length], "latin-1").removesuffix("\0")
    if not is_uid(value):
        raise _Unusual
    return value


def _end(data_set: memoryview, begin: int, length: int, vr: bytes, is_implicit_vr: bool, *, depth: int) -> int:
    """Where the value ends."""
    if length != _UNDEFINED_LENGTH:
        return begin + length
    if vr not in (b"", b"SQ") or depth == _DEEPEST_SEQUENCE:
        raise _Unusual
    at = begin
    while True:
        group, element, length = _TAG_LENGTH.unpack_from(data_set, at)
        tag, at = group << 16 | element, at + _TAG_LENGTH.size
        if tag == _SEQUENCE_END and length == 0:
            return at
        if tag != _ITEM:
            raise _Unusual
        at = at + length if length != _UNDEFINED_LENGTH else _end_of_item(data_set, at, is_implicit_vr, depth)


def _end_of_item(data_set: memoryview, at: int, is_implicit_vr: bool, depth: int) -> int:
    while True:
        group, element, length = _TAG_LENGTH.unpack_from(data_set, at)
        if group << 16 | element == _ITEM_END:
            if length:
                raise _Unusual
            return at + _TAG_LENGTH.size
        _, vr, length, begin = _header(data_set, at, is_implicit_vr)
        at = _end(data_set, begin, length, vr, is_implicit_vr, depth=depth + 1)
