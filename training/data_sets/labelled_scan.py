"""A CT with outlined emboli, and what a data set's masks must satisfy to become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray

from imaging.errors import ConfigurationError, InputError
from imaging.geometry import to_canonical
from imaging.volume import CtVolume, Labelmap, Mask

ARTERY_LABEL, VEIN_LABEL = 1, 2  # in the vessel masks published with AANet (Guo et al., MICCAI 2022)
MAX_EMBOLI = 255
SAME_GRID_VOXELS = 0.5
# A clot is denser than water, and even a generous outline takes in no more lung than clot.
NOT_AIR_HU = -300


@dataclass(frozen=True, slots=True, eq=False)
class LabelledScan:
    """One scan, canonical orientation; arrays (z, y, x) on the volume's grid.

    Attributes:
        embolus: 1, 2, ... for one embolus each.
        artery, vein, lung: None where nobody has marked them.
    """

    name: str
    volume: CtVolume
    embolus: Labelmap
    artery: Mask | None = None
    vein: Mask | None = None
    lung: Mask | None = None


@dataclass(frozen=True, slots=True)
class ListedScan:
    """A scan that is read when its turn comes; `name` is the one it has in the data set."""

    name: str
    load: Callable[[], LabelledScan]


def labelled_scan(
    name: str,
    image: CtVolume,
    emboli: CtVolume,
    vessels: CtVolume | None = None,
    lung: CtVolume | None = None,
) -> LabelledScan:
    """Puts an image and its label maps (`CtVolume`s whose `hu` are labels) together, each by its own affine.

    Args:
        emboli: one value per embolus, or 1 for all: then each 26-connected component is one.
        vessels: 1 artery, 2 vein.
        lung: anything but 0 is lung.

    Raises:
        InputError: a label map is not on the image's grid; most of what is outlined is air; too many emboli.
    """
    volume, _ = to_canonical(image)
    outlined = _numbered(name, _on_grid(name, "the emboli", emboli, volume))
    if outlined.any() and np.mean(volume.hu[outlined > 0] < NOT_AIR_HU) > 0.5:
        raise InputError(
            f"{name}: most of what is outlined as emboli is below {NOT_AIR_HU} HU",
            code="training.emboli_in_air",
            remedy="the mask belongs to another scan, or its axes or slices run another way",
        )
    artery, vein = None, None
    if vessels is not None:
        vessel_labels = _on_grid(name, "the vessels", vessels, volume)
        artery, vein = vessel_labels == ARTERY_LABEL, vessel_labels == VEIN_LABEL
    lung_mask = None if lung is None else _on_grid(name, "the lung mask", lung, volume) != 0
    return LabelledScan(name, volume, outlined, artery, vein, lung_mask)


def _on_grid(name: str, what: str, labels: CtVolume, volume: CtVolume) -> NDArray[np.int16]:
    canonical, _ = to_canonical(labels)
    if canonical.shape_zyx != volume.shape_zyx:
        raise InputError(
            f"{name}: {what} have {canonical.shape_zyx} voxels (z, y, x), the image {volume.shape_zyx}",
            code="training.grid",
            remedy="put the mask on the image's grid",
        )
    last = np.asarray(volume.shape_zyx) - 1
    corners = np.array([(0, 0, 0), last])
    distance = np.abs(volume.index_zyx(canonical.point_lps_mm(corners)) - corners).max()
    if distance > SAME_GRID_VOXELS:
        raise InputError(
            f"{name}: {what} lie up to {distance:.1f} voxels beside the image",
            code="training.grid",
            remedy="give the mask the image's origin, spacing and directions",
        )
    return canonical.hu


def _numbered(name: str, labels: NDArray[np.int16]) -> Labelmap:
    """Emboli as 1, 2, ... without gaps."""
    if int(labels.max(initial=0)) > 1:
        values = np.unique(labels[labels > 0])
        number_of = np.zeros(int(values[-1]) + 1, np.uint16)
        number_of[values] = np.arange(1, len(values) + 1)
        emboli: Labelmap = number_of[labels.clip(0)]
    else:
        emboli = np.asarray(cc3d.connected_components(labels > 0, connectivity=26, out_dtype=np.uint16))
    if int(emboli.max(initial=0)) > MAX_EMBOLI:
        raise InputError(
            f"{name} has {emboli.max()} emboli, at most {MAX_EMBOLI} are kept",
            code="training.too_many_emboli",
            remedy="clear the mask of specks",
        )
    return emboli


def paired_by_name(
    images: Iterable[tuple[str, Path]], labels: Iterable[tuple[str, Path]], place: Path
) -> list[tuple[str, Path, Path]]:
    """(name, image, labels) in the order of the names.

    Raises:
        ConfigurationError: nothing there; names that occur twice or have no partner, all of them.
    """
    image_of, label_of = _by_name(images), _by_name(labels)
    lonely_images, lonely_labels = image_of.keys() - label_of.keys(), label_of.keys() - image_of.keys()
    problems = [
        f"{what}: {', '.join(sorted(names))}"
        for what, names in (("without outlined emboli", lonely_images), ("without an image", lonely_labels))
        if names
    ]
    if problems:
        raise ConfigurationError(
            f"in {place}, {'; '.join(problems)}",
            code="training.pairs",
            remedy="add what is missing, or take the others away",
        )
    if not image_of:
        raise ConfigurationError(
            f"no scans in {place}", code="training.pairs", remedy="see training/data_sets for the layouts"
        )
    return [(name, image_of[name], label_of[name]) for name in sorted(image_of)]


def _by_name(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in files:
        if name in found:
            raise ConfigurationError(
                f"{name} is there twice: {found[name]} and {path}", code="training.pairs", remedy="keep one of them"
            )
        found[name] = path
    return found


def only_named(scans: Sequence[ListedScan], names: Sequence[str]) -> list[ListedScan]:
    """Those with one of the `names`; all where there are no names.

    Raises:
        ConfigurationError: a name that no scan has.
    """
    if unknown := sorted(set(names) - {scan.name for scan in scans}):
        raise ConfigurationError(f"no scan is called {', '.join(unknown)}", code="training.pairs")
    return [scan for scan in scans if not names or scan.name in names]
