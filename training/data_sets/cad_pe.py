"""CAD-PE (González et al. 2020, doi 10.21227/9bw7-6823): `images/NNN.nrrd` and `rs/NNNRefStd.nrrd`.

The reference standard has one integer per embolus. 021 to 040 are the challenge's test set: they are never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from imaging.errors import ConfigurationError
from services.dicom.nrrd_reader import read_nrrd
from training.data_sets.labelled_scan import LabelledScan, ListedScan, labelled_scan, paired_by_name
from training.data_sets.vessel_masks import VesselMasks

HELD_OUT = frozenset(f"{number:03d}" for number in range(21, 41))
REFERENCE_SUFFIX = "RefStd.nrrd"


def training_scans(folder: Path, masks: VesselMasks) -> list[ListedScan]:
    """All scans but the held-out ones.

    Raises:
        ConfigurationError: an image without reference standard or the other way round; none that may be trained on.
    """
    scans = [scan for scan in _all_scans(folder, masks) if scan.name not in HELD_OUT]
    if not scans:
        raise ConfigurationError(
            f"all scans in {folder} are held out (021 to 040)",
            code="training.held_out",
            remedy="import them for evaluation",
        )
    return scans


def held_out_scans(folder: Path, masks: VesselMasks) -> list[ListedScan]:
    """The scans to judge on.

    Raises:
        ConfigurationError: as `training_scans`; none of them is there.
    """
    scans = [scan for scan in _all_scans(folder, masks) if scan.name in HELD_OUT]
    if not scans:
        raise ConfigurationError(f"none of the held-out scans 021 to 040 is in {folder}", code="training.held_out")
    return scans


def refuse_held_out(names: Sequence[str]) -> None:
    """Raises ConfigurationError where one of the names is of a scan that is never trained on."""
    if held_out := sorted(HELD_OUT.intersection(names)):
        raise ConfigurationError(
            f"{', '.join(held_out)} of CAD-PE are held out and never trained on",
            code="training.held_out",
            remedy="import them for evaluation",
        )


def _all_scans(folder: Path, masks: VesselMasks) -> list[ListedScan]:
    images = [(path.name.removesuffix(".nrrd"), path) for path in sorted(folder.glob("images/*.nrrd"))]
    references = [
        (path.name.removesuffix(REFERENCE_SUFFIX), path) for path in sorted(folder.glob(f"rs/*{REFERENCE_SUFFIX}"))
    ]
    return [
        ListedScan(name, partial(_read, name, image, reference, masks))
        for name, image, reference in paired_by_name(images, references, folder)
    ]


def _read(name: str, image: Path, reference: Path, masks: VesselMasks) -> LabelledScan:
    volume = read_nrrd(image).volume
    emboli = read_nrrd(reference, exact=True, unplaced_lie_on=volume).volume
    return labelled_scan(name, volume, emboli, masks.vessels_of(name), masks.lung_of(name))
