"""Reading a DICOM file's attributes from hostile input: every failure is an `InputError`, every odd value a None."""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.config
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag
from pydicom.uid import MediaStorageDirectoryStorage
from pydicom.valuerep import DSfloat, format_number_as_ds

from imaging.errors import InputError
from services.dicom.dicom_file import opened_dicom
from services.dicom.plain_header import plain_header, shared_tag

# What is read here is checked here, value by value; pydicom's warnings would put patients' names into the logs.
# For the process and not around each call, since warning filters are no thread's own.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

# What pydicom lets through on malformed bytes (it parses values on access, so reading an attribute can raise them too).
MALFORMED = (
    InvalidDicomError,
    BytesLengthException,
    struct.error,
    zlib.error,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    OverflowError,
    RecursionError,
)

# Value representations whose values follow from their bytes and the character set alone.
_PARSED_ALONE = frozenset(
    ["AE", "AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"]
)


def read_header(path: Path, *, keywords: Sequence[str] | None = None) -> Dataset:
    """Everything of the file before its pixel data; only `keywords` where given.

    Raises:
        InputError: `input.unreadable` where the file system refuses; `input.not_dicom` where there is no SOP class.
        InputTooLarge: as `opened_dicom`.
    """
    try:
        header = _plain_header(path, keywords) or read_header_by_pydicom(path, keywords)
    except OSError as error:
        if error.errno is None:  # raised by pydicom about the content, not by the file system
            raise _not_dicom(path) from error
        raise InputError(f"cannot read {path.name}: {error.strerror}", code="input.unreadable") from error
    except MALFORMED as error:
        raise _not_dicom(path) from error
    if not text(header, "SOPClassUID") and not is_directory(header):
        raise _not_dicom(path)
    return header


def _plain_header(path: Path, keywords: Sequence[str] | None) -> Dataset | None:
    try:
        return plain_header(path, None if keywords is None else [_tag(keyword) for keyword in keywords])
    except MALFORMED:
        return None


def read_header_by_pydicom(path: Path, keywords: Sequence[str] | None = None) -> Dataset:
    """As `read_header`, however odd the file is; every failure is the reading library's own."""
    with opened_dicom(path, header_only=True) as file:
        return dcmread(
            file, stop_before_pixels=True, force=True, specific_tags=None if keywords is None else list(keywords)
        )


def _not_dicom(path: Path) -> InputError:
    return InputError(
        f"{path.name} is not a DICOM file",
        code="input.not_dicom",
        remedy="hand in DICOM files, a zip of them, one NIfTI or one NRRD",
    )


def is_directory(header: Dataset) -> bool:
    """Whether this is a DICOMDIR (PS3.3 Annex F), which lists images but is none."""
    meta = getattr(header, "file_meta", None)
    return meta is not None and text(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage


def text(header: Dataset, keyword: str) -> str:
    """The attribute as stripped text, several values joined by backslash; empty where absent or malformed."""
    try:
        value = _parsed(header, keyword)
        if value is None:
            return ""
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            return str(value).strip()
        return "\\".join(str(item) for item in value).strip()
    except MALFORMED:
        return ""


def _parsed(header: Dataset, keyword: str) -> Any:
    """The attribute's value, or None. pydicom parses it here, and says OSError where bytes in memory end early."""
    try:
        element = header._dict.get(_tag(keyword))
        if isinstance(element, RawDataElement) and element.VR in _PARSED_ALONE and element.value is not None:
            encodings = header.original_character_set
            if encodings:
                return _parsed_alone(
                    keyword,
                    element.VR,
                    element.value,
                    element.is_little_endian,
                    encodings if isinstance(encodings, str) else tuple(encodings),
                )
        return None if element is None else header.get(keyword)
    except OSError as error:
        raise ValueError(f"{keyword} is malformed") from error


@lru_cache(maxsize=1024)
def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return shared_tag(tag)


@lru_cache(maxsize=1024)
def _parsed_alone(keyword: str, vr: str, value: bytes, is_little_endian: bool, encodings: str | tuple[str, ...]) -> Any:
    """The value, parsed once for all slices of a series that have the same."""
    raw = RawDataElement(_tag(keyword), vr, len(value), value, 0, False, is_little_endian)
    return convert_raw_data_element(raw, encoding=encodings if isinstance(encodings, str) else list(encodings)).value


def number(header: Dataset, keyword: str) -> float | None:
    """The attribute as one finite number, or None."""
    try:
        value = _parsed(header, keyword)
        if isinstance(value, int | float):  # as nearly always; numpy takes five times as long
            return float(value) if math.isfinite(value) else None
    except MALFORMED:
        return None
    values = _finite_numbers(value, 1)
    return None if values is None else float(values[0])


def integer(header: Dataset, keyword: str) -> int | None:
    value = number(header, keyword)
    return int(value) if value is not None and value == math.floor(value) else None


def numbers(header: Dataset, keyword: str, count: int) -> NDArray[np.float64] | None:
    """The attribute as exactly `count` finite numbers, or None."""
    try:
        value = _parsed(header, keyword)
    except MALFORMED:
        return None
    return _finite_numbers(value, count)


def _finite_numbers(value: Any, count: int) -> NDArray[np.float64] | None:
    if value is None or isinstance(value, bytes):
        return None
    try:
        values = np.array(value, dtype=np.float64, ndmin=1)
    except MALFORMED:
        return None
    return values if values.shape == (count,) and all(map(math.isfinite, values.tolist())) else None


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent.

    Raises:
        ValueError or another of `MALFORMED`: it is no sequence, or cannot be read.
    """
    found = list(_parsed(header, keyword) or [])
    if not all(isinstance(item, Dataset) for item in found):
        raise ValueError(f"{keyword} is no sequence")
    return found


def first_item(header: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence, or None."""
    try:
        return next(iter(items(header, keyword)), None)
    except MALFORMED:
        return None


def decimal_strings(values: object) -> list[DSfloat]:
    """Numbers as DS values to write, at most 16 characters each (PS3.5 6.2); minus zero becomes zero."""
    return [DSfloat(format_number_as_ds(float(value) + 0.0)) for value in np.asarray(values, dtype=np.float64)]
