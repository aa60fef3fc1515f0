"""From embolus probability to a list of lesions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from imaging.components import components
from imaging.errors import ConfigurationError
from imaging.findings import ArteryLevel, Lesion
from imaging.geometry import Box, cropped
from imaging.volume import CtVolume, Labelmap, Mask, Probability

_SCORE_VOLUME_MM3 = 25.0  # a lesion's score is the mean probability of its most probable voxels of this volume
_HULL_POINTS = 400  # from here on only the convex hull's corners are compared for the diameter

# Lumen radius at the lesion from which on a level holds, mm; after the calibres of main, lobar and segmental arteries.
_LEVEL_RADII_MM = ((7.0, ArteryLevel.CENTRAL), (3.8, ArteryLevel.LOBAR), (1.9, ArteryLevel.SEGMENTAL))
_CALIBRE_MARGIN_MM = _LEVEL_RADII_MM[0][0]  # a wall further away than the largest of them changes no level


# Below this, components of probability are background that has run together, not candidates.
_LOWEST_CANDIDATE = 0.05


@dataclass(frozen=True, slots=True)
class LesionThresholds:
    """voxel: probability from which a voxel belongs to a lesion; score: from which a lesion is reported."""

    voxel: float
    score: float
    min_volume_ml: float

    def __post_init__(self) -> None:
        if not 0 < self.voxel <= self.score <= 1:
            raise ConfigurationError(
                f"thresholds voxel {self.voxel} and score {self.score}", remedy="0 < voxel <= score <= 1"
            )


@dataclass(frozen=True, slots=True, eq=False)
class FoundLesions:
    """What `find_lesions` found.

    Attributes:
        labelmap: uint16 (z, y, x), `Lesion.id` as values.
        lesions: best score first.
        scan_probability: the best score of anything large enough to be an embolus, listed or not. Errors of several
            lesions in one scan are not independent, so multiplying their complements would overstate it.
    """

    labelmap: Labelmap
    lesions: tuple[Lesion, ...]
    scan_probability: float


def find_lesions(
    probability: Probability, artery: Mask, volume: CtVolume, thresholds: LesionThresholds, *, min_score: float | None
) -> FoundLesions:
    """Connected components (26 neighbours) of probable voxels.

    Args:
        probability: embolus probability (z, y, x) on the volume's grid, float32.
        artery: pulmonary artery (z, y, x), lumen and clot.
        volume: the CT.
        thresholds: the package's.
        min_score: list candidates down to this score too. The lesions at or above the package's threshold stay as they
            are; what is added scores below it.
    """
    least = thresholds.score if min_score is None else min(min_score, thresholds.score)
    lowest = min(thresholds.voxel, max(least, _LOWEST_CANDIDATE))
    labelmap = np.zeros(probability.shape, dtype=np.uint16)
    lesions: tuple[Lesion, ...] = ()
    best = None
    around = Box.around(probability >= lowest)
    if around is not None:
        # Everything below looks at these voxels and, for the calibre, at the artery next to them: a part of the scan.
        part = around.grown(_calibre_margin(volume), volume.shape_zyx)
        of_part, lesions, best = _listed(
            probability[part.slices], artery[part.slices], cropped(volume, part), thresholds, least
        )
        labelmap[part.slices] = of_part
    if best is None:
        best = _mean_of_best(probability[probability < thresholds.voxel], volume.voxel_volume_mm3)
    return FoundLesions(labelmap, lesions, best)


def _listed(
    probability: Probability, artery: Mask, volume: CtVolume, thresholds: LesionThresholds, least: float
) -> tuple[Labelmap, tuple[Lesion, ...], float | None]:
    """Label map, lesions of the score `least` on, and the best score of anything large enough, None where none is."""
    pieces = components(probability >= thresholds.voxel)
    measured = _measured(pieces, probability, artery, volume, thresholds.min_volume_ml)
    best = max((lesion.score for _, lesion in measured), default=None)
    listed = [(label, lesion) for label, lesion in measured if lesion.score >= least]
    if least < thresholds.voxel:
        weak = components(probability >= max(least, _LOWEST_CANDIDATE))
        large = np.isin(pieces, [label for label, _ in measured])
        weak[np.isin(weak, np.unique(weak[large]))] = 0  # the rim of something measured above
        offset = np.uint32(pieces.max(initial=0))
        weaker = _measured(weak, probability, artery, volume, thresholds.min_volume_ml)
        listed += [(label + int(offset), lesion) for label, lesion in weaker if lesion.score >= least]
        pieces = np.where(weak > 0, weak + offset, pieces * large)
    listed.sort(key=lambda item: (-item[1].score, -item[1].volume_ml, item[1].peak_lps_mm))
    ids = {label: number for number, (label, _) in enumerate(listed, start=1)}
    lesions = tuple(replace(lesion, id=ids[label]) for label, lesion in listed)
    return _lookup(pieces, ids), lesions, best


def _lookup(pieces: NDArray[np.uint32], ids: dict[int, int]) -> Labelmap:
    table = np.zeros(int(pieces.max(initial=0)) + 1, dtype=np.uint16)
    for label, number in ids.items():
        table[label] = number
    labelmap = np.zeros(pieces.shape, dtype=np.uint16)
    for plane, found in zip(labelmap, pieces, strict=True):
        if found.max(initial=0):
            np.take(table, found, out=plane)
    return labelmap


def _mean_of_best(values: Probability, voxel_volume_mm3: float) -> float:
    if values.size == 0:
        return 0.0
    best = max(1, min(values.size, round(_SCORE_VOLUME_MM3 / voxel_volume_mm3)))
    return float(np.partition(values, values.size - best)[-best:].mean())


def _measured(
    pieces: NDArray[np.uint32],
    probability: Probability,
    artery: Mask,
    volume: CtVolume,
    min_volume_ml: float,
) -> list[tuple[int, Lesion]]:
    found = []
    for label, box in enumerate(find_objects(pieces), start=1):
        if box is None:
            continue
        mask = pieces[box] == label
        volume_ml = float(np.count_nonzero(mask)) * volume.voxel_volume_mm3 / 1000.0
        if volume_ml < min_volume_ml:
            continue
        values = probability[box][mask]
        indices = np.argwhere(mask) + [axis.start for axis in box]
        points_mm = volume.point_lps_mm(indices)
        centroid, peak = points_mm.mean(axis=0), points_mm[int(values.argmax())]
        lesion = Lesion(
            id=0,
            score=_mean_of_best(values, volume.voxel_volume_mm3),
            volume_ml=volume_ml,
            centroid_lps_mm=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
            peak_lps_mm=(float(peak[0]), float(peak[1]), float(peak[2])),
            max_diameter_mm=_max_diameter_mm(points_mm) + min(volume.spacing_zyx_mm),
            mean_hu=float(volume.hu[box][mask].mean()),
            artery_level=artery_level(artery, box, mask, volume),
        )
        found.append((label, lesion))
    return found


def _max_diameter_mm(points_mm: NDArray[np.float64]) -> float:
    if len(points_mm) < 2:
        return 0.0
    if len(points_mm) > _HULL_POINTS:
        try:
            points_mm = points_mm[ConvexHull(points_mm).vertices]
        except QhullError:  # flat or straight: few enough points lie on it, or thinning them is harmless
            points_mm = points_mm[:: len(points_mm) // _HULL_POINTS]
    return float(pdist(points_mm).max())


def artery_level(artery: Mask, box: tuple[slice, ...], mask: Mask, volume: CtVolume) -> ArteryLevel:
    """Level by the largest lumen radius (lumen and clot together) among the lesion's voxels.

    Args:
        artery: (z, y, x) on the volume's grid.
        box: a box of it that holds the lesion.
        mask: the lesion's voxels in `box`.
    """
    margin = _calibre_margin(volume)
    wide = tuple(slice(max(0, b.start - m), b.stop + m) for b, m in zip(box, margin, strict=True))
    inside = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, wide, strict=True))
    lumen = artery[wide].copy()
    lumen[inside] |= mask
    padded = np.pad(lumen, 1)
    radius_mm = distance_transform_edt(padded, sampling=volume.spacing_zyx_mm)[1:-1, 1:-1, 1:-1]
    largest = float(radius_mm[inside][mask].max())
    return next((level for radius, level in _LEVEL_RADII_MM if largest >= radius), ArteryLevel.SUBSEGMENTAL)


def _calibre_margin(volume: CtVolume) -> tuple[int, int, int]:
    """Voxels (z, y, x) around a lesion within which a wall may tell its artery's level."""
    z, y, x = (int(np.ceil(_CALIBRE_MARGIN_MM / step)) for step in volume.spacing_zyx_mm)
    return z, y, x
