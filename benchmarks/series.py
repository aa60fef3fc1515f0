"""The phantom studies that the benchmarks push: made once, kept beside other temporary files, sent under new UIDs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from imaging.phantom import make_phantom
from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.uids import derive_uid

SLICES = 400
SPACING_MM = (0.75, 0.7, 0.7)
_SEED, _EMBOLI = 100_402, 5


def phantom_chest() -> CtVolume:
    """400 x 512 x 512, with five emboli."""
    kept = Path(tempfile.gettempdir()) / f"embolens-benchmark-phantom-{_SEED}-{SLICES}-{os.getuid()}.npz"
    if not kept.exists():
        phantom = make_phantom(_SEED, shape_zyx=(SLICES, 512, 512), spacing_zyx_mm=SPACING_MM, emboli=_EMBOLI)
        arriving = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(arriving, hu=phantom.volume.hu, affine_lps=phantom.volume.affine_lps)
        arriving.replace(kept)
    with np.load(kept) as arrays:
        return CtVolume(arrays["hu"], arrays["affine_lps"])


def of_slices(chest: CtVolume, slices: int) -> CtVolume:
    """The same chest in thicker steps: so many slices, evenly taken."""
    step = chest.shape_zyx[0] // slices
    affine = chest.affine_lps.copy()
    affine[:3, 0] *= step
    return CtVolume(np.ascontiguousarray(chest.hu[::step][:slices]), affine)


def write_series(chest: CtVolume, folder: Path, name: str) -> str:
    """DICOM files whose UIDs follow from `name`; returns the Series Instance UID."""
    series = derive_uid("benchmark", name, "series")
    write_ct_series(
        chest,
        folder,
        patient_id="BENCHMARK",
        patient_name="Benchmark^Phantom",
        study_instance_uid=derive_uid("benchmark", name, "study"),
        series_instance_uid=series,
    )
    return series
