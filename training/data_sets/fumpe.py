"""FUMPE (Masoudi et al. 2018, doi 10.1038/sdata.2018.178): `PATnnn/D0001.dcm` ... and `PATnnn.mat`.

Wherever they lie below a folder (`CT_scans/PAT001/`, `GroundTruth/PAT001.mat`). A `.mat` is a MATLAB v5 file whose
`Mask` has the axes (row, column, slice) of the DICOM images, slice k of it belongs to the file numbered k + 1; the
order of the files in the patient is told by their positions alone.
"""

from __future__ import annotations

import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from imaging.errors import InputError
from imaging.volume import CtVolume
from services.dicom.headers import read_header, text
from services.dicom.series_reader import read_series
from training.data_sets.labelled_scan import LabelledScan, ListedScan, labelled_scan, paired_by_name
from training.data_sets.vessel_masks import VesselMasks

VARIABLE = "Mask"
_SLICE_NAME = re.compile(r"D(\d+)\.dcm", re.IGNORECASE)


def scans(folder: Path, masks: VesselMasks) -> list[ListedScan]:
    """All patients by name.

    Raises:
        ConfigurationError: a folder of slices without mask or the other way round.
    """
    patients = [
        (path.name, path)
        for path in sorted(folder.rglob("PAT*"))
        if path.is_dir() and any(_SLICE_NAME.fullmatch(file.name) for file in path.iterdir())
    ]
    mask_files = [(path.stem, path) for path in sorted(folder.rglob("PAT*.mat"))]
    return [
        ListedScan(name, partial(_read, name, slices, mask_file, masks))
        for name, slices, mask_file in paired_by_name(patients, mask_files, folder)
    ]


def _read(name: str, slices: Path, mask_file: Path, masks: VesselMasks) -> LabelledScan:
    numbered = {int(match[1]): path for path in slices.iterdir() if (match := _SLICE_NAME.fullmatch(path.name))}
    mask = _mask(mask_file)
    if sorted(numbered) != list(range(1, mask.shape[2] + 1)):
        raise InputError(
            f"{name} has {len(numbered)} slices numbered {min(numbered)} to {max(numbered)}, "
            f"{mask_file.name} has {mask.shape[2]}",
            code="training.grid",
            remedy="the numbers must run from 1 to the slices of the mask",
        )
    number_of = {text(read_header(path), "SOPInstanceUID"): number for number, path in numbered.items()}
    source = read_series(list(numbered.values()))
    emboli = np.stack([mask[:, :, number_of[uid] - 1] for uid in source.sop_instance_uids])
    labels = CtVolume(emboli.astype(np.int16), source.volume.affine_lps)
    return labelled_scan(name, source.volume, labels, masks.vessels_of(name), masks.lung_of(name))


def _mask(path: Path) -> NDArray[np.uint8]:
    """(row, column, slice), not 0 where there is embolus."""
    try:
        variables = loadmat(path)
    except (MatReadError, OSError, ValueError, TypeError, NotImplementedError, zlib.error) as error:
        raise InputError(
            f"{path.name} cannot be read: {error}", code="input.unreadable", remedy="a MATLAB v5 file is expected"
        ) from error
    mask = variables.get(VARIABLE)
    if mask is None or np.ndim(mask) != 3:
        names = ", ".join(key for key in variables if not key.startswith("__"))
        raise InputError(
            f"{path.name} has no three-dimensional variable {VARIABLE}, only: {names}", code="input.unreadable"
        )
    return np.asarray(mask)
