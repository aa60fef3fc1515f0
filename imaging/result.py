"""The cascade's answer on the input's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from imaging.errors import Reason
from imaging.findings import Findings
from imaging.volume import Labelmap, Mask


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationResult:
    """What the cascade made of one `CtVolume`.

    Attributes:
        embolus_labelmap: uint16 (z, y, x) on the input's grid; value = `Lesion.id`, 0 background.
        artery: bool (z, y, x) on the input's grid: the pulmonary artery, lumen and clot.
        findings: lesions and scan-level statements; `provenance` holds the package and the thresholds.
        lesion_probability: uint8 (z, y, x), 255 for 1: how probable each voxel of a lesion is, 0 elsewhere; None where
            it is not known.
        stage_seconds: wall time of each stage (roi, unet, aanet, fuse), s.
    """

    embolus_labelmap: Labelmap
    artery: Mask
    findings: Findings
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    lesion_probability: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.embolus_labelmap.shape != self.artery.shape:
            raise ValueError(f"label map {self.embolus_labelmap.shape} and artery {self.artery.shape} differ in shape")

    def with_reasons(self, reasons: Iterable[Reason]) -> SegmentationResult:
        """The same result, its findings with more warnings in front: what was noticed before the image was read."""
        unique = dict.fromkeys((*reasons, *self.findings.reasons))
        return replace(self, findings=replace(self.findings, reasons=tuple(unique)))
