"""Files that break the Standard as archives do: read as they are meant, or refused by name."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_charset_files
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from imaging.errors import InputError, InputTooLarge, NotAnalysable
from services.dicom.headers import read_header
from services.dicom.seg_writer import write_seg
from services.dicom.series_reader import read_series
from services.ingest.upload import inspect_upload
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import IDENTITY, counting_volume, edit, made_result, written_series

CHARACTER_SETS = sorted(Path(str(name)) for name in get_charset_files("*.dcm"))


def encoded(dataset: Dataset, *, implicit: bool = False, big_endian: bool = False) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, not big_endian
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def without_meta(implicit: bool, big_endian: bool) -> Callable[[FileDataset], bytes]:
    def written(dataset: FileDataset) -> bytes:
        if big_endian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
        return encoded(dataset, implicit=implicit, big_endian=big_endian)

    return written


def with_implicit_meta(dataset: FileDataset) -> bytes:
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return b"\0" * 128 + b"DICM" + encoded(dataset.file_meta, implicit=True) + encoded(dataset, implicit=True)


def without_preamble(dataset: FileDataset) -> bytes:
    return encoded(dataset.file_meta) + encoded(dataset)


def without_syntax(dataset: FileDataset) -> bytes:
    del dataset.file_meta.TransferSyntaxUID
    return b"\0" * 128 + b"DICM" + encoded(dataset.file_meta) + encoded(dataset)


@pytest.mark.parametrize(
    "written",
    [
        without_preamble,
        without_syntax,
        with_implicit_meta,
        without_meta(implicit=True, big_endian=False),
        without_meta(implicit=False, big_endian=False),
        without_meta(implicit=False, big_endian=True),
    ],
    ids=["no preamble", "no syntax", "implicit meta", "implicit, no meta", "explicit, no meta", "big endian, no meta"],
)
def test_files_without_the_frame_of_ps3_10_are_read(tmp_path: Path, written: Callable[[FileDataset], bytes]) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        path.write_bytes(written(pydicom.dcmread(path)))
    assert inspect_upload(paths).instance_count == 6
    np.testing.assert_array_equal(read_series(paths).volume.hu, counting_volume().hu)


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    length = struct.pack("<HI", 0, len(value)) if vr == b"UN" else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + vr + length + value


def replaced(path: Path, keyword: str, vr: bytes, value: bytes) -> None:
    """The element rewritten byte by byte, as no library would."""
    dataset = pydicom.dcmread(path)
    tag = dataset[keyword].tag
    before = encoded(dataset)
    one = Dataset()
    one.add(dataset[keyword])
    old = encoded(one)
    assert before.count(old) == 1
    meta = path.read_bytes()[: -len(before)]
    path.write_bytes(meta + before.replace(old, element(tag.group, tag.element, vr, value)))


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("PixelSpacing", b"DS", b" 0.80 \\ +7.0E-1"),
        ("PixelSpacing", b"DS", b"0.8000000000000000000\\0.70000000000000000001"),
        ("PixelSpacing", b"DS", b"0.8\\0.7\0"),
        ("PixelSpacing", b"DS", b"0.8\\0.7"),
        ("PixelSpacing", b"LO", b"0.8\\0.7 "),
        ("PixelSpacing", b"UN", b"0.8\\0.7 "),
        ("Rows", b"SS", struct.pack("<h", 16)),
        ("Rows", b"IS", b"16"),
        ("RescaleIntercept", b"DS", b"-0.0000 "),
        ("InstanceNumber", b"IS", b"1.0 "),
        ("InstanceNumber", b"IS", b"none"),
        ("SliceThickness", b"DS", b"0,625 "),
        ("PatientName", b"PN", b"\xff\xfe^\x80" * 40),
        ("StudyDate", b"DA", b"yesterday "),
    ],
)
def test_odd_values_are_read_as_they_are_meant(tmp_path: Path, keyword: str, vr: bytes, value: bytes) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        replaced(path, keyword, vr, value)
    source = read_series(paths)
    np.testing.assert_array_equal(source.volume.hu, counting_volume().hu)
    np.testing.assert_allclose(source.volume.affine_lps, counting_volume().affine_lps, atol=1e-6)
    assert write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY).path.is_file()


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "code"),
    [
        ("PixelSpacing", b"DS", b"0,8\\0,7 ", "geometry.no_geometry"),
        ("PixelSpacing", b"DS", b"0.8 ", "geometry.no_geometry"),
        ("PixelSpacing", b"DS", b"nan\\0.7 ", "geometry.no_geometry"),
        ("PixelSpacing", b"DS", b"-0.8\\0.7", "geometry.no_geometry"),
        ("ImageOrientationPatient", b"DS", b"1\\0\\0\\1\\0\\0 ", "geometry.no_geometry"),
        ("ImagePositionPatient", b"DS", b"1e400\\0\\0 ", "geometry.no_geometry"),
        ("RescaleSlope", b"DS", b"1,0 ", "pixels.not_hu"),
        ("Rows", b"US", b"\0\0", "input.no_image"),
        ("Rows", b"US", b"\x11\0", "pixels.unreadable"),
        ("BitsAllocated", b"US", b"\x0c\0", "pixels.unreadable"),
        ("SOPClassUID", b"UI", b"", "input.not_dicom"),
    ],
)
def test_values_without_a_meaning_are_refused_with_their_code(
    tmp_path: Path, keyword: str, vr: bytes, value: bytes, code: str
) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        replaced(path, keyword, vr, value)
    with pytest.raises((NotAnalysable, InputError)) as refusal:
        read_series(paths)
    assert refusal.value.code == code


def test_private_elements_and_sequences_of_undefined_length_are_passed_over(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    for path in paths:

        def add(dataset: Dataset) -> None:
            block = dataset.private_block(0x0019, "SOME SCANNER", create=True)
            item = Dataset()
            item.PatientComments = "inner"
            inner = item.private_block(0x0021, "SOME SCANNER", create=True)
            inner.add_new(0x01, "UN", b"\x00\x01\x02\x03")
            block.add_new(0x01, "SQ", [item])
            block.add_new(0x02, "OB", bytes(200))
            block.add_new(0x03, "DS", "1.5")
            dataset.ReferencedImageSequence = [Dataset()]
            dataset[0x00191001].is_undefined_length = True
            dataset["ReferencedImageSequence"].is_undefined_length = True

        edit(path, add)
    source = read_series(paths)
    np.testing.assert_array_equal(source.volume.hu, counting_volume().hu)
    assert "ReferencedImageSequence" in source.headers[0]


def with_length(path: Path, keyword: str, length: int) -> None:
    content = bytearray(path.read_bytes())
    tag = pydicom.dcmread(path)[keyword].tag
    at = content.index(struct.pack("<HH", tag.group, tag.element))
    content[at + 8 : at + 12] = struct.pack("<I", length)
    path.write_bytes(content)


@pytest.mark.parametrize("length", [0xFFFFFFFE, 0x7FFFFFFF, 1 << 20])
def test_a_sequence_beyond_the_end_of_the_file_is_refused(tmp_path: Path, length: int) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "ReferencedImageSequence", [Dataset()]))
        with_length(path, "ReferencedImageSequence", length)
    with pytest.raises((NotAnalysable, InputError)):
        read_series(paths)


@pytest.mark.parametrize("length", [0xFFFFFFFE, 0x7FFFFFFF, 1 << 20])
def test_pixel_data_announced_longer_than_they_are_is_read_when_all_of_it_is_there(tmp_path: Path, length: int) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        with_length(path, "PixelData", length)
    np.testing.assert_array_equal(read_series(paths).volume.hu, counting_volume().hu)
    paths[0].write_bytes(paths[0].read_bytes()[:-2])
    with pytest.raises(NotAnalysable) as refusal:
        read_series(paths)
    assert refusal.value.code == "pixels.unreadable"


@pytest.mark.parametrize("cut", [140, 300, 500, 700, 900])
def test_a_file_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    paths = written_series(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:cut])
    with pytest.raises((NotAnalysable, InputError)):
        read_series(paths)


@pytest.mark.parametrize("file", CHARACTER_SETS, ids=lambda file: file.stem)
def test_names_of_every_character_set_come_back_in_the_result(tmp_path: Path, file: Path) -> None:
    written = pydicom.dcmread(file)
    paths = written_series(tmp_path / "series")
    for path in paths:

        def name(dataset: Dataset) -> None:
            dataset["SpecificCharacterSet"] = written["SpecificCharacterSet"]
            dataset.PatientName = written.get("PatientName", "Phantom^One")

        edit(path, name)
    source = read_series(paths)
    result = write_seg(source, made_result(source.volume), tmp_path / "seg.dcm", identity=IDENTITY)
    assert pydicom.dcmread(result.path).PatientName == written.get("PatientName", "Phantom^One")


def test_there_are_seventeen_character_sets() -> None:
    assert len(CHARACTER_SETS) == 17


@pytest.mark.parametrize("keyword", ["PatientComments", "PixelData", "SOPClassUID"])
def test_a_length_beyond_the_file_takes_no_memory(tmp_path: Path, keyword: str) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        edit(path, lambda dataset: setattr(dataset, "PatientComments", "a comment"))
        content = bytearray(path.read_bytes())
        tag = pydicom.dcmread(path)[keyword].tag
        at = content.index(struct.pack("<HH", tag.group, tag.element))
        content[at + 4 : at + 12] = b"UN\0\0" + struct.pack("<I", 0x7FFFFFFE)
        path.write_bytes(content)
    tracemalloc.start()
    with suppress(NotAnalysable, InputError):
        read_series(paths)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20_000_000


def test_rows_and_columns_beyond_the_pixels_take_no_memory(tmp_path: Path) -> None:
    paths = written_series(tmp_path)
    for path in paths:
        edit(path, lambda dataset: dataset.update({"Rows": 12_000, "Columns": 12_000}))
    tracemalloc.start()
    with pytest.raises(NotAnalysable) as refusal:
        read_series(paths)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refusal.value.code == "pixels.unreadable"
    assert peak_bytes < 20_000_000


def test_a_deflated_file_that_inflates_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written_series(tmp_path)[0]
    dataset = pydicom.dcmread(path)
    dataset.PatientComments = "0" * 1_000_000
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("services.dicom.dicom_file.MAX_INFLATED_BYTES", 900_000)
    with pytest.raises(InputTooLarge, match="inflates to more than 900,000 bytes"):
        read_header(path)


def damaged_frames(path: Path, keyword: str, vr: bytes, value: bytes) -> Path:
    """An Enhanced CT of which the last element of that name became another."""
    written_multi_frame(counting_volume(), path, frame_order=range(6))
    content = bytearray(path.read_bytes())
    tag = tag_for_keyword(keyword)
    assert tag is not None
    at = content.rindex(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
    content[at + 4 : at + 6] = vr
    content[at + 8 : at + 8 + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("PlanePositionSequence", b"US", b""),  # a number where a sequence was
        ("PixelValueTransformationSequence", b"US", b""),
        ("RescaleSlope", b"\x44\0", b""),  # no value representation
        ("PixelMeasuresSequence", b"SQ", b"\x0a\0\0\0"),  # a sequence that ends within its item
    ],
)
def test_damaged_functional_groups_are_refused(tmp_path: Path, keyword: str, vr: bytes, value: bytes) -> None:
    with pytest.raises((NotAnalysable, InputError)):
        read_series([damaged_frames(tmp_path / "enhanced.dcm", keyword, vr, value)])
