"""Artery, vein and lung masks as published with AANet (Guo et al., MICCAI 2022) for the scans of CAD-PE.

`NNN.nii.gz` holds 1 for artery (the lumen with the clot), 2 for vein; `NNN_lungmask.nii.gz` both lungs. They may lie
in one folder or in several below it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from imaging.errors import ConfigurationError
from imaging.volume import CtVolume
from services.dicom.nifti_reader import read_nifti

LUNG_SUFFIX = "_lungmask.nii.gz"
# 018 and e0528 lack a part of the artery, e0119 half of its branches; in 034 the aortic arch counts as artery.
FAULTY_VESSELS = frozenset({"018", "034", "e0119", "e0528"})


@dataclass(frozen=True, slots=True)
class VesselMasks:
    """The masks below a folder, by the name of their scan; without a folder there are none."""

    vessels: dict[str, Path] = field(default_factory=dict)
    lungs: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def below(cls, folder: Path | None) -> VesselMasks:
        """Raises ConfigurationError where a folder is named that holds none."""
        if folder is None:
            return cls()
        files = sorted(folder.rglob("*.nii.gz"))
        if not files:
            raise ConfigurationError(
                f"no masks (*.nii.gz) below {folder}", code="training.masks", remedy="name the folder that holds them"
            )
        lungs = {path.name.removesuffix(LUNG_SUFFIX): path for path in files if path.name.endswith(LUNG_SUFFIX)}
        vessels = {path.name.split(".")[0]: path for path in files if not path.name.endswith(LUNG_SUFFIX)}
        return cls({name: path for name, path in vessels.items() if name not in FAULTY_VESSELS}, lungs)

    def vessels_of(self, name: str) -> CtVolume | None:
        """Labels 1 artery, 2 vein; None where nobody has marked them, or so badly that it does not count."""
        return read_nifti(self.vessels[name]).volume if name in self.vessels else None

    def lung_of(self, name: str) -> CtVolume | None:
        return read_nifti(self.lungs[name]).volume if name in self.lungs else None
