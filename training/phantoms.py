"""A phantom as training wants it: acquired with a spacing of its own, then brought to the 1 mm canonical grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from imaging.errors import InputError
from imaging.geometry import Box, WorkingGrid, to_canonical
from imaging.phantom import Anatomy, Phantom, make_phantom
from imaging.volume import CtVolume
from training.recipe import DataRecipe

WORKING_SPACING_MM = 1.0
THICK_SLICE_SHARE = 0.12
THICKEST_SLICE_MM = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class CasePhantom:
    """One phantom on the 1 mm canonical grid, whole field of view; arrays (z, y, x).

    `hu` int16; `lung`, `artery` (clot included), `vein` bool; `embolus` uint8, one value per embolus.
    """

    hu: NDArray[np.int16]
    lung: NDArray[np.bool_]
    artery: NDArray[np.bool_]
    vein: NDArray[np.bool_]
    embolus: NDArray[np.uint8]


def acquire_phantom(
    data: DataRecipe, seed: int, anatomy: Path | None, *, rich: bool = False, emboli: int | None = None
) -> Phantom:
    """The phantom of `seed`, grown or on the label map `anatomy`, with a random field of view and spacing.

    Slices are about as thick as they are apart, in some cases up to 5 mm thick and overlapping.
    `rich` puts in as many emboli as the recipe's training cases hold, or the most there is room for; otherwise there
    are as many as in phantoms made to be looked at, which may be none; or exactly `emboli` of them.
    """
    rng = np.random.default_rng((seed, 1))
    in_plane = float(rng.uniform(*data.spacing_yx_mm))
    between_slices = float(rng.uniform(*data.spacing_z_mm))
    pixels = round(rng.uniform(*data.field_of_view_mm) / in_plane)
    thickness = between_slices * float(rng.uniform(0.9, 1.4))
    if rng.random() < THICK_SLICE_SHARE:
        thickness = float(rng.uniform(between_slices, THICKEST_SLICE_MM))
    make = partial(
        make_phantom,
        seed,
        shape_zyx=(round(data.length_mm / between_slices), pixels, pixels),
        spacing_zyx_mm=(between_slices, in_plane, in_plane),
        anatomy=None if anatomy is None else read_anatomy(anatomy),
        slice_thickness_mm=thickness,
    )
    if not rich:
        return make(emboli=emboli)
    for count in range(int(rng.integers(*data.emboli_per_case)), 0, -1):
        try:
            return make(emboli=count)
        except InputError as error:
            if error.code != "phantom.no_room":
                raise
    return make(emboli=0)


def on_working_grid(phantom: Phantom) -> CasePhantom:
    """A phantom on the 1 mm grid that the cascade works on, resampled as the cascade does it."""
    volume, _ = to_canonical(phantom.volume)
    whole = whole_working_grid(volume)
    return CasePhantom(
        hu=whole.resample(volume.hu),
        lung=nearest_labels(phantom.lung, whole),
        artery=nearest_labels(phantom.artery, whole),
        vein=nearest_labels(phantom.vein, whole),
        embolus=nearest_labels(phantom.embolus_labelmap.astype(np.uint8), whole),
    )


def whole_working_grid(volume: CtVolume) -> WorkingGrid:
    """The 1 mm grid over all of a canonical volume."""
    return WorkingGrid.over(volume, Box((0, 0, 0), volume.shape_zyx), WORKING_SPACING_MM)


def nearest_labels(labels: NDArray[Any], grid: WorkingGrid) -> NDArray[Any]:
    """The label at each voxel centre of `grid`, which covers the whole canonical volume that `labels` lie on."""
    index = []
    for count, target, spacing in zip(labels.shape, grid.shape_zyx, grid.source_spacing_zyx_mm, strict=True):
        position = (np.arange(target) + 0.5) * grid.spacing_mm / spacing - 0.5
        index.append(np.clip(np.rint(position), 0, count - 1).astype(np.intp))
    return np.ascontiguousarray(labels[np.ix_(*index)])


def read_anatomy(path: Path) -> Anatomy:
    """A label map (NIfTI) with the values that `Anatomy` names."""
    image = nibabel.nifti1.load(path)
    affine_ras = np.asarray(image.affine, dtype=np.float64)[:, [2, 1, 0, 3]]  # columns for (z, y, x)
    return Anatomy(
        labelmap=np.ascontiguousarray(np.asarray(image.dataobj, dtype=np.uint8).transpose(2, 1, 0)),
        affine_lps=np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras,
    )
