"""The commands of C-STORE as bytes: the request as senders write it, and its response (PS3.7 9.3.1).

What is written in another way than this is left to pynetdicom, which reads every command there is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from services.store.study_store import is_uid

_ELEMENT = struct.Struct("<HHI")  # group, element, length: implicit VR, little endian (PS3.7 6.3.1)
_US = struct.Struct("<H")
_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_PRIORITIES = range(3)
_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x0002, 0x1000
_COMMAND, _MESSAGE_ID, _PRIORITY, _DATA_SET_TYPE = 0x0100, 0x0110, 0x0700, 0x0800
_NUMBERS = {_COMMAND, _MESSAGE_ID, _PRIORITY, _DATA_SET_TYPE}
_OTHERS = {0x0000, 0x1030, 0x1031}  # group length; who asked for a C-MOVE, and in which message
_LAST_OF_COMMAND = 0x03  # PS3.8 E.2


@dataclass(frozen=True, slots=True)
class StoreRequest:
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


def parse_store_request(command: bytes) -> StoreRequest | None:
    """None for what is no C-STORE-RQ, or one that is not written as most senders do."""
    numbers: dict[int, int] = {}
    uids: dict[int, str] = {}
    at, last = 0, -1
    while at < len(command):
        if at + _ELEMENT.size > len(command):
            return None
        group, element, length = _ELEMENT.unpack_from(command, at)
        at += _ELEMENT.size
        value = command[at : at + length]
        at += length
        if group != 0 or element <= last or len(value) != length:
            return None
        last = element
        if element in _NUMBERS:
            if length != _US.size:
                return None
            numbers[element] = _US.unpack(value)[0]
        elif element in (_SOP_CLASS_UID, _SOP_INSTANCE_UID):
            if length % 2 or not value.isascii():
                return None
            uids[element] = value.removesuffix(b"\0").decode()
        elif element not in _OTHERS:
            return None
    if numbers.keys() != _NUMBERS or numbers[_COMMAND] != _C_STORE_RQ or numbers[_DATA_SET_TYPE] == _NO_DATA_SET:
        return None
    if len(uids) != 2 or numbers[_PRIORITY] not in _PRIORITIES or not all(map(is_uid, uids.values())):
        return None
    return StoreRequest(numbers[_MESSAGE_ID], uids[_SOP_CLASS_UID], uids[_SOP_INSTANCE_UID])


def store_response(request: StoreRequest, context_id: int, status: int, comment: str = "") -> bytes:
    """The C-STORE-RSP in one P-DATA-TF. `comment` is the Error Comment, at most 64 characters of ASCII."""
    said = _text(0x0902, comment, b" ") if comment else b""
    elements = (
        _text(_SOP_CLASS_UID, request.sop_class_uid, b"\0")
        + _number(_COMMAND, _C_STORE_RSP)
        + _number(0x0120, request.message_id)
        + _number(_DATA_SET_TYPE, _NO_DATA_SET)
        + _number(0x0900, status)
        + said
        + _text(_SOP_INSTANCE_UID, request.sop_instance_uid, b"\0")
    )
    command = _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(elements)) + elements
    fragment = struct.pack(">LBB", len(command) + 2, context_id, _LAST_OF_COMMAND) + command
    return struct.pack(">BBL", 0x04, 0, len(fragment)) + fragment


def _number(element: int, value: int) -> bytes:
    return _ELEMENT.pack(0, element, _US.size) + _US.pack(value)


def _text(element: int, value: str, padding: bytes) -> bytes:
    encoded = value.encode()
    if len(encoded) % 2:
        encoded += padding
    return _ELEMENT.pack(0, element, len(encoded)) + encoded
