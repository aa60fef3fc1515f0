"""What stands before the data set of a DICOM file: preamble and file meta information (PS3.10 section 7.1)."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Self

from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.dsutils import encode_file_meta

from imaging.errors import InputError
from services.dicom.headers import MALFORMED, text

FILE_PREFIX = b"\x00" * 128 + b"DICM"
_EXPLICIT_VR = struct.Struct("<HH2sH")  # PS3.5 7.1.2
_LONGEST_ELEMENT_HEADER = 12
_NAMING = _SOP_CLASS, _SOP_INSTANCE, _TRANSFER_SYNTAX = 0x0002, 0x0003, 0x0010
_UID_VALUE = re.compile(rb"[0-9.]{1,64}")
_META_BYTES = 64 * 1024  # far more than a dozen identifiers and the private information of one sender


@dataclass(frozen=True, slots=True)
class FileMeta:
    """The file meta information of a DICOM file; `data_set_begin` is the byte behind it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: UID
    data_set_begin: int


@dataclass(frozen=True, slots=True)
class NamedFileMeta:
    """The file meta information that a data set is to be stored with; `encoded` has the preamble in front."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: UID
    encoded: bytes

    @classmethod
    def of(cls, file_meta: FileMetaDataset) -> Self:
        return cls(
            str(file_meta.MediaStorageSOPClassUID),
            str(file_meta.MediaStorageSOPInstanceUID),
            UID(file_meta.TransferSyntaxUID),
            FILE_PREFIX + encode_file_meta(file_meta),
        )

    @classmethod
    def of_c_store(cls, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: UID) -> Self:
        """As pynetdicom has it for a C-STORE request, without a data set of its own for every slice."""
        before, behind = _around_sop_instance_uid(sop_class_uid, transfer_syntax_uid)
        elements = before + _element(0x0003, b"UI", sop_instance_uid) + behind
        length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements))
        return cls(sop_class_uid, sop_instance_uid, transfer_syntax_uid, FILE_PREFIX + length + elements)


@lru_cache(maxsize=64)
def _around_sop_instance_uid(sop_class_uid: str, transfer_syntax_uid: str) -> tuple[bytes, bytes]:
    """The same for every instance of a series."""
    before = (
        struct.pack("<HH2sxxI", 2, 1, b"OB", 2)
        + b"\x00\x01"  # File Meta Information Version
        + _element(0x0002, b"UI", sop_class_uid)
    )
    behind = (
        _element(0x0010, b"UI", transfer_syntax_uid)
        + _element(0x0012, b"UI", PYNETDICOM_IMPLEMENTATION_UID)
        + _element(0x0013, b"SH", PYNETDICOM_IMPLEMENTATION_VERSION)
    )
    return before, behind


def _element(number: int, vr: bytes, value: str) -> bytes:
    encoded = value.encode()
    if len(encoded) % 2:
        encoded += b"\0" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, number, vr, len(encoded)) + encoded


def read_file_meta(content: memoryview) -> FileMeta:
    """Read the file meta of a whole file; its announced length is not believed.

    Raises:
        InputError: `input.not_dicom` where there is no preamble or no transfer syntax.
    """
    if bytes(content[: len(FILE_PREFIX)])[-4:] != b"DICM":
        raise _no_file("it does not begin with a preamble and DICM")
    return _plain_file_meta(content) or _file_meta_by_pydicom(content)


def _plain_file_meta(content: memoryview) -> FileMeta | None:
    """None where anything is unusual, for pydicom to judge: it takes a quarter of a millisecond."""
    found: dict[int, str] = {}
    at, last = len(FILE_PREFIX), -1
    end = min(len(content), at + _META_BYTES)
    while at + _LONGEST_ELEMENT_HEADER <= end:
        group, element, vr, length = _EXPLICIT_VR.unpack_from(content, at)
        if group != 2:
            if group < 2 or len(found) < len(_NAMING):
                return None
            return FileMeta(found[_SOP_CLASS], found[_SOP_INSTANCE], UID(found[_TRANSFER_SYNTAX]), at)
        if element <= last or vr not in (b"UL", b"OB", b"UI", b"SH", b"AE"):
            return None
        last, at = element, at + 8
        if vr == b"OB":
            length, at = int.from_bytes(content[at : at + 4], "little"), at + 4
        if element in _NAMING:
            value = bytes(content[at : at + length]).removesuffix(b"\0")
            if vr != b"UI" or not _UID_VALUE.fullmatch(value):
                return None
            found[element] = value.decode()
        at += length
    return None


def _file_meta_by_pydicom(content: memoryview) -> FileMeta:
    encoded = BytesIO(content[: len(FILE_PREFIX) + _META_BYTES])
    encoded.seek(len(FILE_PREFIX))
    try:
        found = FileMetaDataset(read_dataset(encoded, False, True, stop_when=lambda tag, *_: tag.group != 2))
    except MALFORMED as error:
        raise _no_file("its file meta information cannot be parsed") from error
    syntax = UID(text(found, "TransferSyntaxUID"))
    if not syntax:
        raise _no_file("its file meta information names no transfer syntax")
    class_uid, instance_uid = text(found, "MediaStorageSOPClassUID"), text(found, "MediaStorageSOPInstanceUID")
    return FileMeta(class_uid, instance_uid, syntax, encoded.tell())


def _no_file(why: str) -> InputError:
    return InputError(f"not a DICOM file: {why}", code="input.not_dicom", remedy="send files of PS3.10")


def mapped(path: Path) -> memoryview:
    """The bytes of a file, read from the disk as they are looked at."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
