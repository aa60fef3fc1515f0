"""The scans a package is judged on: phantoms nothing was trained on, CT with known emboli, CT as it comes."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cc3d
import nibabel
import numpy as np
from numpy.typing import NDArray

from imaging.errors import ConfigurationError, InputError
from imaging.volume import CtVolume, Labelmap, Mask
from services.dicom.input_reader import NIFTI_SUFFIXES, read_input
from training.cases import CaseSpec, held_out_specs
from training.phantoms import acquire_phantom
from training.recipe import DataRecipe, Recipe

GROWN, ANATOMIES, INSERTED, LABELLED, REAL = "grown", "anatomies", "inserted", "labelled", "real"
PHANTOMS = (GROWN, ANATOMIES)

# Embolus-free phantoms have seeds of their own, so that asking for more of one kind renames none of the other.
NEGATIVE_SEED_OFFSET = 500_000

IMAGE_PATTERN, EMBOLUS_FILE, ARTERY_FILE = "ct*.nii*", "embolus.nii.gz", "pulmonary_artery.nii.gz"


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationScan:
    """One scan and what is known about it; masks (z, y, x) on the volume's grid.

    Attributes:
        kind: GROWN, ANATOMIES (phantoms), INSERTED (emboli put into a real CT), LABELLED (real ones, outlined) or
            REAL (nothing is known about emboli in it).
        embolus: one value per embolus, all zero where there is none; None: not known.
        artery: the pulmonary artery, lumen and clot; None: not known.
        lung: both lungs; None: not known.
    """

    name: str
    kind: str
    volume: CtVolume
    embolus: Labelmap | None = None
    artery: Mask | None = None
    lung: Mask | None = None


@dataclass(frozen=True, slots=True)
class PlannedScan:
    """A scan that is made or read when its turn comes; a run that goes on after a stop skips it by its name."""

    name: str
    kind: str
    load: Callable[[], EvaluationScan]


def phantom_scans(recipe: Recipe, anatomies: Path | None, cases: int, negatives: int) -> list[PlannedScan]:
    """`cases` phantoms rich in emboli and `negatives` without any, from the recipe's test seeds on.

    Every other one is on a held-out anatomy where `anatomies` (a folder of label maps) is given.
    """
    data = recipe.data
    without = replace(data, test_seed=data.test_seed + NEGATIVE_SEED_OFFSET)
    return [
        *(_planned_phantom(data, spec, rich=True) for spec in held_out_specs(data, anatomies, cases)),
        *(_planned_phantom(data, spec, rich=False) for spec in held_out_specs(without, anatomies, negatives)),
    ]


def _planned_phantom(data: DataRecipe, spec: CaseSpec, *, rich: bool) -> PlannedScan:
    kind = ANATOMIES if spec.anatomy else GROWN
    return PlannedScan(spec.name, kind, partial(_phantom, data, spec, kind, rich))


def _phantom(data: DataRecipe, spec: CaseSpec, kind: str, rich: bool) -> EvaluationScan:
    phantom = acquire_phantom(data, spec.seed, spec.anatomy, rich=rich, emboli=None if rich else 0)
    return EvaluationScan(spec.name, kind, phantom.volume, phantom.embolus_labelmap, phantom.artery, phantom.lung)


def labelled_scans(
    labelled: Iterable[tuple[str, CtVolume, Labelmap] | tuple[str, CtVolume, Labelmap, Mask]], kind: str = INSERTED
) -> Iterator[PlannedScan]:
    """Scans from anything that yields (name, volume, embolus label map[, artery])."""
    for name, volume, embolus, *artery in labelled:
        scan = EvaluationScan(name, kind, volume, embolus, artery[0] if artery else None)
        yield PlannedScan(name, kind, partial(_as_is, scan))


def _as_is(scan: EvaluationScan) -> EvaluationScan:
    return scan


def scans_in(folder: Path, kind: str) -> list[PlannedScan]:
    """Every scan of a folder: archives (.tar.*, .zip) and folders of DICOM, NIfTI files, and folders of NIfTI.

    A folder of NIfTI holds the image (`ct*.nii.gz`) and on its grid, where known, `embolus.nii.gz` (one value per
    embolus, or 1 for all) and `pulmonary_artery.nii.gz`.

    Raises:
        ConfigurationError: nothing there.
    """
    entries = sorted(path for path in folder.glob("*") if not path.name.startswith(".")) if folder.is_dir() else []
    if not entries:
        raise ConfigurationError(
            f"no scans in {folder}", code="evaluation.scans", remedy="see training/evaluation_scans.py"
        )
    return [PlannedScan(path.name.split(".")[0], kind, partial(read_scan, path, kind)) for path in entries]


def read_scan(path: Path, kind: str) -> EvaluationScan:
    """One entry of `scans_in`.

    Raises:
        NotAnalysable / InputError: as `read_input`; a mask that does not lie on the image's grid.
    """
    name = path.name.split(".")[0]
    images = sorted(path.glob(IMAGE_PATTERN)) if path.is_dir() else []
    if images:
        volume = read_input(images[0]).volume
        embolus, artery = (labels_on_grid(path / file, volume) for file in (EMBOLUS_FILE, ARTERY_FILE))
        return EvaluationScan(
            name, kind, volume, None if embolus is None else _numbered(embolus), None if artery is None else artery > 0
        )
    if path.is_dir() or path.name.endswith(NIFTI_SUFFIXES):
        return EvaluationScan(name, kind, read_input(path).volume)
    with TemporaryDirectory() as unpacked:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                archive.extractall(unpacked, filter="data")
        else:
            shutil.unpack_archive(path, unpacked)
        return EvaluationScan(name, kind, read_input(Path(unpacked)).volume)


def labels_on_grid(path: Path, volume: CtVolume) -> NDArray[np.uint16] | None:
    """Labels (z, y, x) of a NIfTI file on the grid of a NIfTI image; None where there is no such file.

    Raises:
        InputError: it has other voxels than the image.
    """
    if not path.is_file():
        return None
    labels = np.asarray(nibabel.nifti1.load(path).dataobj).transpose(2, 1, 0).astype(np.uint16)
    if labels.shape != volume.shape_zyx:
        raise InputError(
            f"{path.name} has {labels.shape} voxels, its image {volume.shape_zyx}",
            code="evaluation.grid",
            remedy="put the mask on the image's grid",
        )
    return np.ascontiguousarray(labels)


def _numbered(embolus: NDArray[np.uint16]) -> Labelmap:
    """A mask that calls all emboli 1 becomes one label for each connected one."""
    if int(embolus.max(initial=0)) > 1:
        return embolus
    return np.asarray(cc3d.connected_components(embolus > 0, connectivity=26, out_dtype=np.uint16), dtype=np.uint16)
