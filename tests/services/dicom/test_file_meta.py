"""File meta information, read without pydicom's objects: what is read is what pydicom reads."""

from __future__ import annotations

from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from imaging.errors import InputError
from services.dicom.file_meta import FileMeta, _file_meta_by_pydicom, _plain_file_meta
from tests.services.ingest.peers import ct_series


def _file() -> bytes:
    written = BytesIO()
    ct_series(1)[0].save_as(written, enforce_file_format=True)
    return written.getvalue()


FILE = _file()
_DATA_SET_BEGIN = _file_meta_by_pydicom(memoryview(FILE)).data_set_begin


def by_pydicom(content: bytes) -> FileMeta | None:
    try:
        return _file_meta_by_pydicom(memoryview(content))
    except InputError:
        return None


def test_an_ordinary_file_needs_no_pydicom() -> None:
    assert _plain_file_meta(memoryview(FILE)) == by_pydicom(FILE)


@given(
    changes=st.dictionaries(st.integers(132, _DATA_SET_BEGIN + 4), st.integers(0, 255), max_size=4),
    length=st.just(len(FILE)) | st.integers(132, _DATA_SET_BEGIN + 40),
)
def test_what_is_read_of_a_damaged_file_is_what_pydicom_reads(changes: dict[int, int], length: int) -> None:
    content = bytearray(FILE)
    for at, value in changes.items():
        content[at] = value
    found = _plain_file_meta(memoryview(content)[:length])
    assert found is None or found == by_pydicom(bytes(content[:length]))
