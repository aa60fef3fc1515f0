"""Breathing during the scan, by what it leaves in the image: a step in the outline of the lungs between two slices.

Anatomy changes steadily from slice to slice. Where the patient breathed in between, the outline jumps: it is displaced
by more between two slices than between those before and behind them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imaging.volume import CtVolume

LUNG_BELOW_HU, AIR_BELOW_HU = -500, -960
_PIXEL_MM = 1.5  # the outline is looked at no finer: noise is not motion
_LEAST_LUNG_CM2 = 30.0  # of a slice; tips of lungs and trachea alone have no outline to measure by
_NEIGHBOURS_MM = 15.0


def largest_step_mm(volume: CtVolume) -> float:
    """Of a canonical volume: by how much more the lungs' outline is displaced between two slices than around them.

    The mean over the outline, in mm; 0 where too little lung is in view.
    """
    slice_mm, row_mm, column_mm = volume.spacing_zyx_mm
    every_row, every_column = (max(1, round(_PIXEL_MM / mm)) for mm in (row_mm, column_mm))
    pixel_mm = float(np.sqrt(row_mm * every_row * column_mm * every_column))
    lungs = _lungs(volume.hu[:, ::every_row, ::every_column])
    area_cm2 = lungs.sum(axis=(1, 2)) * pixel_mm**2 / 100
    changed = (lungs[1:] ^ lungs[:-1]).sum(axis=(1, 2))
    edges = (lungs[:, 1:] ^ lungs[:, :-1]).sum(axis=(1, 2)) + (lungs[:, :, 1:] ^ lungs[:, :, :-1]).sum(axis=(1, 2))
    outline = (edges[1:] + edges[:-1]) / 2
    is_measured = np.minimum(area_cm2[1:], area_cm2[:-1]) >= _LEAST_LUNG_CM2
    displaced_mm = np.where(is_measured, changed / np.maximum(outline, 1) * pixel_mm, np.nan)
    return _largest_excess(displaced_mm, reach=max(2, round(_NEIGHBOURS_MM / slice_mm)))


def _lungs(hu: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Lung by its density; air around the patient is thinner."""
    return (hu < LUNG_BELOW_HU) & (hu > AIR_BELOW_HU)


def _largest_excess(displaced_mm: NDArray[np.float64], *, reach: int) -> float:
    """Of one step over the largest of most of its neighbours."""
    largest = 0.0
    for index in range(reach, len(displaced_mm) - reach):
        around = np.concatenate([displaced_mm[index - reach : index], displaced_mm[index + 1 : index + 1 + reach]])
        if np.isnan(displaced_mm[index]) or np.isnan(around).any():
            continue
        largest = max(largest, float(displaced_mm[index] - np.quantile(around, 0.8)))
    return largest
