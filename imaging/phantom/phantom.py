"""A CT pulmonary angiogram of nobody, with emboli in known places."""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from imaging.phantom.acquisition import acquire, add_motion, add_streaks, draw_scanner
from imaging.phantom.airways import paint_airways
from imaging.phantom.anatomy import Anatomy, grown_organs, organs_of
from imaging.phantom.blood import FILLED, draw_opacification, fill_with_blood, mixing, wall_vessels
from imaging.phantom.body import build_body, render_body
from imaging.phantom.centreline import find_centreline
from imaging.phantom.distractors import paint_lymph_nodes, paint_nodules
from imaging.phantom.emboli import Embolus, insert_emboli
from imaging.phantom.grid import Grid
from imaging.phantom.heart import (
    fill_heart_and_great_vessels,
    heart_chambers,
    join_trunk_to_ventricle,
    superior_vena_cava,
)
from imaging.phantom.landmarks import find_landmarks
from imaging.phantom.painting import Occupancy, blend, occupied_box
from imaging.volume import CtVolume, Labelmap, Mask

DUST_ML = 0.05
AIRWAY_HU, AIRWAY_WALL_HU = -985.0, 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A synthetic CTPA and the truth about it; all arrays zyx on the volume's grid.

    Attributes:
        volume: HU, canonical orientation (slices toward superior, rows toward posterior, columns toward left).
        lung: both lungs, the vessels in them filled in.
        artery: full lumen of the pulmonary arteries, clot included.
        vein: pulmonary veins and left atrium.
        embolus_labelmap: 0 background, 1..n one value per embolus; lies inside `artery`.
        seed: what it was made from.
    """

    volume: CtVolume
    lung: Mask
    artery: Mask
    vein: Mask
    embolus_labelmap: Labelmap
    seed: int


def make_phantom(
    seed: int,
    *,
    shape_zyx: tuple[int, int, int] = (220, 512, 512),
    spacing_zyx_mm: tuple[float, float, float] = (1.25, 0.68, 0.68),
    emboli: int | None = None,
    anatomy: Anatomy | None = None,
    min_embolus_ml: float = 0.0,
    slice_thickness_mm: float | None = None,
) -> Phantom:
    """Make a phantom; the same arguments give the same phantom.

    Args:
        seed: decides everything that is drawn.
        shape_zyx, spacing_zyx_mm: the grid. It is laid about the lungs' centre; what lies outside is not seen.
        emboli: how many; None draws 0..6 (none in a fifth of the phantoms; fewer where a
            small grid shows too little artery).
        anatomy: lungs and vessels of a patient; None grows them.
        min_embolus_ml: no embolus is smaller than this (ml).
        slice_thickness_mm: 0.5..5, whatever the distance between slices; None draws it.

    Raises:
        InputError: more or larger emboli asked for than the arteries in the grid hold, or an anatomy without lungs.
    """
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(6)]
    organ_rng, embolus_rng, body_rng, contrast_rng, distractor_rng, scanner_rng = streams
    centre = np.array([0.0, 8.0, 0.0]) + organ_rng.uniform(-4, 4, 3)
    grid = Grid.centred(shape_zyx, spacing_zyx_mm, (centre[0], centre[1], centre[2]))
    organs = organs_of(anatomy, organ_rng, grid) if anatomy else grown_organs(organ_rng, grid)
    artery = _without_dust(organs.artery, grid)
    vein = (organs.vein > FILLED) & ~artery
    centreline = find_centreline(artery, grid)
    count = _draw_count(embolus_rng) if emboli is None else emboli
    clots, labelmap = insert_emboli(
        embolus_rng, count, grid, organs.artery, artery, centreline, min_embolus_ml, all_must_fit=emboli is not None
    )

    body = build_body(body_rng, grid, organs.lungs)
    hu, lung_share = render_body(body_rng, grid, body, organs.lungs)
    lung = lung_share > 127
    landmarks = find_landmarks(centreline, organs.lungs)
    blood = draw_opacification(contrast_rng)
    chambers = heart_chambers(contrast_rng, landmarks.fork_mm, organs.lungs)
    fill_heart_and_great_vessels(contrast_rng, hu, grid, lung_share, blood, chambers, landmarks.fork_mm, body)
    wall_vessels(hu, grid, organs, lung)
    join_trunk_to_ventricle(hu, grid, lung_share, blood, centreline, organs.lungs, chambers)
    del lung_share
    _blend_cropped(hu, paint_lymph_nodes(distractor_rng, grid, centreline), distractor_rng.uniform(40, 95))
    _blend_cropped(hu, paint_nodules(distractor_rng, grid, organs.lungs), distractor_rng.uniform(10, 90))
    lumen, wall = paint_airways(distractor_rng, grid, centreline, organs.lungs, landmarks)
    _blend_cropped(hu, wall, AIRWAY_WALL_HU)
    _blend_cropped(hu, lumen, AIRWAY_HU)
    del lumen, wall
    fill_with_blood(hu, organs.vein, blood.vein, mixing(contrast_rng, grid, 0.3, (0.3, 0.9)).slices_on(grid))
    fill_with_blood(hu, organs.artery, blood.artery, mixing(contrast_rng, grid, 0.25, (0.15, 0.5)).slices_on(grid))
    _fill_with_clot(embolus_rng, hu, clots)
    if contrast_rng.random() < 0.7:
        add_streaks(contrast_rng, hu, grid, superior_vena_cava(landmarks.fork_mm), 0.12 * blood.cava)
    scanner = draw_scanner(scanner_rng, grid, slice_thickness_mm)
    add_motion(scanner_rng, hu, grid, chambers["muscle"][0], scanner.motion_mm)
    volume = CtVolume(acquire(scanner_rng, hu, grid, scanner), grid.affine_lps())
    return Phantom(volume, lung, artery, vein, labelmap, seed)


def _draw_count(rng: np.random.Generator) -> int:
    return 0 if rng.random() < 0.2 else int(rng.integers(1, 7))


def _without_dust(artery: Occupancy, grid: Grid) -> Mask:
    """The lumen; crumbs of thin branches that the grid is too coarse to keep together are left out."""
    mask = artery > FILLED
    box = occupied_box(mask)
    if box is not None:
        smallest = max(2, int(DUST_ML / grid.voxel_ml))
        mask[box] = cc3d.dust(mask[box], threshold=smallest, connectivity=26)
    return mask


def _fill_with_clot(rng: np.random.Generator, hu: NDArray[np.float32], clots: list[Embolus]) -> None:
    for clot in clots:
        grain = ndimage.gaussian_filter(rng.standard_normal(clot.occupancy.shape).astype(np.float32), 2.0)
        blend(hu[clot.box], clot.occupancy, clot.hu + grain * np.float32(6 / max(float(grain.std()), 1e-6)))


def _blend_cropped(hu: NDArray[np.float32], share: Occupancy, value: float) -> None:
    box = occupied_box(share)
    if box is not None:
        blend(hu[box], share[box], value)
