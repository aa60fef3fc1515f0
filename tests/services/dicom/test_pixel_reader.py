from __future__ import annotations

import os
import queue
import resource
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from imaging.errors import NotAnalysable
from services.dicom import decoder_process
from services.dicom.headers import read_header
from services.dicom.image_plane import planes_of
from services.dicom.pixel_reader import read_hu, to_hu
from tests.services.dicom.made_series import REAL_DATA, counting_volume, edit, written_series

SYNTAXES = REAL_DATA / "hard_dicom/transfer_syntaxes_MISTER-CT"
LOSSLESS = ("1.2.2", "1.2.1.99", "4.90", "4.80", "4.70", "4.57", "1.2.1", "1.2", "1.2.5")
LOSSY_MEAN_HU = {"4.91": 1, "4.81": 1, "4.51": 4, "4.53": 4, "4.55": 4, "4.50": 15}


def test_below_air_becomes_air_and_the_range_of_int16_is_kept() -> None:
    stored = np.array([[-3024, -1025, -1024, 0, 40000]], dtype=np.int32)
    np.testing.assert_array_equal(to_hu(stored, 1, 0, None), [[-1024, -1024, -1024, 0, 32767]])


def test_fractions_are_rounded() -> None:
    np.testing.assert_array_equal(to_hu(np.array([[0, 1, 2]]), 2.0002442, -47.3, None), [[-47, -45, -43]])


def test_padding_above_air_becomes_air() -> None:
    stored = np.array([[62512, 500], [1024, 700]], dtype=np.uint16)
    np.testing.assert_array_equal(to_hu(stored, 1, -1024, (62512, 62512)), [[-1024, -524], [0, -324]])


def test_a_padding_value_within_tissue_is_believed_only_where_corners_carry_it() -> None:
    inside = np.array([[5, 6, 5], [6, 0, 6], [5, 6, 5]], dtype=np.int16)
    np.testing.assert_array_equal(to_hu(inside, 1, 0, (0, 0)), inside)
    around = np.array([[0, 6, 0], [6, 0, 6], [0, 6, 0]], dtype=np.int16)
    assert np.count_nonzero(to_hu(around, 1, 0, (0, 0)) == -1024) == 5


def test_a_padding_value_written_unsigned_is_understood(tmp_path: Path) -> None:
    path = written_series(tmp_path)[0]

    def pad(dataset: object) -> None:
        dataset.add_new("PixelPaddingValue", "US", 63536)  # type: ignore[attr-defined]
        dataset.RescaleIntercept = "5000"  # type: ignore[attr-defined]
        values = np.full((16, 24), 7, dtype="<i2")
        values[0, 0] = -2000
        dataset.PixelData = values.tobytes()  # type: ignore[attr-defined]

    edit(path, pad)
    hu = read_hu(planes_of(path, read_header(path))[0])
    assert (hu[0, 0], hu[0, 1]) == (-1024, 5007)


def test_a_disk_that_refuses_says_nothing_about_the_image(tmp_path: Path) -> None:
    path = written_series(tmp_path)[0]
    plane = planes_of(path, read_header(path))[0]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_hu(plane)


def hu_of(path: Path) -> np.ndarray:
    return read_hu(planes_of(path, read_header(path))[0]).astype(int)


def written_image(path: Path, *, bits_stored: int, signed: bool) -> tuple[FileDataset, np.ndarray]:
    """One CT image of 64 x 64 with values over all its bits, and its HU: stored * 0.5 - 100."""
    low, high = (-(2 ** (bits_stored - 1)), 2 ** (bits_stored - 1) - 1) if signed else (0, 2**bits_stored - 1)
    stored = np.rint(np.linspace(low, high, 64 * 64)).reshape(64, 64)
    dataset = pydicom.dcmread(written_series(path.parent, counting_volume((3, 64, 64)))[0])
    dataset.BitsAllocated = 8 if bits_stored == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits_stored, bits_stored - 1, int(signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "-100"
    dataset.PixelData = stored.astype(f"<{'i' if signed else 'u'}{dataset.BitsAllocated // 8}").tobytes()
    dataset["PixelData"].VR = "OB" if bits_stored == 8 else "OW"
    dataset.save_as(path)
    return dataset, np.maximum(np.rint(stored * 0.5 - 100), -1024)


REPRESENTATIONS = [(8, False), (12, False), (12, True), (16, False), (16, True)]
LOSSLESS_TO_WRITE = [RLELossless, JPEGLSLossless, JPEG2000Lossless]
UNCOMPRESSED = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@pytest.mark.parametrize(("bits_stored", "signed"), REPRESENTATIONS)
@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, *LOSSLESS_TO_WRITE], ids=lambda s: s.keyword)
def test_every_depth_and_sign_comes_through_every_lossless_syntax(
    tmp_path: Path, syntax: UID, bits_stored: int, signed: bool
) -> None:
    dataset, expected = written_image(tmp_path / "image.dcm", bits_stored=bits_stored, signed=signed)
    if syntax in LOSSLESS_TO_WRITE:
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(tmp_path / "image.dcm")
    else:
        values = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}")
        dataset.PixelData = values.astype(f"{'<' if syntax.is_little_endian else '>'}{values.dtype.str[1:]}").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        encoding = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
        pydicom.dcmwrite(tmp_path / "image.dcm", dataset, **encoding, force_encoding=True)
    assert pydicom.dcmread(tmp_path / "image.dcm").file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(hu_of(tmp_path / "image.dcm"), expected)


@pytest.mark.parametrize(("bits_stored", "signed"), REPRESENTATIONS)
@pytest.mark.parametrize("process", ["+e1", "+el"], ids=["process 14, first order (.70)", "process 14 (.57)"])
def test_every_depth_and_sign_comes_through_jpeg_lossless(
    tmp_path: Path, process: str, bits_stored: int, signed: bool
) -> None:
    _, expected = written_image(tmp_path / "image.dcm", bits_stored=bits_stored, signed=signed)
    subprocess.run(["dcmcjpeg", process, "image.dcm", "jpeg.dcm"], check=True, cwd=tmp_path, timeout=60)
    np.testing.assert_array_equal(hu_of(tmp_path / "jpeg.dcm"), expected)


def test_jpeg_of_12_bits_is_as_near_as_it_says_and_its_padding_is_air(tmp_path: Path) -> None:
    dataset, _ = written_image(tmp_path / "image.dcm", bits_stored=12, signed=False)
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "3000"
    dataset.PixelData = np.where(np.eye(64) > 0, 0, 2000).astype("<u2").tobytes()
    dataset.save_as(tmp_path / "image.dcm")
    subprocess.run(["dcmcjpeg", "+ee", "+q", "100", "image.dcm", "jpeg.dcm"], check=True, cwd=tmp_path, timeout=60)
    assert pydicom.dcmread(tmp_path / "jpeg.dcm").file_meta.TransferSyntaxUID == JPEGExtended12Bit
    edit(tmp_path / "jpeg.dcm", lambda dataset: dataset.add_new("PixelPaddingValue", "US", 0))
    hu = hu_of(tmp_path / "jpeg.dcm")
    assert np.abs(hu[np.eye(64) == 0] - 5000).max() <= 8
    assert np.all(hu[np.eye(64) > 0] == -1024)


@pytest.mark.parametrize(("syntax", "options"), [(JPEGLSNearLossless, {"jls_error": 3}), (JPEG2000, {"j2k_cr": [8]})])
def test_lossy_syntaxes_are_as_near_as_they_say(tmp_path: Path, syntax: UID, options: dict[str, object]) -> None:
    dataset, expected = written_image(tmp_path / "image.dcm", bits_stored=12, signed=True)
    dataset.compress(syntax, generate_instance_uid=False, **options)
    dataset.save_as(tmp_path / "image.dcm")
    assert np.abs(hu_of(tmp_path / "image.dcm") - expected).max() <= 2


def empty_htj2k(rows: int, columns: int, *, bits: int, signed: bool) -> bytes:
    """A codestream (ITU-T T.814) without a single coded block: every value is the middle of the range."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">HH", marker, len(content) + 2) + content

    size = struct.pack(">H8IH", 0x4000, columns, rows, 0, 0, columns, rows, 0, 0, 1)
    tile = b"\xff\x93\x00"
    return b"".join(
        [
            b"\xff\x4f",
            segment(0xFF51, size + bytes([bits - 1 | signed << 7, 1, 1])),
            segment(0xFF50, struct.pack(">IH", 0x00020000, 0)),
            segment(0xFF52, bytes([0, 0, 0, 1, 0, 0, 4, 4, 0x40, 1])),
            segment(0xFF5C, bytes([0x20, bits << 3])),
            struct.pack(">HHHIBB", 0xFF90, 10, 0, 12 + len(tile), 0, 1),
            tile,
            b"\xff\xd9",
        ]
    )


@pytest.mark.parametrize(("bits_stored", "signed", "hu"), [(16, True, -100), (12, False, 924)])
@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K], ids=lambda s: s.keyword)
def test_high_throughput_jpeg_2000_is_read(
    tmp_path: Path, syntax: UID, bits_stored: int, signed: bool, hu: int
) -> None:
    dataset, _ = written_image(tmp_path / "image.dcm", bits_stored=bits_stored, signed=signed)
    dataset.PixelData = encapsulate([empty_htj2k(64, 64, bits=bits_stored, signed=signed)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "image.dcm")
    assert np.all(hu_of(tmp_path / "image.dcm") == hu)


@pytest.mark.parametrize("bits_stored", [13, 16])
@pytest.mark.parametrize("signed_codestream", [True, False])
def test_a_jpeg_2000_whose_sign_contradicts_its_header_keeps_its_negative_values(
    tmp_path: Path, signed_codestream: bool, bits_stored: int
) -> None:
    path = tmp_path / "image.dcm"
    dataset, _ = written_image(path, bits_stored=bits_stored, signed=signed_codestream)
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    written = np.arange(64 * 64).reshape(64, 64) - 1000
    stored = written if signed_codestream else written & (2**bits_stored - 1)
    dataset.PixelData = stored.astype("<i2" if signed_codestream else "<u2").tobytes()
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.PixelRepresentation = int(not signed_codestream)
    dataset.save_as(path)
    np.testing.assert_array_equal(hu_of(path), written)


def test_values_that_do_not_begin_at_the_lowest_bit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    written_image(path, bits_stored=12, signed=False)
    edit(path, lambda dataset: setattr(dataset, "HighBit", 15))
    with pytest.raises(NotAnalysable, match="HighBit is 15 where BitsStored is 12") as refusal:
        hu_of(path)
    assert refusal.value.code == "pixels.unreadable"


def test_an_overlay_in_the_high_bits_is_not_taken_for_hu(tmp_path: Path) -> None:
    path = tmp_path / "image.dcm"
    dataset, expected = written_image(path, bits_stored=12, signed=True)
    values = np.frombuffer(dataset.PixelData, "<u2") & 0x0FFF | 0x4000
    dataset.PixelData = values.tobytes()
    dataset.add_new(0x60000102, "US", 14)
    dataset.save_as(path)
    np.testing.assert_array_equal(hu_of(path), expected)


@pytest.mark.skipif(not SYNTAXES.is_dir(), reason="../shared/data/hard_dicom/transfer_syntaxes_MISTER-CT is absent")
@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY_MEAN_HU])
def test_every_transfer_syntax_gives_the_same_hu(syntax: str) -> None:
    (path,) = SYNTAXES.glob(
        f"*_1.2.840.10008.1.2{syntax.removeprefix('1.2') if syntax[0] == '1' else '.' + syntax}.dcm"
    )
    difference = np.abs(hu_of(path) - hu_of(SYNTAXES / "CTImage.dcm"))
    assert difference.mean() <= LOSSY_MEAN_HU.get(syntax, 0)


MULTI_FRAME = REAL_DATA / "hard_dicom/enhanced_multiframe_CT0012"


@pytest.mark.skipif(not MULTI_FRAME.is_dir(), reason="../shared/data/hard_dicom/enhanced_multiframe_CT0012 is absent")
@pytest.mark.parametrize("encoding", ["fragmented_no_bot_jpeg_lossless.70", "fragmented_no_bot_jpeg_ls.80", "*rle"])
def test_frames_in_fragments_without_an_offset_table_are_read(encoding: str) -> None:
    (path,) = MULTI_FRAME.glob(f"CT0012.{encoding}.dcm")
    plain = MULTI_FRAME / "CT0012.explicit_little_endian.dcm"
    for plane, expected in zip(planes_of(path, read_header(path)), planes_of(plain, read_header(plain)), strict=True):
        np.testing.assert_array_equal(read_hu(plane, exact=True), read_hu(expected, exact=True))


@pytest.mark.parametrize("signal_number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_an_image_that_ends_its_decoder_is_unreadable_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_number: signal.Signals
) -> None:
    path = tmp_path / "image.dcm"
    dataset, expected = written_image(path, bits_stored=12, signed=True)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    monkeypatch.setattr(decoder_process, "_idle", queue.LifoQueue())

    class Crashing(decoder_process._Decoder):
        def ask(self, *question: Any) -> np.ndarray | Exception:
            self._process.send_signal(signal_number)
            return super().ask(*question)

    with monkeypatch.context() as crashing:
        crashing.setattr(decoder_process, "_Decoder", Crashing)
        with pytest.raises(NotAnalysable, match="the decoder crashed") as refusal:
            hu_of(path)
    assert refusal.value.code == "pixels.unreadable"
    np.testing.assert_array_equal(hu_of(path), expected)
    decoder_process._idle.get().end()


def test_a_decoder_that_ended_while_it_was_idle_says_nothing_about_the_next_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.dcm"
    dataset, expected = written_image(path, bits_stored=12, signed=True)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    monkeypatch.setattr(decoder_process, "_idle", queue.LifoQueue())
    ended = decoder_process._Decoder()
    ended._process.kill()
    decoder_process._idle.put(ended)
    np.testing.assert_array_equal(hu_of(path), expected)
    decoder_process._idle.get().end()


def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.dcm"
    dataset, _ = written_image(path, bits_stored=12, signed=True)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    monkeypatch.setattr(decoder_process, "_idle", queue.LifoQueue())
    monkeypatch.setattr(decoder_process, "LONGEST_S", 0.0)
    with pytest.raises(NotAnalysable, match="took too long"):
        hu_of(path)


@pytest.fixture
def rle_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of 512 x 512, for decoders that no other test has used."""
    monkeypatch.setattr(decoder_process, "_idle", queue.LifoQueue())
    path = written_series(tmp_path, counting_volume((3, 512, 512)))[0]
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path)
    return path


def test_a_decoder_that_hands_over_less_than_it_says_is_ended(rle_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, buffers, at + 1))
    with pytest.raises(NotAnalysable, match="the decoder crashed"):
        hu_of(rle_image)
    assert decoder_process._idle.empty()


@pytest.mark.parametrize(("kept_bytes", "left_bytes"), [(512 * 512 * 2, 512 * 512 * 2), (512 * 512, 0)])
def test_memory_that_a_large_image_was_handed_over_in_is_given_back(
    rle_image: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, left_bytes: int
) -> None:
    monkeypatch.setattr(decoder_process, "_KEPT_BYTES", kept_bytes)
    hu_of(rle_image)
    decoder = decoder_process._idle.get()
    assert os.fstat(decoder._values).st_size == left_bytes
    decoder.end()


def test_the_next_image_is_decoded_in_memory_that_the_last_one_had(rle_image: Path) -> None:
    """Ten take fewer pages from the system than one has: taking them anew for each doubles the time."""

    def pages_taken_until_now() -> int:
        stat = Path(f"/proc/{decoder._process.pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[7])  # minflt, proc(5)

    hu_of(rle_image)
    decoder = decoder_process._idle.queue[0]
    hu_of(rle_image)
    before = pages_taken_until_now()
    for _ in range(10):
        hu_of(rle_image)
    assert pages_taken_until_now() - before < 512 * 512 * 2 / resource.getpagesize()
    decoder_process._idle.get().end()
