"""What stands before the data set of a DICOM file: preamble and file meta information (PS3.10 section 7.1)."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from imaging.errors import InputError
from services.dicom.headers import MALFORMED, text

FILE_PREFIX = b"\x00" * 128 + b"DICM"
_META_BYTES = 64 * 1024  # far more than a dozen identifiers and the private information of one sender


@dataclass(frozen=True, slots=True)
class FileMeta:
    """The file meta information of a DICOM file; `data_set_begin` is the byte behind it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: UID
    data_set_begin: int


def read_file_meta(content: memoryview) -> FileMeta:
    """Read the file meta of a whole file; its announced length is not believed.

    Raises:
        InputError: `input.not_dicom` where there is no preamble or no transfer syntax.
    """
    if bytes(content[: len(FILE_PREFIX)])[-4:] != b"DICM":
        raise _no_file("it does not begin with a preamble and DICM")
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
