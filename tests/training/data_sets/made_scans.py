"""A chest in miniature whose lungs and one embolus are boxes, in the layout of each data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from scipy.io import savemat

from imaging.volume import CtVolume
from services.dicom.ct_nifti_writer import write_ct_nifti
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.label_nifti import nifti_of, save_nifti
from training.recipe import DataRecipe, Recipe

SHAPE_ZYX = (40, 48, 56)
SPACING_ZYX_MM = (5.0, 4.0, 4.0)
ORIGIN_LPS_MM = (-110.0, -95.0, -900.0)
LUNG_Z, LUNG_Y, LUNG_X = slice(6, 34), slice(12, 36), (slice(8, 24), slice(32, 48))
EMBOLUS_ZYX = (15, 20, 28)
EMBOLUS_HU = 50

# On the 1 mm grid voxel (z, y, x) of 5 x 4 x 4 mm becomes 5z.., 4y.., 4x..; a case begins 12 mm before the lungs.
CASE_START = (6 * 5 - 12, 12 * 4 - 12, 8 * 4 - 12)
CASE_SHAPE = (28 * 5 + 24, 24 * 4 + 24, 40 * 4 + 24)
EMBOLUS_IN_CASE = tuple(
    slice(n * mm - start, (n + 1) * mm - start) for n, mm, start in zip(EMBOLUS_ZYX, (5, 4, 4), CASE_START, strict=True)
)


def recipe_data() -> DataRecipe:
    return Recipe.read(Path(__file__).parents[3] / "training/recipes/phantoms.toml").data


def made_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(SPACING_ZYX_MM)[::-1]
    affine[:3, 3] = ORIGIN_LPS_MM
    return affine


def made_chest() -> CtVolume:
    """Canonical orientation."""
    hu = np.full(SHAPE_ZYX, -1000, np.int16)
    hu[:, 6:42, 4:52] = 40
    for side in LUNG_X:
        hu[LUNG_Z, LUNG_Y, side] = -850
    hu[10:20, 18:24, 25:31] = 300
    hu[EMBOLUS_ZYX] = EMBOLUS_HU
    return CtVolume(hu, made_affine())


def made_emboli(*places_zyx: tuple[int, int, int], values: Sequence[int] = ()) -> np.ndarray:
    """One voxel at each place, 1 or the value given for it."""
    labels = np.zeros(SHAPE_ZYX, np.uint8)
    for index, place in enumerate(places_zyx):
        labels[place] = values[index] if values else 1
    return labels


def made_lung() -> np.ndarray:
    lung = np.zeros(SHAPE_ZYX, np.uint8)
    for side in LUNG_X:
        lung[LUNG_Z, LUNG_Y, side] = 1
    return lung


def made_vessels() -> np.ndarray:
    """The bright box is artery, a box beside it vein."""
    vessels = np.zeros(SHAPE_ZYX, np.uint8)
    vessels[10:20, 18:24, 25:31] = 1
    vessels[10:20, 26:30, 25:31] = 2
    return vessels


def write_nrrd(path: Path, array: np.ndarray, *, flipped: bool = False, says_place: bool = True) -> None:
    """An array on the chest's grid; `flipped` stores it from left to right and back to front, with such directions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = np.array(ORIGIN_LPS_MM)
    if flipped:
        array = array[:, ::-1, ::-1]
        origin = origin + np.array([(SHAPE_ZYX[2] - 1) * SPACING_ZYX_MM[2], (SHAPE_ZYX[1] - 1) * SPACING_ZYX_MM[1], 0])
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array))
    if says_place:
        image.SetSpacing(SPACING_ZYX_MM[::-1])
        image.SetOrigin(origin.tolist())
        if flipped:
            image.SetDirection([-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0])
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def write_cad_pe(folder: Path, *names: str, flipped: bool = False) -> None:
    for name in names:
        write_nrrd(folder / f"images/{name}.nrrd", made_chest().hu, flipped=flipped)
        write_nrrd(folder / f"rs/{name}RefStd.nrrd", made_emboli(EMBOLUS_ZYX), flipped=flipped)


def write_masks(folder: Path, *names: str) -> None:
    """As AANet publishes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_nifti(nifti_of(made_vessels(), made_affine()), folder / f"{name}.nii.gz")
        save_nifti(nifti_of(made_lung(), made_affine()), folder / f"{name}_lungmask.nii.gz")


def write_fumpe(folder: Path, *names: str) -> None:
    """As FUMPE is laid out; D0001.dcm is the uppermost slice."""
    chest, emboli = made_chest(), made_emboli(EMBOLUS_ZYX)
    for name in names:
        slices = folder / "CT_scans" / name
        written = write_ct_series(chest, slices, patient_id=name, patient_name=name)
        for number, path in enumerate(reversed(written), start=1):
            path.rename(slices / f"D{number:04d}.dcm")
        (folder / "GroundTruth").mkdir(parents=True, exist_ok=True)
        savemat(folder / f"GroundTruth/{name}.mat", {"Mask": emboli[::-1].transpose(1, 2, 0)}, do_compression=True)


def write_pair(image: Path, label: Path, labels: np.ndarray | None = None) -> None:
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_ct_nifti(made_chest(), image)
    save_nifti(nifti_of(made_emboli(EMBOLUS_ZYX) if labels is None else labels, made_affine()), label)
