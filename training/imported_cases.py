"""Scans of a data set as training cases, or as scans to judge a package on.

`train.py --data FOLDER` trains on the cases; `embolens evaluate --labelled FOLDER` judges on the scans, which lie there
at full resolution in a form that no training reads.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.errors import InputError, NotAnalysable
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.label_nifti import nifti_of, save_nifti
from training.cases import ARTERY, LUNG, VEIN, write_case, written_whole
from training.data_sets.labelled_scan import LabelledScan, ListedScan
from training.evaluation_scans import ARTERY_FILE, EMBOLUS_FILE
from training.lungs_by_threshold import find_lungs
from training.phantoms import nearest_labels, whole_working_grid
from training.recipe import DataRecipe

IMAGE_FILE = "ct.nii.gz"


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one scan: `refusal` says why it was left out, else it is in the folder `name`."""

    name: str
    emboli: int = 0
    refusal: InputError | NotAnalysable | None = None


def import_cases(scans: Sequence[ListedScan], output: Path, data: DataRecipe) -> Iterator[Imported]:
    """Writes each scan as a training case into `output`; those that are there already are passed over."""

    def write(scan: LabelledScan, folder: Path) -> None:
        write_training_case(scan, folder, data)

    return _written(scans, output, write)


def import_for_evaluation(scans: Sequence[ListedScan], output: Path) -> Iterator[Imported]:
    """Writes each scan as `training.evaluation_scans.read_scan` reads it; those already there are passed over."""
    return _written(scans, output, write_evaluation_scan)


def write_training_case(scan: LabelledScan, folder: Path, data: DataRecipe) -> None:
    """Resamples a scan to the 1 mm grid as the cascade does, labels by the nearest voxel.

    Where nobody has marked the lungs, thresholds find them; where nobody has marked arteries, the case says so.
    """
    grid = whole_working_grid(scan.volume)
    hu = grid.resample(scan.volume.hu)
    lung = find_lungs(hu) if scan.lung is None else nearest_labels(scan.lung, grid)
    embolus = nearest_labels(scan.embolus, grid).astype(np.uint8)
    anatomy = lung.astype(np.uint8) * LUNG
    if scan.artery is not None:
        if scan.vein is not None:
            anatomy[nearest_labels(scan.vein, grid)] = VEIN
        anatomy[nearest_labels(scan.artery, grid) | (embolus > 0)] = ARTERY
    write_case(
        folder,
        hu,
        lung,
        anatomy,
        embolus,
        data,
        seed=zlib.crc32(scan.name.encode()),
        vessels_known=scan.artery is not None,
    )


def write_evaluation_scan(scan: LabelledScan, folder: Path) -> None:
    write_ct_nifti(scan.volume, folder / IMAGE_FILE)
    save_nifti(nifti_of(scan.embolus, scan.volume.affine_lps), folder / EMBOLUS_FILE)
    if scan.artery is not None:
        save_nifti(nifti_of(scan.artery, scan.volume.affine_lps), folder / ARTERY_FILE)


def _written(
    scans: Sequence[ListedScan], output: Path, write: Callable[[LabelledScan, Path], None]
) -> Iterator[Imported]:
    output.mkdir(parents=True, exist_ok=True)
    for listed in scans:
        folder = output / listed.name
        if folder.is_dir():
            continue
        try:
            scan = listed.load()
            with written_whole(folder) as unfinished:
                write(scan, unfinished)
        except (InputError, NotAnalysable) as refusal:
            yield Imported(listed.name, refusal=refusal)
        else:
            yield Imported(listed.name, int(scan.embolus.max()))
