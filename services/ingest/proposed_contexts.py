"""Presentation contexts that nobody here supports, refused without an object of pynetdicom's for each.

storescu proposes 128, and all but three of them are for what is refused: taking them apart and refusing them one by one
takes as long as receiving 25 slices.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

_HEADER = struct.Struct(">BxL")  # of a PDU (PS3.8 9.3.1)
_ITEM = struct.Struct(">BxH")
_FIXED_BYTES = 74  # before the items of an A-ASSOCIATE-RQ or -AC (PS3.8 tables 9-11 and 9-17)
_PROPOSED, _ANSWERED, _ABSTRACT_SYNTAX, _TRANSFER_SYNTAX, _USER_INFORMATION = 0x20, 0x21, 0x30, 0x40, 0x50
_ABSTRACT_SYNTAX_NOT_SUPPORTED = 3  # PS3.8 9.3.3.2


class _Unusual(Exception):
    """For pynetdicom to judge."""


def without_unsupported(request: bytes, supported: Collection[bytes]) -> tuple[bytes, bytes]:
    """An A-ASSOCIATE-RQ without the contexts of abstract syntaxes that are not supported, and the items of an
    A-ASSOCIATE-AC that refuse them.

    The request stays whole where it is odd, or nothing would be left to accept.
    """
    kept, refusals, is_acceptable = [request[:_FIXED_BYTES]], [], False
    try:
        for kind, begin, end in _items(request, _FIXED_BYTES, len(request)):
            if kind == _PROPOSED:
                abstract_syntax, refusal = _proposed(request, begin + _ITEM.size, end)
                if abstract_syntax not in supported:
                    refusals.append(refusal)
                    continue
                is_acceptable = True
            kept.append(request[begin:end])
    except (_Unusual, struct.error):
        return request, b""
    if not is_acceptable:
        return request, b""
    return _with_length(b"".join(kept)), b"".join(refusals)


def with_refusals(accept: bytes, refusals: bytes) -> bytes:
    """An A-ASSOCIATE-AC with the answers that were left out, behind the others."""
    begins = [begin for kind, begin, _ in _items(accept, _FIXED_BYTES, len(accept)) if kind == _USER_INFORMATION]
    at = begins[0] if begins else len(accept)
    return _with_length(accept[:at] + refusals + accept[at:])


def _proposed(request: bytes, begin: int, end: int) -> tuple[bytes, bytes]:
    """The abstract syntax of one context, and the item that refuses it: with its first transfer syntax, which says
    nothing."""
    context_id = request[begin]
    syntaxes = list(_items(request, begin + 4, end))
    if context_id % 2 == 0 or [kind for kind, *_ in syntaxes[:2]] != [_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX]:
        raise _Unusual
    (_, begin, end), (_, transfer_begin, transfer_end) = syntaxes[:2]
    answer = bytes((context_id, 0, _ABSTRACT_SYNTAX_NOT_SUPPORTED, 0)) + request[transfer_begin:transfer_end]
    return request[begin + _ITEM.size : end].rstrip(b"\0"), _ITEM.pack(_ANSWERED, len(answer)) + answer


def _items(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type, begin and end of each, its header included."""
    while at < end:
        kind, length = _ITEM.unpack_from(content, at)
        begin, at = at, at + _ITEM.size + length
        if at > end:
            raise _Unusual
        yield kind, begin, at


def _with_length(pdu: bytes) -> bytes:
    return _HEADER.pack(pdu[0], len(pdu) - _HEADER.size) + pdu[_HEADER.size :]
