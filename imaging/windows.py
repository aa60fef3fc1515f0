"""How Hounsfield units become network input: the one place that training and inference share.

Windows are fixed HU ranges mapped to 0..1 and clipped, never per-slice minima and maxima, so that a value means the
same density in every scan. The networks after the ROI work on the canonical 1 mm grid (z, y, x; +S, +P, +L).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Channels = NDArray[np.float32]

EMBOLUS_WINDOW_HU = (-100.0, 500.0)  # AANet (Guo et al., MICCAI 2022): clot, lumen and wall in one range
LUNG_WINDOW_HU = (-1000.0, 200.0)
MEDIASTINAL_WINDOW_HU = (-150.0, 250.0)
ROI_WINDOW_HU = (-1000.0, 400.0)
UNET_CHANNELS = 5


def window(hu: NDArray[Any], low_hu: float, high_hu: float) -> Channels:
    """HU -> 0..1 between `low_hu` and `high_hu`, clipped; float32, same shape."""
    scaled = (hu.astype(np.float32) - np.float32(low_hu)) * np.float32(1.0 / (high_hu - low_hu))
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def aanet_input(hu: NDArray[Any]) -> Channels:
    """HU of a 1 mm block -> AANet's one channel; same shape, float32 0..1."""
    return window(hu, *EMBOLUS_WINDOW_HU)


def unet_channels(hu_zyx: NDArray[Any], z: int) -> Channels:
    """The 2D networks' view of slice `z`: (5, y, x) float32 0..1.

    Channels: embolus window at z-1, z, z+1 (slices beyond the ends repeat the last one), lung window at z,
    mediastinal window at z.
    """
    return unet_channel_stack(hu_zyx, (z,)).reshape(UNET_CHANNELS, *hu_zyx.shape[1:])


def unet_channel_stack(hu_zyx: NDArray[Any], slices: Sequence[int]) -> Channels:
    """`unet_channels` of several slices at once: (len(slices), 5, y, x)."""
    centre = np.asarray(slices, dtype=np.intp)
    last = hu_zyx.shape[0] - 1
    stack = np.empty((len(centre), UNET_CHANNELS, *hu_zyx.shape[1:]), dtype=np.float32)
    for channel, offset in enumerate((-1, 0, 1)):
        stack[:, channel] = window(hu_zyx[np.clip(centre + offset, 0, last)], *EMBOLUS_WINDOW_HU)
    stack[:, 3] = window(hu_zyx[centre], *LUNG_WINDOW_HU)
    stack[:, 4] = window(hu_zyx[centre], *MEDIASTINAL_WINDOW_HU)
    return stack


def roi_input(hu_slice: NDArray[Any], size_yx: tuple[int, int]) -> Channels:
    """An axial slice (y, x), whole field of view -> the lung detector's input (size_y, size_x), float32 0..1.

    The slice is stretched, not letterboxed, by area averaging: box coordinates relative to the input are
    coordinates relative to the slice.
    """
    rows = _area_weights(hu_slice.shape[0], size_yx[0])
    columns = _area_weights(hu_slice.shape[1], size_yx[1])
    resized: Channels = (rows @ window(hu_slice, *ROI_WINDOW_HU) @ columns.T).astype(np.float32, copy=False)
    return resized


def _area_weights(source: int, target: int) -> Channels:
    """(target, source) matrix: each target pixel is the mean of the stretch of source pixels it covers."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(covered, 0.0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
