"""Whole files of every kind and transfer syntax, small, which fuzzing then damages. A seed is the files of one case."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from imaging.volume import CtVolume
from services.dicom.conversion import label_map_to_seg
from services.dicom.conversion_options import LabelSegOptions
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.label_nifti import nifti_of, save_nifti
from services.dicom.seg_options import SegType
from tests.services.dicom.made_multi_frame import written_multi_frame
from tests.services.dicom.made_series import REAL_DATA, counting_volume, written_series

SHAPE_ZYX = (3, 65, 67)


def write_seeds(directory: Path) -> None:
    """A folder for every kind, in it a folder for every seed, in it the files; real ones too where they are there."""
    volume = counting_volume(SHAPE_ZYX)
    _write_series(directory / "dicom", volume)
    _write_volumes(directory / "volume", volume)
    _write_segs(directory / "seg", directory / "dicom/explicit")
    _write_archives(directory / "upload", directory / "dicom/explicit")
    _write_multipart(directory / "multipart", directory / "dicom/explicit")
    _copy_real_files(directory)


def _write_series(directory: Path, volume: CtVolume) -> None:
    plain = directory / "explicit"
    written_series(plain, volume)
    written_multi_frame(volume, _new(directory / "enhanced") / "1.dcm", frame_order=[2, 0, 1])
    written_multi_frame(volume, _new(directory / "tilted") / "1.dcm", frame_order=[0, 1, 2], tilt_degrees=15)
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        _rewritten(plain, directory / syntax.keyword, lambda d, s=syntax: _in_plain_syntax(d, s))
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        _rewritten(plain, directory / syntax.keyword, lambda d, s=syntax: d.compress(s, generate_instance_uid=False))
    for name, options in {"jpeg70": ["+e1"], "jpeg57": ["+el"], "jpeg51": ["+ee"]}.items():
        for file in sorted(plain.iterdir()):
            made = _new(directory / name) / file.name
            subprocess.run(["dcmcjpeg", *options, str(file), str(made)], check=True, capture_output=True, timeout=60)


def _in_plain_syntax(dataset: pydicom.FileDataset, syntax: UID) -> None:
    values = np.frombuffer(dataset.PixelData, "<u2")
    dataset.PixelData = values.astype("<u2" if syntax.is_little_endian else ">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax


def _rewritten(source: Path, target: Path, change: Callable[[pydicom.FileDataset], object]) -> None:
    for file in sorted(source.iterdir()):
        dataset = pydicom.dcmread(file)
        change(dataset)
        syntax = dataset.file_meta.TransferSyntaxUID
        pydicom.dcmwrite(
            _new(target) / file.name,
            dataset,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            force_encoding=True,
        )


def _write_volumes(directory: Path, volume: CtVolume) -> None:
    for name in ("ct.nii", "ct.nii.gz"):
        write_ct_nifti(volume, _new(directory / name) / name)
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing_zyx_mm[::-1])
    for name, packed in (("raw.nrrd", False), ("gzip.nrrd", True)):
        SimpleITK.WriteImage(image, str(_new(directory / name) / name), packed)


def _write_segs(directory: Path, series: Path) -> None:
    labels = np.zeros(SHAPE_ZYX, dtype=np.uint16)
    labels[:, 2:6, 3:9], labels[1, 8:11, 10:17] = 1, 2
    label_map = _new(directory) / "labels.nii"
    save_nifti(nifti_of(labels, counting_volume(SHAPE_ZYX).affine_lps), label_map)
    for kind in SegType:
        made = _new(directory / kind) / "seg.dcm"
        label_map_to_seg(label_map, series, made, options=LabelSegOptions(type=kind))
    _rewritten(
        directory / SegType.FRACTIONAL, directory / "rle", lambda d: d.compress(RLELossless, encoding_plugin="pydicom")
    )
    label_map.unlink()


def _write_archives(directory: Path, series: Path) -> None:
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(_new(directory / name) / "study.zip", "w", method) as archive:
            for file in sorted(series.iterdir()):
                archive.write(file, f"STUDY/{file.name}")
    with zipfile.ZipFile(_new(directory / "nifti in a zip") / "study.zip", "w") as archive:
        archive.writestr("ct.nii.gz", gzip.compress(b"\x5c\x01\0\0" + bytes(400)))


def _write_multipart(directory: Path, series: Path) -> None:
    headers = {
        "form": b"Content-Disposition: form-data; name=\"files\"; filename*=utf-8''a%20b",
        "related": b"Content-Type: application/dicom\r\nContent-Location: /1.2.3",
    }
    for name, header in headers.items():
        parts = [b"--limit\r\n%s\r\n\r\n%s\r\n" % (header, file.read_bytes()) for file in sorted(series.iterdir())]
        (_new(directory / name) / "body").write_bytes(b"".join(parts) + b"--limit--\r\n")


def _copy_real_files(directory: Path) -> None:
    """The small ones, so that a case is quick."""
    for kind, folder, pattern in (
        ("dicom", "hard_dicom/transfer_syntaxes_MISTER-CT", "*.4.5[0135].dcm"),
        ("dicom", "hard_dicom/enhanced_multiframe_CT0012", "*.dcm"),
        ("dicom", "hard_dicom/single_files", "*.dcm"),
        ("volume", "nifti_nrrd", "*"),
        ("seg", "seg/highdicom", "seg*.dcm"),
    ):
        for file in sorted((REAL_DATA / folder).glob(pattern)):
            if file.is_file() and file.stat().st_size < 600_000:
                shutil.copy(file, _new(directory / kind / f"real {file.name}") / file.name)


def _new(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
