"""From the networks' last output to the files of a result: lesions, and everything that is written but for the SEG."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.page import Floor, Goal, Growth, Page, Row
from benchmarks.seg_writing import IDENTITY, made_result, made_series
from benchmarks.side_by_side import seconds, side_by_side
from imaging.lesions import LesionThresholds, find_lesions
from services.dicom.result_files import write_results
from services.dicom.series_reader import read_series

_THRESHOLDS = LesionThresholds(voxel=0.4, score=0.5, min_volume_ml=0.005)


def measure(rounds: int) -> Page:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        source = read_series(made_series(directory / "series"))
        results = {lesions: made_result(source.volume, lesions + 1) for lesions in (1, 10, 100)}
        figures = side_by_side(
            {
                **{
                    f"write, {lesions} lesions": seconds(
                        partial(write_results, source, result, directory / "result", IDENTITY)
                    )
                    for lesions, result in results.items()
                },
                **{
                    f"find, {lesions} lesions": seconds(
                        partial(
                            find_lesions,
                            np.where(result.embolus_labelmap > 0, np.float32(0.9), np.float32(0)),
                            result.artery,
                            source.volume,
                            _THRESHOLDS,
                            min_score=None,
                        )
                    )
                    for lesions, result in results.items()
                },
            },
            rounds=rounds,
        )
        written = sum(path.stat().st_size for path in (directory / "result").iterdir())
    voxels = source.volume.hu.size
    writing, finding = figures["write, 10 lesions"], figures["find, 10 lesions"]
    rows = (
        Row(
            what="write the result of 400 slices, 10 lesions",
            unit="s",
            higher_is_better=False,
            ours=writing.model_copy(update={"name": "Embolens"}),
            floor=Floor(
                value=written / machine.file_write_bytes_per_s() + 3 * voxels / machine.memory_copy_bytes_per_s(),
                why=f"{written / 1e6:.0f} MB written, label map and artery read",
            ),
            goals=(Goal(says="at most 1 s", met=writing.median <= 1),),
        ),
        Row(
            what="find and measure 10 lesions in all voxels of 400 slices",
            unit="s",
            higher_is_better=False,
            ours=finding.model_copy(update={"name": "Embolens"}),
            floor=Floor(
                value=5 * voxels / machine.memory_copy_bytes_per_s(), why="probabilities and artery read, one pass"
            ),
            goals=(Goal(says="at most 1 s", met=finding.median <= 1),),
        ),
    )
    growths = tuple(
        Growth(
            what=f"{what} by lesions",
            size="lesions",
            unit="s",
            points=tuple((float(count), figures[f"{what}, {count} lesions"].median) for count in results),
        )
        for what in ("write", "find")
    )
    how = """The series and masks of the SEG's benchmark. Written are findings, both label maps as NIfTI, the preview,
SEG, SR, key images of the eight most probable emboli and the PDF. Lesions are looked for in the whole scan; the cascade
does so in the box around the lungs, which is some 0.4 of it. There is no peer that makes these."""
    return Page(title="Making a result", how=how, rows=rows, growths=growths)
