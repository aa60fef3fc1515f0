"""Peak memory of a worker's process from a series on disk to its results on disk, by the number of slices."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.machine import version
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.peak_memory import peak_memory_mb
from imaging.phantom import make_phantom
from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series

_SLICES = (250, 500, 1000)
_LENGTH_MM = 300.0
_ROWS = _COLUMNS = 512
_MOST_MB = 4000.0
# What a worker does with a job, without the queue and the database around it.
_WORK = """
import sys
from pathlib import Path
import worker.tasks
from models.cascade import Cascade
from services.dicom.input_reader import read_input
from services.dicom.result_files import write_results
from services.dicom.seg_options import SegOptions
from worker.result_identity import identify_result

series, results = map(Path, sys.argv[1:])
cascade = Cascade.load()
source = read_input(series)
result = cascade.segment(source.volume)
identity = identify_result(cascade.package, source.content_digest(), seg_options=SegOptions())
write_results(source, result, results, identity)
"""
_HOW = """\
The kernel's high-water mark (VmHWM, so with Python, torch and OpenVINO themselves) of a process that does what a worker
does with a job: load the shipped package, read a DICOM series of 512 x 512 slices of int16, run the whole cascade and
write every result. The series show one phantom's chest, 300 mm long, in ever thinner slices. Memory is counted, not
timed, so each size runs once. The floor is the CT and what the results are by definition, all of the series' grid at
once: int16 HU, uint16 lesions, bool artery, uint8 probability. {versions}.
"""


def measure(rounds: int) -> Page:
    """Counted once, whatever `rounds`."""
    del rounds
    thick = make_phantom(
        100_007,
        shape_zyx=(_SLICES[0], _ROWS, _COLUMNS),
        spacing_zyx_mm=(_LENGTH_MM / _SLICES[0], 0.7, 0.7),
        emboli=5,
    ).volume
    peaks = {slices: _peak_mb(thick, slices) for slices in _SLICES}
    most = max(_SLICES)
    bytes_per_voxel = sum(np.dtype(kind).itemsize for kind in (np.int16, np.uint16, np.bool_, np.uint8))
    row = Row(
        what=f"peak memory of a worker, {most} slices 512 x 512",
        unit="MB",
        higher_is_better=False,
        ours=Figure(name="Embolens", samples=(peaks[most],)),
        floor=Floor(value=bytes_per_voxel * most * _ROWS * _COLUMNS / 1e6, why="CT and results"),
        goals=(Goal(says=f"under {_MOST_MB / 1000:.0f} GB", met=peaks[most] < _MOST_MB),),
    )
    growth = Growth(what="peak memory of a worker", size="slices", unit="MB", points=tuple(peaks.items()))
    versions = ", ".join(map(version, ("torch", "openvino", "numpy")))
    return Page(title="Memory of a worker", how=_HOW.format(versions=versions), rows=(row,), growths=(growth,))


def _peak_mb(thick: CtVolume, slices: int) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        series, results = Path(scratch) / "series", Path(scratch) / "results"
        _write(thick, slices, series)
        return peak_memory_mb(_WORK, [str(series), str(results)])


def _write(thick: CtVolume, slices: int, directory: Path) -> None:
    """The same chest in as many slices: each slice of the phantom several times, closer together."""
    affine = thick.affine_lps.copy()
    affine[:, 0] *= thick.shape_zyx[0] / slices
    hu = thick.hu.repeat(slices // thick.shape_zyx[0], axis=0)
    write_ct_series(CtVolume(hu, affine), directory, patient_id="PHANTOM", patient_name="Phantom")
