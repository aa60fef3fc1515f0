"""What came back, laid over what was inserted: the SEG on the phantom's grid against the known emboli."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from imaging.errors import DeliveryError
from imaging.metrics import match_lesions, voxel_dice
from imaging.volume import CtVolume, Labelmap

_FIRST_EMBOLUS_SEGMENT = 2  # segment 1 is the pulmonary artery


@dataclass(frozen=True, slots=True)
class Comparison:
    """Lesion counts and the Dice of all embolus voxels."""

    inserted: int
    found: int
    false: int
    dice: float


def compare(seg_path: Path, phantom: CtVolume, truth: NDArray[np.uint16]) -> Comparison:
    """Compare the emboli of a SEG with the inserted ones; `truth` is (z, y, x), one label per embolus."""
    predicted = emboli_of_seg(seg_path, phantom)
    match = match_lesions(truth, predicted)
    return Comparison(
        inserted=len(match.found) + len(match.missed),
        found=len(match.found),
        false=len(match.false),
        dice=voxel_dice(truth, predicted),
    )


def emboli_of_seg(seg_path: Path, grid: CtVolume) -> Labelmap:
    """The embolus segments on the grid of the images they were drawn on, label = segment number - 1.

    Frames are put where their plane position says (PS3.3 C.7.6.16.2.3), not where they stand in the file.

    Raises:
        DeliveryError: a frame does not lie on the grid (code ``demo.seg_off_grid``).
    """
    seg = pydicom.dcmread(seg_path)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    labelmap = np.zeros(grid.shape_zyx, dtype=np.uint16)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        segment = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        if segment < _FIRST_EMBOLUS_SEGMENT:
            continue
        corner = grid.index_zyx(np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64))
        z, y, x = np.rint(corner).astype(int)
        on_grid = np.allclose(corner, (z, y, x), atol=0.05) and (y, x) == (0, 0) and 0 <= z < grid.shape_zyx[0]
        if not on_grid or frame.shape != grid.shape_zyx[1:]:
            raise DeliveryError(f"a SEG frame begins at voxel {corner}", code="demo.seg_off_grid")
        labelmap[z][frame > 0] = segment - 1
    return labelmap
