"""A phantom on disk: its CT as NIfTI or as a DICOM series, and the truth about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from imaging.phantom import Phantom
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.label_nifti import nifti_of, save_nifti
from services.dicom.uids import derive_uid


def write_truth(phantom: Phantom, directory: Path, *, seed: int) -> None:
    """`emboli.nii.gz` (one label per embolus), `artery`, `vein`, `lung`, and `truth.json` with volumes and places."""
    directory.mkdir(parents=True, exist_ok=True)
    affine = phantom.volume.affine_lps
    for name, labels in {
        "emboli": phantom.embolus_labelmap,
        "artery": phantom.artery,
        "vein": phantom.vein,
        "lung": phantom.lung,
    }.items():
        save_nifti(nifti_of(labels, affine), directory / f"{name}.nii.gz")
    truth = {
        "seed": seed,
        "shape_zyx": list(phantom.volume.shape_zyx),
        "spacing_zyx_mm": list(phantom.volume.spacing_zyx_mm),
        "emboli": [_embolus(phantom, label) for label in range(1, int(phantom.embolus_labelmap.max()) + 1)],
    }
    (directory / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")


def write_ct_dicom(phantom: Phantom, directory: Path, *, seed: int) -> list[Path]:
    """One file per slice; the same seed and shape give the same UIDs."""
    study = derive_uid("phantom study", str(seed), str(phantom.volume.shape_zyx))
    return write_ct_series(
        phantom.volume,
        directory,
        patient_id=f"PHANTOM-{seed}",
        patient_name=f"Phantom^{seed}",
        study_instance_uid=study,
        series_instance_uid=derive_uid("phantom series", study),
    )


def _embolus(phantom: Phantom, label: int) -> dict[str, Any]:
    inside = phantom.embolus_labelmap == label
    centroid = phantom.volume.point_lps_mm(np.argwhere(inside).mean(axis=0))
    return {
        "id": label,
        "volume_ml": round(float(np.count_nonzero(inside)) * phantom.volume.voxel_volume_mm3 / 1000, 4),
        "centroid_lps_mm": [round(float(value), 2) for value in centroid],
    }
