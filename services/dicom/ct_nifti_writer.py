"""A `CtVolume` as NIfTI: HU as int16, axes (x, y, z), the same bytes whenever it is written."""

from __future__ import annotations

from pathlib import Path

from nibabel.nifti1 import Nifti1Image

from imaging.volume import CtVolume
from services.dicom.label_nifti import affine_ras_of, save_nifti


def write_ct_nifti(volume: CtVolume, path: Path) -> None:
    """Write ``.nii.gz`` or ``.nii``; position in scanner coordinates in both sform and qform."""
    image = Nifti1Image(volume.hu.transpose(2, 1, 0), affine_ras_of(volume.affine_lps))
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    save_nifti(image, path)
