"""What happens to files on their way: bits flip, the end is missing, a length or a size becomes absurd."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

_ABSURD = (0, 1, 2, 3, 7, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
# (group, element) of what decides about sizes, places and decoding.
_TELLING_TAGS = (
    *(
        (0x0028, element)
        for element in (0x0002, 0x0004, 0x0008, 0x0010, 0x0011, 0x0030, 0x0100, 0x0101, 0x0102, 0x0103)
    ),
    *((0x0028, element) for element in (0x0120, 0x0121, 0x1052, 0x1053, 0x1054, 0x9110)),
    *((0x0020, element) for element in (0x000D, 0x000E, 0x0032, 0x0037, 0x0052, 0x9113, 0x9116, 0x9111)),
    *((0x0008, element) for element in (0x0005, 0x0008, 0x0016, 0x0018, 0x0060)),
    *((0x0062, element) for element in (0x0001, 0x0002, 0x0004, 0x000A, 0x000B, 0x000E)),
    *((0x5200, 0x9229), (0x5200, 0x9230), (0x7FE0, 0x0010), (0x0002, 0x0000), (0x0002, 0x0010)),
)
_VALUE_REPRESENTATIONS = (b"UN", b"SQ", b"OB", b"OW", b"US", b"DS", b"UI", b"AT", b"FD", b"??")
_WORDS = (b"", b"0", b"-1", b"1e400", b"nan", b"1\\2", b"9" * 40, b"\\\\\\", b"LOCALIZER", b"1.2.840.10008.1.2.5")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The content after one to four mishaps."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        content = chance.choice(_MISHAPS)(content, chance)
    return content


def _bits_flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[_place(changed, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _bytes_change(content: bytes, chance: random.Random) -> bytes:
    at = _place(content, chance)
    return content[:at] + chance.randbytes(chance.choice((1, 2, 4, 16))) + content[at + 4 :]


def _the_end_is_missing(content: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)]


def _a_piece_is_missing(content: bytes, chance: random.Random) -> bytes:
    at = _place(content, chance)
    return content[:at] + content[at + chance.choice((1, 2, 4, 128, 1000)) :]


def _a_piece_comes_twice(content: bytes, chance: random.Random) -> bytes:
    at = _place(content, chance)
    return content[:at] + content[at : at + chance.choice((2, 8, 128, 1000))] * chance.choice((2, 3, 50)) + content[at:]


def _a_number_is_absurd(content: bytes, chance: random.Random) -> bytes:
    at = _place(content, chance)
    number = struct.pack(chance.choice("<>") + "Q", chance.choice(_ABSURD))
    size = chance.choice((1, 2, 4, 8))
    piece = number[:size] if chance.random() < 0.5 else number[-size:]
    return content[:at] + piece + content[at + size :]


def _an_element_is_absurd(content: bytes, chance: random.Random) -> bytes:
    """The length or the value of a DICOM element that decides about something; elsewhere as `_a_number_is_absurd`."""
    group, element = chance.choice(_TELLING_TAGS)
    at = content.find(struct.pack("<HH", group, element))
    if at < 0:
        return _a_number_is_absurd(content, chance)
    changed = bytearray(content)
    match chance.randrange(4):
        case 0:
            changed[at + 4 : at + 6] = chance.choice(
                (b"UN", b"SQ", b"OB", b"OW", b"US", b"DS", b"UI", b"AT", b"FD", b"??")
            )
        case 1:
            changed[at + 6 : at + 8] = struct.pack("<H", chance.choice(_ABSURD) & 0xFFFF)
        case 2:
            changed[at + 8 : at + 12] = struct.pack("<I", chance.choice(_ABSURD))
        case _:
            word = chance.choice(_WORDS)
            changed[at + 8 : at + 8 + len(word)] = word
    return bytes(changed)


def _place(content: bytes | bytearray, chance: random.Random) -> int:
    """Anywhere, but mostly near the start, where headers are."""
    end = max(1, len(content))
    return chance.randrange(min(end, 2000) if chance.random() < 0.5 else end)


_MISHAPS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _bits_flip,
    _bytes_change,
    _the_end_is_missing,
    _a_piece_is_missing,
    _a_piece_comes_twice,
    _a_number_is_absurd,
    _an_element_is_absurd,
    _an_element_is_absurd,
)
