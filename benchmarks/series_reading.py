"""A CT series on disk to a HU volume with its affine, uncompressed and in three compressed syntaxes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import highdicom
import jpeg_ls
import nibabel
import numpy as np
import openjpeg.utils
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from benchmarks import machine
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.side_by_side import console, seconds, side_by_side
from imaging.phantom import make_phantom
from services.dicom import rle_decoder
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.headers import decimal_strings
from services.dicom.input_reader import read_input
from services.dicom.uids import derive_uid

SIDE, ANATOMY = 512, 25  # the distinct slices go up and down again until there are enough
SPACING_MM = (0.6, 0.7, 0.7)
SYNTAXES: dict[str, UID] = {
    "raw (Explicit VR Little Endian)": ExplicitVRLittleEndian,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "RLE": RLELossless,
}
# Of what is compressed fewer: a round of all readers would take minutes.
SLICES = {ExplicitVRLittleEndian: 500, JPEGLSLossless: 120, JPEG2000Lossless: 20, RLELossless: 120}
_WHOSE_MEMORY_IS_MEASURED = (ExplicitVRLittleEndian, JPEGLSLossless)
OURS = "Embolens"
DCM2NIIX = Path(sys.executable).parent / "dcm2niix"
_READ_AND_TELL = """
import os
import sys
from pathlib import Path
from benchmarks.peak_memory import peak_memory_of_process_mb
from services.dicom.input_reader import read_input
read_input([Path(name) for name in sys.argv[1:]])
tasks = Path("/proc/self/task").iterdir()
children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
print(sum(peak_memory_of_process_mb(pid) for pid in [os.getpid(), *children]))
"""

Hu = NDArray[np.int16]


def measure(rounds: int) -> Page:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        ratios = _written_series(Path(scratch))
        rows = [_row(name, Path(scratch) / uid, uid, rounds) for name, uid in SYNTAXES.items()]
        rows += [
            _memory_row(Path(scratch) / uid, name) for name, uid in SYNTAXES.items() if uid in _WHOSE_MEMORY_IS_MEASURED
        ]
        growth = _growth(Path(scratch) / ExplicitVRLittleEndian, rounds)
    listed = ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items() if ratio > 1.01)
    counts = ", ".join(f"{SLICES[uid]} in {name}" for name, uid in SYNTAXES.items())
    return Page(
        title="A series on disk to HU",
        how=f"Files of {SIDE} x {SIDE}, in memory (tmpfs), {counts}: a phantom with the noise of a scanner ({ANATOMY} "
        "distinct slices, up and down), stored as unsigned 12 bits with a header of some 90 elements. Compressed by "
        f"CharLS, OpenJPEG and pydicom; compression ratios {listed}. Every reader gives the HU as an array in memory; "
        "they were compared voxel by voxel, and one that fails or gives others is left out. Our decoding processes, "
        "which stay from one series to the next as they do in a worker, were started by the round that is thrown "
        "away. SimpleITK reads with "
        "GDCMImageIO, its order from GetGDCMSeriesFileNames, or the names given to it sorted; highdicom as documented "
        "(`get_volume_from_series` of what `dcmread` gave); dcm2niix runs with `-z n -b n` into tmpfs, nibabel reads "
        "the file into memory, and the intercept that dcm2niix leaves in its header is added. "
        f"{machine.version('SimpleITK')}, {machine.version('highdicom')}, {machine.version('pydicom')}, "
        f"{machine.version('dcm2niix')}. Memory: the highest resident size of our process and its decoding processes "
        "while a series was read, less that of those that had read 8 slices, over the int16 volume "
        "of the other slices. "
        "The floor is the volume copied once; of a compressed series what the fastest decoder alone takes on all "
        "cores at once, measured so: two of them may be the two threads of one.",
        rows=tuple(rows),
        growths=(growth,),
    )


def _written_series(root: Path) -> dict[str, float]:
    """How many times smaller the pixel data of each syntax are."""
    phantom = make_phantom(
        1, shape_zyx=(ANATOMY, SIDE, SIDE), spacing_zyx_mm=(286 / ANATOMY, *SPACING_MM[1:]), emboli=1
    ).volume
    base = write_ct_series(phantom, root / "base", patient_id="BENCH", patient_name="Bench^Mark")
    up = list(range(ANATOMY))
    shown = [(up + up[::-1])[index % (2 * ANATOMY)] for index in range(max(SLICES.values()))]
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
            for index in (index for index, of in enumerate(shown[: SLICES[uid]]) if of == number):
                _place(packed, index)
                packed.save_as(root / uid / f"{index:05d}.dcm")
    return {name: stored.nbytes / size for name, size in packed_bytes.items()}


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


def _row(name: str, folder: Path, syntax: UID, rounds: int) -> Row:
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
    figures = side_by_side({way: seconds(run) for way, run in ways.items()}, rounds=rounds)
    is_raw = syntax == ExplicitVRLittleEndian
    row = Row(
        what=f"{name}, {SLICES[syntax]} slices",
        unit="s",
        higher_is_better=False,
        ours=figures.pop(OURS),
        others=tuple(figures.values()),
        floor=_floor_of_copying(expected.nbytes) if is_raw else _floor_of_decoding(folder, syntax),
    )
    wanted = 2.0 if is_raw else 1.5
    assert row.best_other is not None
    met = row.times_better_than(row.best_other) >= wanted
    return row.model_copy(update={"goals": (Goal(says=f"{wanted:g} x the fastest", met=met),)})


def _floor_of_copying(volume_bytes: int) -> Floor:
    return Floor(value=volume_bytes / machine.memory_copy_bytes_per_s(), why="the volume copied once by one thread")


def _floor_of_decoding(folder: Path, syntax: UID) -> Floor:
    """What the fastest decoder of the syntax takes for all slices, in a process on each core: two cores need not be
    twice as fast as one."""
    cores = len(os.sched_getaffinity(0))
    image, share = next(folder.iterdir()), SLICES[syntax] // cores
    (alone_s,) = _decoding_s([image], syntax)
    together_s = max(_decoding_s([image] * cores, syntax)) * share
    return Floor(value=together_s, why=f"decoding alone on {cores} cores; {alone_s * 1e3:.1f} ms a slice on one")


def _decoding_s(images: list[Path], syntax: UID) -> list[float]:
    """Seconds for one slice, of as many processes as images, all at work at once."""
    with get_context("spawn").Pool(len(images)) as pool:
        pool.starmap(_mean_decoding_s, [(image, syntax, 0.1) for image in images], chunksize=1)
        return pool.starmap(_mean_decoding_s, [(image, syntax, 1.0) for image in images], chunksize=1)


def _mean_decoding_s(image: Path, syntax: UID, for_s: float) -> float:
    dataset = pydicom.dcmread(image)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    decoders: dict[UID, Callable[[], object]] = {
        JPEGLSLossless: lambda: jpeg_ls.decode_pixel_data(frame),
        JPEG2000Lossless: lambda: openjpeg.utils.decode_pixel_data(frame, version=2),
        RLELossless: lambda: rle_decoder.values_of(frame, SIDE * SIDE),
    }
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < for_s:
        decoders[syntax]()
        times += 1
    return (time.perf_counter() - began) / times


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


def _memory_row(folder: Path, name: str) -> Row:
    paths = sorted(folder.iterdir())
    some = paths[:8]
    share = (_peak_mb(paths) - _peak_mb(some)) / ((len(paths) - len(some)) * SIDE * SIDE * 2 / 1e6)
    return Row(
        what=f"memory for {len(paths)} slices, {name}, of the volume",
        unit="x",
        higher_is_better=False,
        ours=Figure(name=OURS, samples=(share,)),
        floor=Floor(value=1.0, why="the volume"),
        goals=(Goal(says="at most 1.3 x the volume", met=share <= 1.3),),
    )


def _peak_mb(paths: list[Path]) -> float:
    """MB that our process and those that decode for it took at most, imports included."""
    command = [sys.executable, "-c", _READ_AND_TELL, *map(str, paths)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def _growth(folder: Path, rounds: int) -> Growth:
    names = sorted(folder.iterdir())
    sizes = (125, 250, 500)
    ways = {str(size): seconds(functools.partial(read_input, names[:size])) for size in sizes}
    figures = side_by_side(ways, rounds=rounds)
    points = tuple((float(size), figures[str(size)].median) for size in sizes)
    return Growth(what="reading a raw series", size="slices", unit="s", points=points)
