"""A CT series on disk to a HU volume with its affine, uncompressed and in three compressed syntaxes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from benchmarks import machine
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.peak_memory import peak_memory_mb
from benchmarks.side_by_side import console, seconds, side_by_side
from imaging.phantom import make_phantom
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.headers import decimal_strings
from services.dicom.input_reader import read_input
from services.dicom.uids import derive_uid

SLICES, SIDE, ANATOMY = 500, 512, 25  # the distinct slices go up and down again until there are enough
SPACING_MM = (0.6, 0.7, 0.7)
SYNTAXES: dict[str, UID] = {
    "raw (Explicit VR Little Endian)": ExplicitVRLittleEndian,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "RLE": RLELossless,
}
OURS = "Embolens"
DCM2NIIX = Path(sys.executable).parent / "dcm2niix"
_READ_BY_US = "from pathlib import Path\nfrom services.dicom.input_reader import read_input\nimport sys\n"

Hu = NDArray[np.int16]


def measure(rounds: int) -> Page:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        volume, ratios = _written_series(Path(scratch))
        rows = [_row(name, Path(scratch) / uid, rounds) for name, uid in SYNTAXES.items()]
        rows.append(_memory_row(Path(scratch)))
        growth = _growth(Path(scratch) / ExplicitVRLittleEndian, rounds)
    listed = ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items() if ratio > 1.01)
    return Page(
        title="A series on disk to HU",
        how=f"{SLICES} files of {SIDE} x {SIDE}, in memory (tmpfs): a phantom with the noise of a scanner ({ANATOMY} "
        "distinct slices, up and down), stored as unsigned 12 bits with a header of some 90 elements. Compressed by "
        f"CharLS, OpenJPEG and pydicom; compression ratios {listed}. Every reader gives the HU as an array in memory; "
        "they were compared voxel by voxel, and one that fails or gives others is left out. SimpleITK reads with "
        "GDCMImageIO, its order from GetGDCMSeriesFileNames, or the names given to it sorted; highdicom as documented "
        "(`get_volume_from_series` of what `dcmread` gave); dcm2niix runs with `-z n -b n` into tmpfs and nibabel "
        'reads the file into memory, or ("file only") nobody does. '
        f"{machine.version('SimpleITK')}, {machine.version('highdicom')}, {machine.version('pydicom')}, "
        f"{machine.version('dcm2niix')}. Memory: the highest resident size of our process while it read the raw "
        f"series, less that of one that had read 3 slices, over the {volume.nbytes / 1e6:.0f} MB of the int16 volume. "
        "The floor is the volume copied once.",
        rows=tuple(rows),
        growths=(growth,),
    )


def _written_series(root: Path) -> tuple[Hu, dict[str, float]]:
    """The HU of all slices, and how many times smaller the pixel data of each syntax are."""
    phantom = make_phantom(
        1, shape_zyx=(ANATOMY, SIDE, SIDE), spacing_zyx_mm=(286 / ANATOMY, *SPACING_MM[1:]), emboli=1
    ).volume
    base = write_ct_series(phantom, root / "base", patient_id="BENCH", patient_name="Bench^Mark")
    up = list(range(ANATOMY))
    shown = [(up + up[::-1])[index % (2 * ANATOMY)] for index in range(SLICES)]
    stored = np.clip(phantom.hu.astype(np.int32) + 1024, 0, 4095).astype(np.uint16)
    packed_bytes = dict.fromkeys(SYNTAXES, 0)
    for uid in SYNTAXES.values():
        (root / uid).mkdir()
    for number, path in enumerate(base):
        plain = pydicom.dcmread(path)
        _as_a_scanner_writes(plain, stored[number])
        for name, uid in SYNTAXES.items():
            packed = deepcopy(plain)
            if uid != ExplicitVRLittleEndian:
                packed.compress(uid, generate_instance_uid=False)
            packed_bytes[name] += len(packed.PixelData)
            for index in (index for index, of in enumerate(shown) if of == number):
                _place(packed, index)
                packed.save_as(root / uid / f"{index:05d}.dcm")
    return (stored[shown].astype(np.int32) - 1024).astype(np.int16), {
        name: stored.nbytes / size for name, size in packed_bytes.items()
    }


def _as_a_scanner_writes(dataset: pydicom.FileDataset, stored: NDArray[np.uint16]) -> None:
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 12, 11
    dataset.RescaleIntercept = "-1024"
    dataset.PixelData = stored.tobytes()
    block = dataset.private_block(0x0009, "VENDOR 01", create=True)
    for number in range(1, 40):
        block.add_new(number, "LO", f"private value {number}")


def _place(dataset: pydicom.FileDataset, index: int) -> None:
    dataset.ImagePositionPatient = decimal_strings([0.0, 0.0, SPACING_MM[0] * index])
    dataset.InstanceNumber = index + 1
    dataset.SOPInstanceUID = derive_uid("series_reading", str(index))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _row(name: str, folder: Path, rounds: int) -> Row:
    expected = _by_us(folder)
    ways: dict[str, Callable[[], object]] = {OURS: lambda: _by_us(folder)}
    for peer, read in _PEERS.items():
        try:
            same = np.array_equal(expected, read(folder))
        except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
            console.print(f"  {peer} cannot read {name}: {error}")
            continue
        if same:
            ways[peer] = functools.partial(read, folder)
        else:
            console.print(f"  {peer} gives other HU for {name}")
    ways["dcm2niix, file only"] = lambda: _converted(folder)
    figures = side_by_side({way: seconds(run) for way, run in ways.items()}, rounds=rounds)
    row = Row(
        what=f"{name}, {SLICES} slices",
        unit="s",
        higher_is_better=False,
        ours=figures.pop(OURS),
        others=tuple(figures.values()),
        floor=_floor(folder, expected.nbytes) if "raw" in name else None,
    )
    wanted = 2.0 if "raw" in name else 1.5
    assert row.best_other is not None
    met = row.times_better_than(row.best_other) >= wanted
    return row.model_copy(update={"goals": (Goal(says=f"{wanted:g} x the fastest", met=met),)})


def _floor(folder: Path, volume_bytes: int) -> Floor:
    return Floor(value=volume_bytes / machine.memory_copy_bytes_per_s(), why="the volume copied once by one thread")


def _by_us(folder: Path) -> Hu:
    return read_input(folder).volume.hu


def _by_simpleitk(folder: Path) -> Hu:
    return _simpleitk(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


def _by_simpleitk_sorted(folder: Path) -> Hu:
    return _simpleitk([str(path) for path in sorted(folder.iterdir())])


def _simpleitk(names: Any) -> Hu:
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(len(os.sched_getaffinity(0)))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames(names)
    return np.asarray(SimpleITK.GetArrayFromImage(reader.Execute()))


def _by_highdicom(folder: Path) -> NDArray[Any]:
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    # its slices may come in either direction; the rows of the affine say which
    array = np.asarray(volume.array)
    return array if volume.affine[2, 0] > 0 else array[::-1]


def _converted(folder: Path) -> Path:
    target = folder.parent / "nifti"
    target.mkdir(exist_ok=True)
    command = [str(DCM2NIIX), "-z", "n", "-b", "n", "-w", "1", "-f", "image", "-o", str(target), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target / "image.nii"


def _by_dcm2niix(folder: Path) -> NDArray[Any]:
    image: Any = nibabel.load(_converted(folder), mmap=False)
    stored = np.asarray(image.dataobj.get_unscaled())
    hu = stored if image.dataobj.inter == 0 else stored + np.int16(image.dataobj.inter)
    return hu.transpose(2, 1, 0)[:, ::-1]


_PEERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    "SimpleITK": _by_simpleitk,
    "SimpleITK, names sorted": _by_simpleitk_sorted,
    "pydicom + highdicom": _by_highdicom,
    "dcm2niix + nibabel": _by_dcm2niix,
}


def _memory_row(root: Path) -> Row:
    code = _READ_BY_US + "read_input([Path(name) for name in sys.argv[1:]])\n"
    names = [str(path) for path in sorted((root / ExplicitVRLittleEndian).iterdir())]
    least, most = peak_memory_mb(code, names[:3]), peak_memory_mb(code, names)
    share = (most - least) / (SLICES * SIDE * SIDE * 2 / 1e6)
    return Row(
        what="memory beyond the imports, of the volume",
        unit="x",
        higher_is_better=False,
        ours=Figure(name=OURS, samples=(share,)),
        floor=Floor(value=1.0, why="the volume"),
        goals=(Goal(says="at most 1.3 x the volume", met=share <= 1.3),),
    )


def _growth(folder: Path, rounds: int) -> Growth:
    names = sorted(folder.iterdir())
    sizes = (125, 250, 500)
    ways = {str(size): seconds(functools.partial(read_input, names[:size])) for size in sizes}
    figures = side_by_side(ways, rounds=rounds)
    points = tuple((float(size), figures[str(size)].median) for size in sizes)
    return Growth(what="reading a raw series", size="slices", unit="s", points=points)
