"""Training cases: phantoms made once and kept on disk as the networks want them, on the 1 mm canonical grid.

`python -m training.cases --recipe R [--anatomies DIR] [--shard 0/2]` fills the cache; several shards may run at once,
and a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imaging.errors import ConfigurationError
from imaging.windows import roi_input
from training.phantoms import acquire_phantom, on_working_grid
from training.recipe import DataRecipe, Recipe

LUNG, ARTERY, VEIN = 1, 2, 3
UNKNOWN_VESSELS = 128  # added to every voxel of a case whose arteries and veins nobody has marked
EMBOLUS_POINTS = 400  # kept per embolus
OTHER_POINTS = 4000  # kept per case
AIR_HU = -1024


@dataclass(frozen=True, slots=True)
class CaseSpec:
    """What makes a case: its seed and, unless its anatomy is grown, the label map it is built on."""

    seed: int
    anatomy: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.seed}-{self.anatomy.name.split('.')[0] if self.anatomy else 'grown'}"


def training_specs(data: DataRecipe, anatomies: Path | None) -> list[CaseSpec]:
    """All cases of a recipe, grown and real anatomies in turn, no held-out anatomy among them."""
    usable: list[Path | None] = [None] * data.anatomy_cases
    if anatomies is not None:
        found = sorted(path for path in anatomies.glob("*.nii.gz") if _stem(path) not in data.held_out_anatomies)
        if not found:
            raise ConfigurationError(f"no label maps (*.nii.gz) in {anatomies}", code="training.anatomies")
        usable = [found[index % len(found)] for index in range(data.anatomy_cases)]
    grown: list[Path | None] = [None] * data.grown_cases
    mixed: list[Path | None] = []
    while grown or usable:
        mixed += grown[:1] + usable[:1]
        grown, usable = grown[1:], usable[1:]
    return [CaseSpec(data.first_seed + index, anatomy) for index, anatomy in enumerate(mixed)]


def held_out_specs(data: DataRecipe, anatomies: Path | None, count: int) -> list[CaseSpec]:
    """`count` cases nothing was trained on: every other one on a held-out anatomy where those are given."""
    held_out = [] if anatomies is None else [anatomies / f"{name}.nii.gz" for name in data.held_out_anatomies]
    specs = []
    for index in range(count):
        anatomy = held_out[(index // 2) % len(held_out)] if held_out and index % 2 else None
        specs.append(CaseSpec(data.test_seed + index, anatomy))
    return specs


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


class Block(NamedTuple):
    """A piece of a case, arrays (z, y, x) of one shape: `hu` int16, `anatomy` uint8, `embolus` bool."""

    hu: NDArray[np.int16]
    anatomy: NDArray[np.uint8]
    embolus: NDArray[np.bool_]

    def part(self, box: tuple[slice, ...]) -> Block:
        """A view of the voxels in a box; writing to it writes here."""
        return Block(self.hu[box], self.anatomy[box], self.embolus[box])


@dataclass(frozen=True, slots=True, eq=False)
class TrainingCase:
    """One case, opened from the cache.

    Attributes:
        hu: int16 (z, y, x), 1 mm, the lung box and its margin; memory-mapped.
        anatomy: uint8, LUNG, ARTERY (clot included), VEIN or 0; LUNG or 0 plus UNKNOWN_VESSELS where nobody knows.
        embolus: uint8, one value per embolus.
        embolus_points: int16 (n, 3) voxels of emboli, about as many for a small one as for a large one.
        other_points: int16 (n, 3) voxels where there is none: vessels, what touches them, lung.
        roi_slices: uint8 (slices, size, size), lung window, whole field of view.
        roi_boxes: float64 (slices, 4) centre x, centre y, width, height of both lungs, relative; 0 without lung.
    """

    name: str
    hu: NDArray[np.int16]
    anatomy: NDArray[np.uint8]
    embolus: NDArray[np.uint8]
    embolus_points: NDArray[np.int16]
    other_points: NDArray[np.int16]
    roi_slices: NDArray[np.uint8]
    roi_boxes: NDArray[np.float64]

    @classmethod
    def open(cls, folder: Path) -> TrainingCase:
        with np.load(folder / "points.npz") as points, np.load(folder / "roi.npz") as roi:
            return cls(
                name=folder.name,
                hu=np.load(folder / "hu.npy", mmap_mode="r"),
                anatomy=np.load(folder / "anatomy.npy", mmap_mode="r"),
                embolus=np.load(folder / "embolus.npy", mmap_mode="r"),
                embolus_points=points["embolus"],
                other_points=points["other"],
                roi_slices=roi["slices"],
                roi_boxes=roi["boxes"],
            )

    def block(self, start: NDArray[np.int_], shape: Sequence[int]) -> Block:
        """A block of `shape` from voxel `start`, moved inside where it can be; what lies beyond the case is air."""
        size = np.asarray(self.hu.shape)
        start = np.clip(start, 0, np.maximum(size - shape, 0))
        inside = tuple(slice(s, min(s + n, limit)) for s, n, limit in zip(start, shape, size, strict=True))
        hu = np.asarray(self.hu[inside])
        if hu.shape == tuple(shape):
            return Block(hu, np.asarray(self.anatomy[inside]), np.asarray(self.embolus[inside]) > 0)
        pad = [(0, n - m) for n, m in zip(shape, hu.shape, strict=True)]
        return Block(
            np.pad(hu, pad, constant_values=AIR_HU),
            np.pad(self.anatomy[inside], pad),
            np.pad(np.asarray(self.embolus[inside]) > 0, pad),
        )


def open_cases(data: DataRecipe, specs: Sequence[CaseSpec]) -> list[TrainingCase]:
    """Raises ConfigurationError naming the first case that has not been made yet."""
    for spec in specs:
        if not (data.folder / spec.name).is_dir():
            raise ConfigurationError(
                f"training case {spec.name} is not in {data.folder}",
                code="training.cases",
                remedy="run python -m training.cases with the same recipe and anatomies",
            )
    return [TrainingCase.open(data.folder / spec.name) for spec in specs]


def make_cases(data: DataRecipe, specs: Sequence[CaseSpec], shard: int = 0, shards: int = 1) -> None:
    """Makes those of `specs` that fall to this shard and are not in the cache yet."""
    for spec in specs[shard::shards]:
        folder = data.folder / spec.name
        if folder.is_dir():
            continue
        with written_whole(folder) as unfinished:
            phantom = on_working_grid(acquire_phantom(data, spec.seed, spec.anatomy, rich=True))
            anatomy = phantom.lung.astype(np.uint8) * LUNG
            anatomy[phantom.vein] = VEIN
            anatomy[phantom.artery] = ARTERY
            write_case(unfinished, phantom.hu, phantom.lung, anatomy, phantom.embolus, data, spec.seed)
        print(f"{spec.name} {np.load(folder / 'hu.npy', mmap_mode='r').shape}", flush=True)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `folder` once all is written and vanishes if something fails."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster: the same input makes the same case
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_case(
    folder: Path,
    hu: NDArray[np.int16],
    lung: NDArray[np.bool_],
    anatomy: NDArray[np.uint8],
    embolus: NDArray[np.uint8],
    data: DataRecipe,
    seed: int,
    *,
    vessels_known: bool = True,
) -> None:
    """Writes what `TrainingCase.open` reads of one scan, given on the 1 mm canonical grid, whole field of view.

    `lung` holds both lungs, not empty; `anatomy` and `embolus` are as `TrainingCase` has them, `anatomy` without
    UNKNOWN_VESSELS, which is added where not `vessels_known`.
    """
    lung_box = _box(lung, data.margin_mm)
    slices, boxes = _roi_examples(hu, lung, data)
    np.savez_compressed(folder / "roi.npz", slices=slices, boxes=boxes)
    hu, anatomy, embolus = hu[lung_box], anatomy[lung_box], embolus[lung_box]
    np.save(folder / "hu.npy", hu)
    np.save(folder / "anatomy.npy", anatomy if vessels_known else anatomy + np.uint8(UNKNOWN_VESSELS))
    np.save(folder / "embolus.npy", embolus)
    rng = np.random.default_rng(seed)
    np.savez(
        folder / "points.npz", embolus=_embolus_points(embolus, rng), other=_other_points(hu, anatomy, embolus, rng)
    )


def _box(mask: NDArray[np.bool_], margin_mm: float) -> tuple[slice, slice, slice]:
    """Bounding box on the 1 mm grid, widened by `margin_mm` on every side."""
    margin = round(margin_mm)
    bounds = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        bounds.append(slice(max(0, int(filled[0]) - margin), int(filled[-1]) + 1 + margin))
    return bounds[0], bounds[1], bounds[2]


def _embolus_points(embolus: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int16]:
    points = [_some(np.argwhere(embolus == label), EMBOLUS_POINTS, rng) for label in np.unique(embolus[embolus > 0])]
    return np.concatenate(points).astype(np.int16) if points else np.zeros((0, 3), np.int16)


def _other_points(
    hu: NDArray[np.int16], anatomy: NDArray[np.uint8], embolus: NDArray[np.uint8], rng: np.random.Generator
) -> NDArray[np.int16]:
    """What a network must learn not to call an embolus, and where: vessels, bone and heart, soft tissue, lung."""
    kinds = (
        ((anatomy >= ARTERY) & (embolus == 0), 0.35),
        ((anatomy == 0) & (hu > 150), 0.35),
        ((anatomy == 0) & (hu > 0) & (hu < 120), 0.15),
        (anatomy == LUNG, 0.15),
    )
    shares = [(mask, round(OTHER_POINTS * share)) for mask, share in kinds]
    return np.concatenate([_some(np.argwhere(mask), count, rng) for mask, count in shares]).astype(np.int16)


def _some(points: NDArray[np.intp], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return points if len(points) <= count else points[rng.choice(len(points), count, replace=False)]


def _roi_examples(
    hu: NDArray[np.int16], lung: NDArray[np.bool_], data: DataRecipe
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    slices, boxes = [], []
    height, width = hu.shape[1:]
    for z in range(0, hu.shape[0], max(1, round(data.roi_every_mm))):
        slices.append(np.round(roi_input(hu[z], (data.roi_size, data.roi_size)) * 255).astype(np.uint8))
        rows, columns = np.flatnonzero(lung[z].any(1)), np.flatnonzero(lung[z].any(0))
        if len(rows) < 2 or len(columns) < 2:
            boxes.append((0.0, 0.0, 0.0, 0.0))
            continue
        top, bottom = rows[0] / height, (rows[-1] + 1) / height
        left, right = columns[0] / width, (columns[-1] + 1) / width
        boxes.append(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
    return np.stack(slices), np.asarray(boxes, dtype=np.float64)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.cases", description="Make the training cases")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--anatomies", type=Path, help="folder of label maps (*.nii.gz); without it all are grown")
    parser.add_argument("--shard", default="0/1", help="i/n: make every n-th case, from the i-th")
    options = parser.parse_args(arguments)
    data = Recipe.read(options.recipe).data
    shard, shards = (int(part) for part in options.shard.split("/"))
    make_cases(data, training_specs(data, options.anatomies), shard, shards)


if __name__ == "__main__":
    main()
