"""An instance as a file of PS3.10, as it is stored or transcoded to Explicit VR Little Endian."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from imaging.errors import InputError
from services.dicom.file_meta import mapped, read_file_meta
from services.dicom.headers import MALFORMED, integer
from services.dicom.pixel_reader import transfer_syntax_uid_of
from services.dicomweb.accept import MediaRange, NotAcceptable
from services.dicomweb.frames import Frames, file_chunks

DICOM = "application/dicom"
STORED = "*"


def wanted_syntaxes(ranges: list[MediaRange]) -> list[str]:
    """Transfer syntaxes in which the client takes instances, what it likes best first; `STORED` is any.

    Where none is said it is Explicit VR Little Endian (PS3.18 section 8.7.3.5.2).
    """
    return [one.transfer_syntax_uid or ExplicitVRLittleEndian for one in ranges if one.multipart and one.takes(DICOM)]


def given_syntax(wanted: list[str], stored: str) -> str:
    """In which of the wanted transfer syntaxes an instance is given that is stored in `stored`.

    Raises:
        NotAcceptable: in none.
    """
    for syntax in wanted:
        if syntax in (STORED, stored):
            return stored
        if syntax == ExplicitVRLittleEndian:
            return syntax
    raise NotAcceptable(
        f"the instance is stored in {UID(stored).name}, which is not accepted",
        remedy='accept multipart/related; type="application/dicom"; transfer-syntax=*',
    )


def instance_file(path: Path, syntax: str, stored: str) -> Iterator[bytes]:
    """Raises NotAcceptable where its pixels cannot be decoded here."""
    if syntax != stored:
        yield _rewritten(path, transcode=True)
    elif _is_whole_file(path):
        yield from file_chunks(path)
    else:  # uploaded without preamble or file meta information
        yield _rewritten(path, transcode=False)


def _is_whole_file(path: Path) -> bool:
    try:
        read_file_meta(mapped(path))
    except InputError:
        return False
    return True


def _rewritten(path: Path, *, transcode: bool) -> bytes:
    try:
        dataset: Dataset = dcmread(path, force=True)
        stored = UID(transfer_syntax_uid_of(dataset))
        if transcode:
            if stored.is_encapsulated or not stored.is_little_endian:
                _decode_pixels(dataset, path)
            if not stored.is_little_endian:
                _check_has_no_other_words(dataset)
        dataset = _without_original_encoding(dataset)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if transcode else stored
        written = BytesIO()
        dataset.save_as(written, enforce_file_format=True)  # which adds the rest of the file meta information
        return written.getvalue()
    except MALFORMED as error:
        raise NotAcceptable(
            f"the instance cannot be written in another transfer syntax ({type(error).__name__})",
            remedy="accept it as it is stored: transfer-syntax=*",
        ) from error


def _decode_pixels(dataset: Dataset, path: Path) -> None:
    frames = Frames(path)
    if frames.count == 0:
        return
    if integer(dataset, "SamplesPerPixel") not in (None, 1):
        raise NotAcceptable("a colour image is given as it is stored", remedy="accept transfer-syntax=*")
    pixels = b"".join(map(frames.decoded, range(frames.count)))
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"):
        if keyword in dataset:
            del dataset[keyword]
    vr = "OW" if (integer(dataset, "BitsAllocated") or 16) > 8 else "OB"
    dataset.add_new("PixelData", vr, pixels + b"\0" * (len(pixels) % 2))


def _check_has_no_other_words(dataset: Dataset) -> None:
    """Values of VR OW are bytes to pydicom, which does not swap them. Pixel data are in little endian already."""
    if any(element.VR == "OW" and element.keyword != "PixelData" for element in dataset.iterall()):
        raise NotAcceptable(
            "a big endian instance with look-up tables is given as it is stored", remedy="accept transfer-syntax=*"
        )


def _without_original_encoding(dataset: Dataset) -> Dataset:
    """The same elements, none of them still as it was read: those pydicom would write back as they are."""
    converted = Dataset()
    for element in dataset:
        if element.VR == "SQ":
            items = [_without_original_encoding(item) for item in element.value]
            converted.add_new(element.tag, "SQ", items)
        else:
            converted.add(element)
    return converted
