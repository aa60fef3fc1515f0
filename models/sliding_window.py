"""A network run over a volume in overlapping windows that are fitted to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from imaging.errors import OutOfMemory
from models.out_of_memory import memory_running_out

Slices = tuple[slice, slice, slice]


def fitted_windows(extent: int, window: int, overlap: float, multiple: int = 16) -> tuple[int, list[int]]:
    """Window size and equally spaced starts that cover one axis of `extent` voxels.

    As many windows as `window` with at least `overlap` (a fraction of it) needs, but no larger than necessary for
    that many; always a multiple of `multiple`. Only a single window can reach beyond the volume.
    """
    if window % multiple or window <= 0:
        raise ValueError(f"window {window} must be a positive multiple of {multiple}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} must be at least 0 and below 1")
    if extent <= window:
        return multiple * math.ceil(extent / multiple), [0]
    shared = math.ceil(overlap * window)
    count = math.ceil((extent - shared) / (window - shared))
    size = min(window, multiple * math.ceil((extent + (count - 1) * shared) / count / multiple))
    return size, [round(index * (extent - size) / (count - 1)) for index in range(count)]


def sliding_window(
    volume: Tensor,
    predict: Callable[[Tensor], Tensor],
    *,
    window_zyx: Sequence[int],
    overlap: float = 0.25,
    keep: Callable[[Slices], bool] | None = None,
    batch: int = 1,
    on_progress: Callable[[float], None] | None = None,
    multiple: int = 16,
) -> Tensor:
    """Predicts a whole volume window by window and blends where windows overlap.

    A voxel's answer is the mean over the windows that cover it, weighted by its distance to the window's nearest face
    (one at the face, so nothing is left uncovered): near a face a network sees least of the surroundings.

    Args:
        volume: (D, H, W). Padded with zeros where it is smaller than a window.
        predict: (N, 1, d, h, w) -> (N, K, d, h, w). Cast to float32 here.
        window_zyx: largest window, multiples of `multiple`; see `fitted_windows`.
        overlap: smallest overlap, as a fraction of the window.
        keep: is asked with a window's place in the volume; where it says False the window is not run.
        batch: windows per call of `predict`; fewer from where memory runs out.
        on_progress: called with the share of windows done after each batch; may raise to stop.

    Returns:
        float32 (K, D, H, W). Zero where no window was run.

    Raises:
        OutOfMemory: not even one window at a time fits.
    """
    depth, height, width = volume.shape
    axes = [
        fitted_windows(extent, window, overlap, multiple)
        for extent, window in zip(volume.shape, window_zyx, strict=True)
    ]
    size_zyx = [size for size, _ in axes]
    places = [place for place in _places(volume.shape, axes) if keep is None or keep(place)]
    weight = _distance_to_face(size_zyx).to(volume.device)
    total: Tensor | None = None
    weights = torch.zeros((depth, height, width), dtype=torch.float32, device=volume.device)
    first = 0
    while first < len(places):
        chosen = places[first : first + batch]
        try:
            with memory_running_out():
                windows = torch.stack([_padded(volume[place], size_zyx) for place in chosen])[:, None]
                predictions = predict(windows).to(device=volume.device, dtype=torch.float32)
        except OutOfMemory:
            if len(chosen) == 1:
                raise
            batch = len(chosen) // 2
            continue
        if total is None:
            total = weights.new_zeros((predictions.shape[1], depth, height, width))
        for place, prediction in zip(chosen, predictions, strict=True):
            inside = tuple(slice(0, part.stop - part.start) for part in place)
            inner = weight[inside]
            total[(slice(None), *place)].addcmul_(prediction[(slice(None), *inside)], inner)
            weights[place] += inner
        first += len(chosen)
        if on_progress is not None:
            on_progress(first / len(places))
    if total is None:
        # Nothing was worth running; one empty window tells how many channels the answer has.
        channels = predict(volume.new_zeros((1, 1, *size_zyx))).shape[1]
        return weights.new_zeros((channels, depth, height, width))
    return total.div_(weights.clamp_min_(1.0))


def _places(shape: Sequence[int], axes: Sequence[tuple[int, list[int]]]) -> Iterator[Slices]:
    """Every window's place, clipped to the volume."""
    for z, y, x in itertools.product(*(starts for _, starts in axes)):
        yield (
            slice(z, min(z + axes[0][0], shape[0])),
            slice(y, min(y + axes[1][0], shape[1])),
            slice(x, min(x + axes[2][0], shape[2])),
        )


def _padded(window: Tensor, size_zyx: Sequence[int]) -> Tensor:
    missing = [size - extent for size, extent in zip(size_zyx, window.shape, strict=True)]
    return F.pad(window, (0, missing[2], 0, missing[1], 0, missing[0])) if any(missing) else window


def _distance_to_face(size_zyx: Sequence[int]) -> Tensor:
    """(d, h, w) float32: 1 in the outermost voxels, growing by one towards the centre."""
    z, y, x = (torch.minimum(torch.arange(size), torch.arange(size).flip(0)) + 1.0 for size in size_zyx)
    return torch.minimum(torch.minimum(z[:, None, None], y[None, :, None]), x[None, None, :])
