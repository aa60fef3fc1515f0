"""Canonical orientation, and the isotropic working grid inside a region of interest.

Canonical: slices toward superior (+S), rows toward posterior (+P), columns toward left (+L), as near as permuting and
flipping the axes comes; nothing is interpolated. The working grid keeps these axes and changes only the spacing, so
resampling is three small matrix products, one per axis, and back again the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from imaging.volume import Affine, CtVolume, Mask

# The canonical step of each array axis (z, y, x) in LPS: +S, +P, +L.
_CANONICAL_STEPS = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


@dataclass(frozen=True, slots=True)
class AxisOrder:
    """How an array is turned into canonical orientation: `np.flip(a.transpose(axes), flipped)`."""

    axes: tuple[int, ...]
    flipped: tuple[int, ...]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Array on the input's grid -> canonical view (no copy)."""
        return np.flip(array.transpose(self.axes), self.flipped)

    def undo(self, array: NDArray[Any]) -> NDArray[Any]:
        """Canonical array -> view on the input's grid."""
        return np.flip(array, self.flipped).transpose(tuple(int(axis) for axis in np.argsort(self.axes)))


def to_canonical(volume: CtVolume) -> tuple[CtVolume, AxisOrder]:
    """The same voxels in canonical orientation, and the way back."""
    # alignment[k, c]: how far array axis k runs along canonical axis c
    alignment = volume.direction_cosines.T @ _CANONICAL_STEPS.T
    axes = max(permutations(range(3)), key=lambda order: sum(abs(alignment[order[c], c]) for c in range(3)))
    flipped = tuple(c for c in range(3) if alignment[axes[c], c] < 0)
    order = AxisOrder(axes, flipped)
    affine = volume.affine_lps[:, [*axes, 3]].copy()
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (volume.hu.shape[axes[axis]] - 1)
        affine[:3, axis] *= -1
    return CtVolume(order.apply(volume.hu), affine), order


# Voxels of two grids are the same where none lies further from its counterpart than this part of itself.
SAME_VOXEL = 0.1


def laid_onto(
    labels: NDArray[Any], affine_lps: Affine, volume: CtVolume, *, may_be_part: bool = False
) -> NDArray[Any] | None:
    """Labels of another grid (affine (z, y, x) -> LPS) as an array of the volume's, or None where voxels do not agree.

    Axes are permuted and flipped, nothing is interpolated.

    Args:
        may_be_part: whether the labels may lie on a part of the volume's grid, or beyond it where they are 0.
    """
    to_volume = np.linalg.inv(volume.affine_lps) @ affine_lps
    turn = np.rint(to_volume[:3, :3]).astype(int)
    axes = np.abs(turn).argmax(axis=0)  # of the volume, by axis of the labels
    if sorted(axes) != [0, 1, 2] or np.abs(turn).sum() != 3:
        return None
    corners = np.array(list(product(*((0, n - 1) for n in labels.shape))))
    found = corners @ to_volume[:3, :3].T + to_volume[:3, 3]
    first = np.rint(to_volume[:3, 3]).astype(int)
    expected = corners @ turn.T + first
    if np.abs(found - expected).max() > SAME_VOXEL:
        return None
    turned = np.flip(labels.transpose(np.argsort(axes)), tuple(axis for axis in range(3) if turn[axis].sum() < 0))
    start, stop = expected.min(axis=0), expected.max(axis=0) + 1
    if not may_be_part:
        return turned if turned.shape == volume.shape_zyx and not start.any() else None
    inside = [slice(max(0, a), min(n, b)) for a, b, n in zip(start, stop, volume.shape_zyx, strict=True)]
    if any(part.start >= part.stop for part in inside):
        return None if labels.any() else np.zeros(volume.shape_zyx, dtype=labels.dtype)
    shown = turned[tuple(slice(part.start - a, part.stop - a) for part, a in zip(inside, start, strict=True))]
    if np.count_nonzero(shown) != np.count_nonzero(labels):
        return None
    whole = np.zeros(volume.shape_zyx, dtype=labels.dtype)
    whole[tuple(inside)] = shown
    return whole


def nearest_onto(labels: NDArray[Any], affine_lps: Affine, volume: CtVolume) -> NDArray[Any]:
    """Labels of another grid on the volume's, each voxel from the nearest one; 0 outside."""
    to_labels = np.linalg.inv(affine_lps) @ volume.affine_lps
    slices, rows, columns = volume.shape_zyx
    in_plane = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1) @ to_labels[:3, 1:3].T
    nearest = np.zeros(volume.shape_zyx, dtype=labels.dtype)
    for z in range(slices):
        index = np.rint(in_plane + (to_labels[:3, 0] * z + to_labels[:3, 3])).astype(int)
        inside = np.all((index >= 0) & (index < labels.shape), axis=-1)
        nearest[z][inside] = labels[tuple(index[inside].T)]
    return nearest


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels: `start_zyx` inside, `stop_zyx` outside."""

    start_zyx: tuple[int, int, int]
    stop_zyx: tuple[int, int, int]

    @classmethod
    def around(cls, mask: Mask) -> Box | None:
        """The smallest box that holds all that is set; None where nothing is."""
        in_plane = np.any(mask, axis=0)
        along_each = ([plane.any() for plane in mask], np.any(in_plane, axis=1), np.any(in_plane, axis=0))
        extents = [np.flatnonzero(along) for along in along_each]
        if not extents[0].size:
            return None
        z, y, x = ((int(along[0]), int(along[-1]) + 1) for along in extents)
        return cls((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(start, stop) for start, stop in zip(self.start_zyx, self.stop_zyx, strict=True))
        return z, y, x

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        z, y, x = (stop - start for start, stop in zip(self.start_zyx, self.stop_zyx, strict=True))
        return z, y, x

    def grown(self, margin_zyx: tuple[int, int, int], shape_zyx: tuple[int, int, int]) -> Box:
        """The box with a margin on every side, kept inside a volume of `shape_zyx`."""
        starts = [max(0, s - m) for s, m in zip(self.start_zyx, margin_zyx, strict=True)]
        stops = [min(n, s + m) for s, m, n in zip(self.stop_zyx, margin_zyx, shape_zyx, strict=True)]
        return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))


@dataclass(frozen=True, slots=True, eq=False)
class WorkingGrid:
    """An isotropic grid over a box of a canonical volume.

    Attributes:
        box: the voxels of the canonical volume it covers.
        spacing_mm: of the working grid, the same along all axes.
        shape_zyx: of the working grid.
    """

    box: Box
    source_spacing_zyx_mm: tuple[float, float, float]
    spacing_mm: float
    shape_zyx: tuple[int, int, int]

    @classmethod
    def over(cls, volume: CtVolume, box: Box, spacing_mm: float) -> WorkingGrid:
        spacing = volume.spacing_zyx_mm
        extents_mm = [n * step for n, step in zip(box.shape_zyx, spacing, strict=True)]
        z, y, x = (max(1, round(extent / spacing_mm)) for extent in extents_mm)
        return cls(box, spacing, spacing_mm, (z, y, x))

    def resample(self, canonical_hu: NDArray[np.int16]) -> NDArray[np.int16]:
        """HU of the whole canonical volume -> HU on this grid, averaged where the grid is coarser than the source."""
        weights = [
            _interpolation(n, step / self.spacing_mm, self.shape_zyx[axis])
            for axis, (n, step) in enumerate(zip(self.box.shape_zyx, self.source_spacing_zyx_mm, strict=True))
        ]
        hu = np.empty(self.shape_zyx, dtype=np.int16)
        for target, plane in zip(hu, _planes(canonical_hu[self.box.slices], weights), strict=True):
            np.rint(plane, out=target, casting="unsafe")
        return hu

    def restore(self, working: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values on this grid -> the box's voxels of the canonical volume, linearly; shape `box.shape_zyx`."""
        values = np.empty(self.box.shape_zyx, dtype=np.float32)
        for target, plane in zip(values, _planes(working, self._back()), strict=True):
            target[:] = plane
        return values

    def restore_above(self, working: NDArray[np.float32], threshold: float) -> Mask:
        """`restore(working) > threshold`, worked out only around the values that are above it."""
        mask = np.zeros(self.box.shape_zyx, dtype=bool)
        high = Box.around(working > threshold)
        if high is None:
            return mask
        weights = self._back()
        touched = [_touched(along, inside) for along, inside in zip(weights, high.slices, strict=True)]
        targets, sources = (tuple(part) for part in zip(*touched, strict=True))
        parts = [along[part] for along, part in zip(weights, touched, strict=True)]
        for target, plane in zip(mask[targets], _planes(working[sources], parts), strict=True):
            np.greater(plane, threshold, out=target)
        return mask

    def _back(self) -> list[csr_array]:
        return [
            _interpolation(self.shape_zyx[axis], self.spacing_mm / step, n)
            for axis, (n, step) in enumerate(zip(self.box.shape_zyx, self.source_spacing_zyx_mm, strict=True))
        ]


def _interpolation(source_count: int, source_step: float, target_count: int) -> csr_array:
    """(target, source) matrix, float32, between two grids whose first voxels share their outer face.

    A row has the few voxels that a voxel of the target is made of.
    `source_step` is the source's spacing in units of the target's. A triangle as wide as the coarser of the two grids:
    linear interpolation when refining, averaging without aliasing when coarsening.
    """
    centres = (np.arange(target_count) + 0.5) / source_step - 0.5
    centres = np.clip(centres, 0, source_count - 1)
    width = max(1.0, 1.0 / source_step)
    weights = np.clip(1.0 - np.abs(np.arange(source_count) - centres[:, None]) / width, 0.0, None)
    return csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def _touched(weights: csr_array, inside: slice) -> tuple[slice, slice]:
    """The targets in which a source inside has a part, and the sources of all of them."""
    targets = np.flatnonzero(np.diff(weights[:, inside].indptr))
    touched = slice(int(targets[0]), int(targets[-1]) + 1)
    sources = weights[touched].indices
    return touched, slice(int(sources.min()), int(sources.max()) + 1)


def _planes(array: NDArray[Any], weights: list[csr_array]) -> Iterator[NDArray[np.float32]]:
    """The target's planes, one after the other, each from the few planes it is made of: no float copy of the source."""
    along_z, along_y, along_x = weights
    for begin, end in zip(along_z.indptr, along_z.indptr[1:], strict=False):
        plane = np.zeros(array.shape[1:], dtype=np.float32)
        for index, weight in zip(along_z.indices[begin:end], along_z.data[begin:end], strict=True):
            plane += array[index] * weight
        yield (along_x @ np.ascontiguousarray((along_y @ plane).T)).T


def cropped(volume: CtVolume, box: Box) -> CtVolume:
    """The voxels of a box, still where they are in the patient; a view, no copy."""
    affine = volume.affine_lps.copy()
    affine[:3, 3] = volume.point_lps_mm(box.start_zyx)
    return CtVolume(volume.hu[box.slices], affine)
