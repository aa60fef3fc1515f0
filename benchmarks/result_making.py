"""Around the networks: to their grid and back, lesions, and all the files of a result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from highdicom.sr import Comprehensive3DSR, ReferencedSegment, SourceImageForSegmentation
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from benchmarks import machine
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.seg_writing import IDENTITY, Case, case_of, made_result, made_series
from benchmarks.side_by_side import seconds, side_by_side
from imaging.geometry import Box, WorkingGrid
from imaging.label_areas import label_areas
from imaging.lesions import LesionThresholds, find_lesions
from imaging.volume import Probability
from services.dicom import sr_writer
from services.dicom.reference_headers import reference_headers
from services.dicom.result_files import write_results
from services.dicom.result_object import SopInstance
from services.dicom.seg_writer import write_seg

_THRESHOLDS = LesionThresholds(voxel=0.4, score=0.5, min_volume_ml=0.005)
_LESIONS, _SLICES = (1, 10, 100), (100, 200, 400)
_CHEST = Box((0, 86, 76), (400, 426, 436))  # 0.44 of the voxels, as around the lungs


def measure(rounds: int) -> Page:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        files = made_series(directory / "series")
        full = case_of(files, 11)
        by_lesions = {
            count: full if count == 10 else Case(files, full.source, made_result(full.source.volume, count + 1))
            for count in _LESIONS
        }
        by_slices = {count: full if count == 400 else case_of(files[:count], 11) for count in _SLICES}
        path = directory / "result"
        writing = side_by_side(
            {f"write, {count} lesions": _writing(case, path) for count, case in by_lesions.items()}
            | {f"write, {count} slices": _writing(case, path) for count, case in by_slices.items() if count != 400},
            rounds=rounds,
        )
        writing["write, 400 slices"] = writing["write, 10 lesions"]
        finding = side_by_side(
            {f"find, {count} lesions": _finding(case) for count, case in by_lesions.items()}
            | {"scipy label": _by_scipy(full)},
            rounds=rounds,
        )
        report = side_by_side(_reports(full, directory), rounds=rounds)
        rows = (
            *_grid_rows(full, rounds),
            _finding_row(full, finding),
            _report_row(report, directory),
            _writing_row(full, writing["write, 10 lesions"], path),
        )
    figures = writing | finding
    growths = tuple(
        Growth(
            what=f"{what}, by {size}",
            size=size,
            unit="s",
            points=tuple((float(count), figures[f"{what}, {count} {size}"].median) for count in counts),
        )
        for what, size, counts in (
            ("find", "lesions", _LESIONS),
            ("write", "lesions", _LESIONS),
            ("write", "slices", _SLICES),
        )
    )
    return Page(title="Making a result", how=_HOW.format(versions=_versions()), rows=rows, growths=growths)


_HOW = """The series and masks of the SEG's benchmark. The networks' grid lies over 340 x 360 voxels of every slice, 1
mm instead of 0.75 x 0.7 x 0.7 mm; ours works with one thread, torch and SimpleITK with two. "Whole matrices" is what
ours was: a product with a matrix for each axis, most of it zeros. torch and SimpleITK interpolate linearly also where
the grid becomes coarser, where ours averages over three voxels; back, all give the same. Lesions are looked for in
all 400 slices; scipy's `label`, `find_objects` and volumes are a part of what ours does (score, diameter, density,
artery level and label map come to it). highdicom's structured report is made of the same groups with a data set for
each of the source images, as documented. Written are findings, both label maps as NIfTI, preview, SEG, SR, key images
of the eight most probable emboli and the PDF. {versions}."""


def _versions() -> str:
    return ", ".join(map(machine.version, ("numpy", "scipy", "torch", "SimpleITK", "highdicom")))


def _writing(case: Case, path: Path) -> Callable[[], float]:
    return seconds(partial(write_results, case.source, case.result, path, IDENTITY))


def _probability(case: Case) -> Probability:
    return np.where(case.result.embolus_labelmap > 0, np.float32(0.9), np.float32(0))


def _finding(case: Case) -> Callable[[], float]:
    probability = _probability(case)
    return seconds(
        lambda: find_lesions(probability, case.result.artery, case.source.volume, _THRESHOLDS, min_score=None)
    )


def _by_scipy(case: Case) -> Callable[[], float]:
    probability = _probability(case)

    def find() -> None:
        labels, count = ndimage.label(probability >= _THRESHOLDS.voxel, np.ones((3, 3, 3)))
        for label, box in enumerate(ndimage.find_objects(labels, count), start=1):
            np.count_nonzero(labels[box] == label)

    return seconds(find)


def _finding_row(case: Case, figures: dict[str, Figure]) -> Row:
    ours = figures["find, 10 lesions"]
    return Row(
        what="find and measure 10 lesions in all voxels of 400 slices",
        unit="s",
        higher_is_better=False,
        ours=ours.model_copy(update={"name": "Embolens"}),
        others=(figures["scipy label"],),
        floor=Floor(
            value=4 * case.source.volume.hu.size / machine.memory_copy_bytes_per_s(), why="probabilities read once"
        ),
        goals=(Goal(says="at most 0.5 s", met=ours.median <= 0.5),),
    )


def _writing_row(case: Case, figure: Figure, path: Path) -> Row:
    written = sum(file.stat().st_size for file in path.iterdir())
    return Row(
        what="write the result of 400 slices, 10 lesions",
        unit="s",
        higher_is_better=False,
        ours=figure.model_copy(update={"name": "Embolens"}),
        floor=Floor(
            value=written / machine.file_write_bytes_per_s()
            + 3 * case.source.volume.hu.size / machine.memory_copy_bytes_per_s(),
            why=f"{written / 1e6:.0f} MB written, label map and artery read",
        ),
        goals=(Goal(says="at most 1 s", met=figure.median <= 1),),
    )


def _grid_rows(case: Case, rounds: int) -> tuple[Row, Row]:
    volume = case.source.volume
    grid = WorkingGrid.over(volume, _CHEST, 1.0)
    hu = np.ascontiguousarray(volume.hu[_CHEST.slices])
    working = np.random.default_rng(0).random(grid.shape_zyx, dtype=np.float32)
    figures = side_by_side(
        {
            "to the grid": seconds(partial(grid.resample, volume.hu)),
            "whole matrices, to": seconds(_by_whole_matrices(hu, grid.shape_zyx)),
            "torch, to": seconds(_by_torch(hu, grid.shape_zyx)),
            "SimpleITK, to": seconds(_by_simpleitk(hu, grid.shape_zyx)),
            "back": seconds(partial(grid.restore, working)),
            "whole matrices, back": seconds(_by_whole_matrices(working, _CHEST.shape_zyx)),
            "torch, back": seconds(_by_torch(working, _CHEST.shape_zyx)),
            "SimpleITK, back": seconds(_by_simpleitk(working, _CHEST.shape_zyx)),
        },
        rounds=rounds,
    )

    def row(what: str, ours: str, way: str, nbytes: int) -> Row:
        others = tuple(
            figures[f"{name}, {way}"].model_copy(update={"name": name})
            for name in ("whole matrices", "torch", "SimpleITK")
        )
        return Row(
            what=what,
            unit="s",
            higher_is_better=False,
            ours=figures[ours].model_copy(update={"name": "Embolens"}),
            others=others,
            floor=Floor(
                value=nbytes / machine.memory_copy_bytes_per_s(), why=f"{nbytes / 1e6:.0f} MB read and written"
            ),
            goals=(Goal(says="twice as fast as whole matrices", met=figures[ours].median <= others[0].median / 2),),
        )

    in_box, on_grid = hu.size, working.size
    return (
        row("HU to the networks' grid", "to the grid", "to", 2 * in_box + 2 * on_grid),
        row("probabilities back to the scan's", "back", "back", 4 * in_box + 4 * on_grid),
    )


def _by_whole_matrices(array: NDArray[np.generic], shape_zyx: tuple[int, ...]) -> Callable[[], object]:
    weights = []
    for count, target_count in zip(array.shape, shape_zyx, strict=True):
        centres = np.clip((np.arange(target_count) + 0.5) * count / target_count - 0.5, 0, count - 1)
        reach = max(1.0, count / target_count)
        along = np.clip(1.0 - np.abs(np.arange(count) - centres[:, None]) / reach, 0.0, None)
        weights.append((along / along.sum(axis=1, keepdims=True)).astype(np.float32))
    along_z, along_y, along_x = weights

    def resample() -> NDArray[np.float32]:
        planes = np.stack([along_y @ plane.astype(np.float32) @ along_x.T for plane in array])
        return np.asarray((along_z @ planes.reshape(len(planes), -1)).reshape(shape_zyx))

    return resample


def _by_torch(array: NDArray[np.generic], shape_zyx: tuple[int, ...]) -> Callable[[], object]:
    given = torch.from_numpy(array)[None, None]
    return lambda: F.interpolate(given.float(), size=shape_zyx, mode="trilinear", align_corners=False)


def _by_simpleitk(array: NDArray[np.generic], shape_zyx: tuple[int, ...]) -> Callable[[], object]:
    image = SimpleITK.GetImageFromArray(array)
    steps = [count / target for count, target in zip(array.shape[::-1], shape_zyx[::-1], strict=True)]
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize([int(count) for count in shape_zyx[::-1]])
    resampler.SetOutputSpacing(steps)
    resampler.SetOutputOrigin([step / 2 - 0.5 for step in steps])
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    return lambda: resampler.Execute(image)


def _reports(case: Case, directory: Path) -> dict[str, Callable[[], float]]:
    headers = reference_headers(case.source)
    seg = write_seg(case.source, case.result, directory / "seg.dcm", identity=IDENTITY)
    return {
        "Embolens": seconds(
            lambda: sr_writer.write_sr(
                case.source, case.result, seg, directory / "sr.dcm", identity=IDENTITY, headers=headers
            )
        ),
        "highdicom": seconds(partial(_report_by_highdicom, case, headers, seg, directory / "highdicom.dcm")),
    }


def _report_by_highdicom(case: Case, headers: list, seg: SopInstance, path: Path) -> None:  # type: ignore[type-arg]
    content = sr_writer._report(case.result.findings, IDENTITY)
    areas = label_areas(case.result.embolus_labelmap)
    for lesion in case.result.findings.reported:
        first, others = sr_writer._source_images(case.source, headers, np.flatnonzero(areas[:, lesion.id]))
        images = [first, *(SourceImageForSegmentation(headers[0].SOPClassUID, uid) for uid in others)]
        segment = ReferencedSegment(seg.sop_class_uid, seg.sop_instance_uid, lesion.id + 1, source_images=images)
        content.ContentSequence[-1].ContentSequence.extend(sr_writer._embolus_group(lesion, segment, IDENTITY))
    Comprehensive3DSR(
        evidence=[*headers, sr_writer._seg_reference(seg)],
        content=content,
        series_instance_uid=seg.series_instance_uid,
        series_number=1,
        sop_instance_uid=seg.sop_instance_uid,
        instance_number=1,
        manufacturer="M",
    ).save_as(path)


def _report_row(figures: dict[str, Figure], directory: Path) -> Row:
    written = (directory / "sr.dcm").stat().st_size
    ours, theirs = figures["Embolens"], figures["highdicom"]
    return Row(
        what="structured report, 400 slices, 10 lesions",
        unit="s",
        higher_is_better=False,
        ours=ours,
        others=(theirs,),
        floor=Floor(value=written / machine.file_write_bytes_per_s(), why=f"{written / 1e3:.0f} kB written"),
        goals=(
            Goal(says="at most 0.4 s", met=ours.median <= 0.4),
            Goal(says="never slower than highdicom", met=ours.median <= theirs.median),
        ),
    )
