"""The fast way to a series and the plain one, by pydicom file by file: the same, and little is read for it."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from services.dicom import pixel_reader, rle_decoder
from services.dicom.headers import read_header, read_header_by_pydicom
from services.dicom.image_plane import planes_of
from services.dicom.pixel_reader import read_hu, stored_values, stored_values_by_pydicom
from services.dicom.plain_header import plain_header
from services.dicom.plain_pixels import compressed_values, plain_values
from services.dicom.series_reader import read_series
from tests.services.dicom.made_series import counting_volume, edit, written_series

_LARGE_ENOUGH = (6, 32, 40)  # for the encoder of JPEG 2000


def richer(dataset: Dataset) -> None:
    """With what scanners write beside: sequences of both kinds, private elements, names beyond ASCII."""
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    item.PurposeOfReferenceCodeSequence = [Dataset()]
    dataset.ReferencedImageSequence = Sequence([item])
    dataset.SourceImageSequence = Sequence([item])
    dataset["SourceImageSequence"].is_undefined_length = True
    dataset.PatientName = "Müller^Jürgen"
    block = dataset.private_block(0x0009, "VENDOR", create=True)
    block.add_new(1, "LO", "a private value")
    block.add_new(2, "OB", b"\0\1")
    dataset.SliceThickness = None


@pytest.mark.parametrize("comment_bytes", [0, 8_000, 10_000, 100_000])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.keyword)
def test_a_header_read_in_one_piece_is_the_one_that_pydicom_reads(
    tmp_path: Path, syntax: pydicom.uid.UID, comment_bytes: int
) -> None:
    path = written_series(tmp_path)[0]
    dataset = pydicom.dcmread(path)
    richer(dataset)
    dataset.add_new("TextValue", "UT", "x" * comment_bytes)
    dataset.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    read, by_pydicom = plain_header(path), read_header_by_pydicom(path)
    assert read is not None
    assert read == by_pydicom
    assert read.file_meta == by_pydicom.file_meta
    assert read.original_encoding == by_pydicom.original_encoding
    assert read.original_character_set == by_pydicom.original_character_set
    assert read.pixel_data is not None
    end = read.pixel_data.offset + (read.pixel_data.length or 0)
    assert path.read_bytes()[read.pixel_data.offset : end] == dataset.PixelData
    some = plain_header(path, [0x00100010, 0x00081140])
    assert some is not None
    assert [element.keyword for element in some] == ["SpecificCharacterSet", "ReferencedImageSequence", "PatientName"]


@pytest.mark.parametrize("cut", [0, 100, 131, 200, 400, 1000])
def test_a_header_that_ends_early_is_left_to_pydicom(tmp_path: Path, cut: int) -> None:
    path = written_series(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:cut])
    assert plain_header(path) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits_stored=st.integers(1, 16),
    signed=st.booleans(),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    slope=st.sampled_from(["1", "1.0", "0.5", "-1", "2.0002442"]),
    intercept=st.sampled_from(["0", "-1024", "-8192", "1000", "40000", "-70000", "0.5"]),
    padding=st.one_of(st.none(), st.integers(0, 65535)),
    implicit=st.booleans(),
    seed=st.integers(0, 99),
)
def test_hu_straight_from_the_file_are_those_that_pydicom_and_wide_arithmetic_give(
    tmp_path: Path,
    bits_stored: int,
    signed: bool,
    photometric: str,
    slope: str,
    intercept: str,
    padding: int | None,
    implicit: bool,
    seed: int,
) -> None:
    path = tmp_path / "000001.dcm"
    if not path.exists():
        written_series(tmp_path)
    dataset = pydicom.dcmread(path)
    values = np.random.default_rng(seed).integers(0, 65536, (16, 24), dtype=np.uint16)  # unused bits among them
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits_stored, bits_stored - 1, int(signed)
    dataset.PhotometricInterpretation, dataset.RescaleSlope, dataset.RescaleIntercept = photometric, slope, intercept
    if padding is not None:
        values[0, :3] = padding
        dataset.add_new("PixelPaddingValue", "US", padding)
    elif "PixelPaddingValue" in dataset:
        del dataset.PixelPaddingValue
    dataset.PixelData = values.tobytes()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    other = tmp_path / "changed.dcm"
    pydicom.dcmwrite(other, dataset, implicit_vr=implicit, little_endian=True)

    (plane,) = planes_of(other, read_header(other))
    straight = plain_values(plane)
    assert straight is not None
    plain = stored_values(other, None)
    np.testing.assert_array_equal(straight, plain)
    expected = np.clip(np.rint(plain.astype(np.float64) * float(slope) + float(intercept)), -1024, 32767)
    if (limits := pixel_reader._padding_range(plane.header)) is not None:
        is_padding = (plain >= limits[0]) & (plain <= limits[1])
        ends = [limit * float(slope) + float(intercept) for limit in limits]
        is_tissue = max(ends) > -900 and min(ends) < 3071
        if not is_tissue or is_padding[[0, 0, -1, -1], [0, -1, 0, -1]].any():
            expected[is_padding] = -1024
    target = np.full((16, 24), 7, dtype=np.int16)
    assert read_hu(plane, out=target) is target
    np.testing.assert_array_equal(target, expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    syntax=st.sampled_from([JPEG2000Lossless, JPEGLSLossless, JPEGLSNearLossless, RLELossless]),
    bits_stored=st.integers(2, 16),
    announced_bits=st.sampled_from([0, 0, 0, -1, 1]),
    signed=st.booleans(),
    fragments=st.sampled_from([1, 1, 1, 2]),
    cut=st.sampled_from([0, 0, 0, 1, 40]),
    seed=st.integers(0, 99),
)
def test_compressed_values_straight_from_the_decoder_are_those_of_pydicom(
    tmp_path: Path,
    syntax: pydicom.uid.UID,
    bits_stored: int,
    announced_bits: int,
    signed: bool,
    fragments: int,
    cut: int,
    seed: int,
) -> None:
    path = tmp_path / "000001.dcm"
    if not path.exists():
        written_series(tmp_path, counting_volume(_LARGE_ENOUGH))
    dataset = pydicom.dcmread(path)
    lowest = -(2 ** (bits_stored - 1)) if signed else 0
    rng = np.random.default_rng(seed)
    values = rng.integers(lowest, lowest + 2**bits_stored, _LARGE_ENOUGH[1:]).astype(np.int16 if signed else np.uint16)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits_stored, bits_stored - 1, int(signed)
    dataset.PixelData = values.tobytes()
    dataset.compress(syntax, generate_instance_uid=False, **({"jls_error": 1} if syntax == JPEGLSNearLossless else {}))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: len(frame) - cut]], fragments_per_frame=fragments)
    dataset.BitsStored = min(16, bits_stored + announced_bits)
    dataset.HighBit = dataset.BitsStored - 1
    other = tmp_path / "changed.dcm"
    dataset.save_as(other)

    straight = compressed_values(other)
    if straight is not None:
        by_pydicom = stored_values_by_pydicom(other, None)
        assert straight.dtype == by_pydicom.dtype
        np.testing.assert_array_equal(straight, by_pydicom)
    is_plain = bits_stored > 8 and not announced_bits and fragments == 1 and not cut
    assert straight is not None or not is_plain


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda uid: uid.keyword)
def test_a_compressed_series_is_the_uncompressed_one(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    paths = written_series(tmp_path, counting_volume(_LARGE_ENOUGH))
    expected = read_series(paths).volume.hu
    for path in paths:
        edit(path, lambda dataset: dataset.compress(syntax, generate_instance_uid=False))
        assert compressed_values(path) is not None
    np.testing.assert_array_equal(read_series(paths).volume.hu, expected)


def test_a_file_replaced_after_its_header_was_read_is_read_anew(tmp_path: Path) -> None:
    path = written_series(tmp_path)[0]
    (plane,) = planes_of(path, read_header(path))

    def change(dataset: Dataset) -> None:
        dataset.PatientComments = "another header, so that the pixels lie elsewhere"
        dataset.PixelData = np.full((16, 24), 7, dtype="<i2").tobytes()

    edit(path, change)
    assert plain_values(plane) is None
    assert np.all(read_hu(plane) == 7)


def test_every_file_is_opened_twice_and_read_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = written_series(tmp_path, counting_volume((12, 256, 256)))
    opened: list[str] = []
    read_bytes = 0
    really_open, really_pread, really_preadv = os.open, os.pread, os.preadv

    def counting_open(path: str, flags: int, *rest: int) -> int:
        opened.append(str(path))
        return really_open(path, flags, *rest)

    def counting_pread(file: int, size: int, offset: int) -> bytes:
        nonlocal read_bytes
        content = really_pread(file, size, offset)
        read_bytes += len(content)
        return content

    def counting_preadv(file: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal read_bytes
        count = really_preadv(file, buffers, offset)
        read_bytes += count
        return count

    monkeypatch.setattr(os, "open", counting_open)
    monkeypatch.setattr(os, "pread", counting_pread)
    monkeypatch.setattr(os, "preadv", counting_preadv)
    read_series(paths)
    assert sorted(opened) == sorted([str(path) for path in paths] * 2)
    assert read_bytes <= 1.1 * sum(path.stat().st_size for path in paths)


def test_reading_takes_the_volume_and_a_slice_or_two(tmp_path: Path) -> None:
    paths = written_series(tmp_path, counting_volume((40, 256, 256)))
    read_series(paths)
    tracemalloc.start()
    source = read_series(paths)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes <= 1.3 * source.volume.hu.nbytes


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 300),
    bits_allocated=st.sampled_from([8, 16]),
    longest_run=st.integers(1, 400),
    cut=st.integers(0, 3),
    seed=st.integers(0, 999),
)
def test_rle_by_libtiff_is_what_pydicom_decodes(
    rows: int, columns: int, bits_allocated: int, longest_run: int, cut: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = np.repeat(rng.integers(0, 2**bits_allocated, rows * columns), rng.integers(1, longest_run + 1))
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = rows, columns, 1
    dataset.BitsAllocated = dataset.BitsStored = bits_allocated
    dataset.HighBit, dataset.PixelRepresentation = bits_allocated - 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    content = values[: rows * columns].astype(f"<u{bits_allocated // 8}").tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    del frame[len(frame) - cut :]
    dataset.PixelData = encapsulate([bytes(frame)])

    def decoded_by(plugin: str) -> np.ndarray | None:
        try:
            return pixel_array(dataset, decoding_plugin=plugin)
        except RuntimeError:
            return None

    fast, plain = decoded_by(rle_decoder.NAME), decoded_by("pydicom")
    assert (fast is None) == (plain is None)
    if fast is not None:
        np.testing.assert_array_equal(fast, plain)
