"""To which series does an encoded data set belong: its first few elements, without decoding the rest."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from imaging.errors import InputError
from services.dicom.file_meta import NamedFileMeta
from services.dicom.headers import MALFORMED, integer, text
from services.dicom.storage import CT_STORAGE_SOP_CLASSES
from services.ingest.arriving_data_set import InMemory
from services.ingest.identifier_scan import scan_identifiers
from services.ingest.storage_status import MISMATCH, UNSUPPORTED_SOP_CLASS
from services.store.study_store import checked_uid

_SERIES_INSTANCE_UID = Tag(0x0020, 0x000E)
_NUMBER_OF_SERIES_RELATED_INSTANCES = Tag(0x0020, 0x1209)
# fmt: off
_NEEDED = [
    Tag(0x0008, 0x0016), Tag(0x0008, 0x0018), Tag(0x0020, 0x000D), _SERIES_INSTANCE_UID,
    _NUMBER_OF_SERIES_RELATED_INSTANCES,
]
# fmt: on
_SCANNED_NEVER = (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
_INFLATED_BYTES = 1024**2  # of a deflated data set: far more than what lies before group 0028


@dataclass(frozen=True, slots=True)
class Identifiers:
    """What an instance says of itself.

    Attributes:
        announced_instances: Number of Series Related Instances (0020,1209), where it was looked for and is there.
            Images in Acquisition (0020,1002) is no substitute: an acquisition may be sent as several series.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    announced_instances: int | None = None


def read_identifiers(encoded: BinaryIO, transfer_syntax_uid: UID, *, with_announcement: bool) -> Identifiers:
    """Read the identifying elements of an encoded data set (no file meta) and nothing behind them.

    Args:
        encoded: positioned at the first element; other values are skipped, not read.
        with_announcement: look for the announced number of instances too, a little further on.

    Raises:
        InputError: `input.malformed_data_set`, or `input.invalid_uid` where an identifier is missing or is no UID.
    """
    last = _NUMBER_OF_SERIES_RELATED_INSTANCES if with_announcement else _SERIES_INSTANCE_UID

    def beyond(tag: BaseTag, vr: str | None, length: int) -> bool:
        return bool(tag > last)

    try:
        if isinstance(encoded, InMemory) and not with_announcement and transfer_syntax_uid not in _SCANNED_NEVER:
            rest = encoded.content[encoded.tell() :]
            if (scanned := scan_identifiers(rest, is_implicit_vr=transfer_syntax_uid.is_implicit_VR)) is not None:
                return Identifiers(*scanned)
        if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            deflated = encoded.read(_INFLATED_BYTES)
            encoded = BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, _INFLATED_BYTES))
        found = read_dataset(
            encoded,
            transfer_syntax_uid.is_implicit_VR,
            transfer_syntax_uid.is_little_endian,
            stop_when=beyond,
            specific_tags=list(_NEEDED),
        )
    except OSError as error:
        if error.errno is not None:  # the disk's
            raise
        raise _cannot_be_parsed() from error  # pydicom's, of a sequence that is cut off
    except MALFORMED as error:
        raise _cannot_be_parsed() from error
    announced = integer(found, "NumberOfSeriesRelatedInstances") if with_announcement else None
    return Identifiers(
        sop_class_uid=checked_uid(text(found, "SOPClassUID")),
        sop_instance_uid=checked_uid(text(found, "SOPInstanceUID")),
        study_instance_uid=checked_uid(text(found, "StudyInstanceUID")),
        series_instance_uid=checked_uid(text(found, "SeriesInstanceUID")),
        announced_instances=announced if announced is not None and announced > 0 else None,
    )


def identify(encoded: BinaryIO, meta: NamedFileMeta, *, with_announcement: bool) -> Identifiers:
    """What a data set from its beginning says of itself.

    Raises:
        InputError: no CT, not the instance that the file meta names, or not readable.
    """
    check_is_ct(meta.sop_class_uid)
    encoded.seek(0)
    found = read_identifiers(encoded, meta.transfer_syntax_uid, with_announcement=with_announcement)
    check_is_named(found, meta.sop_class_uid, meta.sop_instance_uid)
    return found


def check_is_ct(sop_class_uid: str) -> None:
    """Raises InputError: another SOP class is not taken in."""
    if sop_class_uid not in CT_STORAGE_SOP_CLASSES.values():
        raise InputError(f"not a CT: {sop_class_uid}", code=UNSUPPORTED_SOP_CLASS)


def check_is_named(found: Identifiers, sop_class_uid: str, sop_instance_uid: str) -> None:
    """Raises InputError where the data set is not the instance that the sender names beside it."""
    if (sop_class_uid, sop_instance_uid) != (found.sop_class_uid, found.sop_instance_uid):
        raise InputError("the data set is not the instance that the request names", code=MISMATCH)


def _cannot_be_parsed() -> InputError:
    return InputError("the data set cannot be parsed", code="input.malformed_data_set")
