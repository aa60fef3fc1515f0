"""Label maps as NIfTI, byte for byte the same whenever they are written."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from imaging.volume import Affine

DESCRIPTION = b"Embolens, research use only"
_RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_ras_of(affine_lps: Affine) -> Affine:
    """(z, y, x) index -> LPS becomes NIfTI's (x, y, z) index -> RAS."""
    return np.asarray(_RAS_OF_LPS @ affine_lps[:, [2, 1, 0, 3]])


def affine_lps_of(affine_ras: Affine) -> Affine:
    """NIfTI's (x, y, z) index -> RAS becomes (z, y, x) index -> LPS."""
    return np.asarray((_RAS_OF_LPS @ affine_ras)[:, [2, 1, 0, 3]])


def smallest_unsigned(labels: NDArray[Any]) -> NDArray[Any]:
    """The labels as uint8 where they fit, else uint16."""
    return labels.astype(np.uint8 if labels.size == 0 or labels.max() <= 255 else np.uint16, copy=False)


def nifti_of(labels: NDArray[Any], affine_lps: Affine) -> Nifti1Image:
    """Labels (z, y, x) as NIfTI with axes (x, y, z); position in scanner coordinates in both sform and qform."""
    image = Nifti1Image(smallest_unsigned(labels).transpose(2, 1, 0), affine_ras_of(affine_lps))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    image.header["descrip"] = DESCRIPTION
    return image


def save_nifti(image: Nifti1Image, path: Path) -> None:
    """Write ``.nii`` or, without the time and name gzip would add, ``.nii.gz``."""
    if path.suffix == ".nii":
        with path.open("wb") as file:
            image.to_stream(file)
        return
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as stream:
        image.to_stream(stream)
