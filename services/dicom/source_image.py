"""What a pipeline reads, whatever file it came in: the common face of `SourceSeries`, `SourceNifti` and
`SourceNrrd`.

source = read_input(path)                       # services/dicom/input_reader.py
result = cascade(source.volume)
write_results(source, result, directory, identity)
"""

from __future__ import annotations

import hashlib
import math
import resource
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from imaging.errors import InputTooLarge, Reason
from imaging.volume import CtVolume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

MAX_VOXELS = 1_000_000_000  # of any volume that is read: 2 GB as int16
_BYTES_PER_VOXEL = 12  # at least, of an analysis: HU twice, a probability, label map and masks

InputKind = Literal["dicom", "nifti", "nrrd"]
OnProgress = Callable[[float], None]  # called with the fraction done, 0..1


class SourceImage(Protocol):
    """A CT volume and the way back onto its own grid.

    Attributes:
        volume: HU and affine; result masks have its shape.
        reasons: warnings about the image; they belong into the findings.
        kind: which of them it is.
    """

    @property
    def volume(self) -> CtVolume: ...

    @property
    def reasons(self) -> tuple[Reason, ...]: ...

    @property
    def kind(self) -> InputKind: ...

    def sop_instance_uid_at(self, point_lps_mm: tuple[float, float, float]) -> str | None:
        """The source image nearest to a patient point; None for NIfTI and NRRD."""
        ...

    def nifti_image(self, labels: NDArray[Any]) -> Nifti1Image:
        """Labels (z, y, x) on the volume's grid as a NIfTI: on a file's own voxels, for DICOM on the volume's."""
        ...

    def input_identity(self) -> dict[str, Any]:
        """What names the input in `provenance`: UIDs for DICOM, nothing that could name a patient."""
        ...

    def content_digest(self) -> str:
        """SHA-256 over what the cascade sees and the result refers to: HU, affine and UIDs."""
        ...


def refuse_too_many_voxels(shape: Sequence[int]) -> None:
    """Before memory is taken for what a header claims. Where a process has bounded its memory, that counts too."""
    if (count := math.prod(shape)) > MAX_VOXELS:
        extents = " x ".join(str(n) for n in shape)
        raise InputTooLarge(f"{extents} voxels are {count:,}, at most {MAX_VOXELS:,} are read")
    may_have, _ = resource.getrlimit(resource.RLIMIT_DATA)
    needed = count * _BYTES_PER_VOXEL
    if may_have != resource.RLIM_INFINITY and needed > may_have:
        raise InputTooLarge(
            f"{count:,} voxels need {needed / 1e9:.1f} GB of memory, there are {may_have / 1e9:.1f} GB",
            remedy="raise EMBOLENS_WORKER_MEMORY_BYTES, or give the worker a larger machine",
        )


def digest_of(volume: CtVolume, *names: str) -> str:
    """SHA-256 of a volume and of the names its result refers to, in order."""
    digest = hashlib.sha256("\n".join(names).encode())
    digest.update(repr(volume.shape_zyx).encode())
    digest.update(np.round(volume.affine_lps, 6).tobytes())
    for plane in volume.hu:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()
