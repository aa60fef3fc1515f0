"""Pairs of NIfTI: `image/NAME.nii.gz` and `label/NAME.nii.gz`, or `NAME.nii.gz` and `NAME_label.nii.gz` side by side.

The label map has one value per embolus, or 1 for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from services.dicom.input_reader import NIFTI_SUFFIXES
from services.dicom.nifti_reader import read_nifti
from training.data_sets.labelled_scan import LabelledScan, ListedScan, labelled_scan, paired_by_name
from training.data_sets.vessel_masks import VesselMasks

IMAGE_FOLDER, LABEL_FOLDER, LABEL_ENDING = "image", "label", "_label"


def scans(folder: Path, masks: VesselMasks) -> list[ListedScan]:
    """All pairs by name.

    Raises:
        ConfigurationError: an image without label map or the other way round.
    """
    if (folder / IMAGE_FOLDER).is_dir():
        images, labels = list(_nifti_in(folder / IMAGE_FOLDER)), list(_nifti_in(folder / LABEL_FOLDER))
    else:
        files = list(_nifti_in(folder))
        images = [(name, path) for name, path in files if not name.endswith(LABEL_ENDING)]
        labels = [(name.removesuffix(LABEL_ENDING), path) for name, path in files if name.endswith(LABEL_ENDING)]
    return [
        ListedScan(name, partial(_read, name, image, label, masks))
        for name, image, label in paired_by_name(images, labels, folder)
    ]


def _nifti_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name without suffix, and file."""
    for path in sorted(folder.glob("*.nii*")):
        suffix = next((suffix for suffix in NIFTI_SUFFIXES if path.name.endswith(suffix)), None)
        if suffix is not None:
            yield path.name.removesuffix(suffix), path


def _read(name: str, image: Path, label: Path, masks: VesselMasks) -> LabelledScan:
    return labelled_scan(
        name, read_nifti(image).volume, read_nifti(label).volume, masks.vessels_of(name), masks.lung_of(name)
    )
