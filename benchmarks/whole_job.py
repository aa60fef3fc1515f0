"""From the last C-STORE response to the SEG in Orthanc: `embolens serve` against an assembly of the field's parts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median

import torch

from benchmarks import machine
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.series import SLICES, of_slices, phantom_chest, write_series
from benchmarks.side_by_side import console, side_by_side
from imaging.geometry import WorkingGrid, to_canonical
from imaging.volume import CtVolume
from imaging.windows import UNET_CHANNELS
from models.cascade import Cascade
from models.packages import default_package_directory
from services.settings import Settings
from tests.end_to_end.conftest import running_embolens
from tests.end_to_end.hospital import Orthanc, RunningEmbolens, running_orthanc, storescu

_GROWTH = (100, 200)
_INFERENCE = ("roi", "resample", "unet", "aanet")  # ours resamples within roi
_AS_SHIPPED = {
    "EMBOLENS_SERIES_QUIET_S": "20",
    "EMBOLENS_LEASE_S": "30",
    "EMBOLENS_SWEEP_S": "5",
    "EMBOLENS_DELIVERY_FIRST_BACKOFF_S": "30",
}


@dataclass
class _Ours:
    """Pushes a series and reads from the job's own record where the time went."""

    embolens: RunningEmbolens
    orthanc: Orthanc
    folder: Path
    lesions: list[int] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    pushed: int = 0

    def run(self, chest: CtVolume, *, keep: bool = True) -> float:
        """Seconds from the last C-STORE response to Orthanc's on the SEG."""
        self.pushed += 1
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            series = write_series(chest, Path(folder), f"round {self.pushed} of {chest.shape_zyx[0]}")
            storescu(self.embolens.dicom_port, Path(folder))
        job = self.embolens.wait_for_series(series, timeout_s=600)
        if job["state"] != "completed":
            raise RuntimeError(f"the job ended as {job['state']}: {job['error'] or job['reasons']}")
        received = self.embolens.data_dir / "received" / job["study_instance_uid"] / series
        last_response = max(path.stat().st_mtime for path in received.iterdir())  # it left within the same millisecond
        queued, started = (datetime.fromisoformat(job[name]).timestamp() for name in ("queued_at", "started_at"))
        accepted = self._seg_accepted(job)
        parts = {
            "complete": queued - last_response,
            "start": started - queued,
            **{str(stage): float(seconds) for stage, seconds in job["stage_seconds"].items()},
            "deliver": accepted - started - float(sum(job["stage_seconds"].values())),
        }
        console.print("   ", {name: round(seconds, 3) for name, seconds in parts.items()}, highlight=False)
        if keep:
            for name, seconds in parts.items():
                self.parts[name].append(seconds)
            self.lesions.append(len(job["findings"]["lesions"]))
        return float(accepted - last_response)

    def _seg_accepted(self, job: dict) -> float:  # type: ignore[type-arg]
        segs = {one["MainDicomTags"]["SOPInstanceUID"] for one in self.orthanc.instances()}
        (seg,) = (one for one in job["deliveries"] if one["sop_instance_uid"] in segs)
        return datetime.fromisoformat(str(seg["delivered_at"])).timestamp()


@dataclass
class _Assembly:
    process: subprocess.Popen[str]
    folder: Path
    lesions: list[int] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> float:
        """Seconds from the series' folder to Orthanc's response: nothing is waited for before."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{self.folder}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        for name, seconds in answer["seconds"].items():
            self.parts[name].append(seconds)
        self.lesions.append(answer["lesions"])
        return float(sum(answer["seconds"].values()))


def measure(rounds: int) -> Page:
    chest = phantom_chest()
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_orthanc(_folder(scratch, "orthanc")) as orthanc,
        running_embolens(_folder(scratch, "embolens"), orthanc, **_AS_SHIPPED) as embolens,
        _running_assembly(_folder(scratch, "assembly"), orthanc, chest) as assembly,
    ):
        ours = _Ours(embolens, orthanc, _folder(scratch, "series"))
        growth = {slices: ours.run(of_slices(chest, slices), keep=False) for slices in (*_GROWTH[:1], *_GROWTH)}
        ways = {"Embolens": lambda: ours.run(chest), "assembly": assembly.run}
        figures = side_by_side(ways, rounds=rounds, warm_up=False)
    growth[SLICES] = figures["Embolens"].median
    return _page(figures, ours, assembly, growth, _flops(chest))


def _flops(chest: CtVolume) -> float:
    """Of the segmenting networks over the lung box: of every slice, and of every voxel, once."""
    cascade = Cascade.load(device="cpu")
    canonical, _ = to_canonical(chest)
    box = cascade._region(canonical, lambda share: None).box
    depth, height, width = WorkingGrid.over(canonical, box, cascade._spacing_mm).shape_zyx
    per_pixel = sum(machine.flops_of(one.network.float(), (1, UNET_CHANNELS, 64, 64)) / 64**2 for one in cascade._unets)
    assert cascade._aanet is not None
    per_voxel = machine.flops_of(cascade._aanet.network.float(), (1, 1, 64, 64, 64)) / 64**3
    return (per_pixel + per_voxel) * depth * height * width


def _page(figures: dict[str, Figure], ours: _Ours, assembly: _Assembly, growth: dict[int, float], flops: float) -> Page:
    quiet_s = Settings().series_released_quiet_s
    inference_s = flops / machine.matrix_flops_per_s(torch.bfloat16)
    reading_s = SLICES * 512 * 512 * 2 / machine.memory_copy_bytes_per_s()
    total, other = figures["Embolens"], figures["assembly"]
    around = _others(ours.parts, total.samples, _INFERENCE)
    around_other = _others(assembly.parts, other.samples, _INFERENCE)
    found = f"both list {ours.lesions[0]} emboli" if _agree(ours, assembly) else "both list the same emboli"
    return Page(
        title="The whole job",
        how=_HOW.format(
            versions=", ".join(machine.version(name) for name in ("SimpleITK", "monai", "highdicom", "torch")),
            rounds=len(total.samples),
            ours=_in_words(ours.parts),
            other=_in_words(assembly.parts),
            lesions=f"{sorted(set(ours.lesions))} and {sorted(set(assembly.lesions))}",
        ),
        rows=(
            Row(
                what="400 slices, last C-STORE response to SEG in Orthanc",
                unit="s",
                higher_is_better=False,
                ours=total,
                others=(other,),
                floor=Floor(
                    value=quiet_s + reading_s + inference_s,
                    why=f"{quiet_s:g} s of quiet, the series read once, {flops / 1e12:.1f} TFLOP at the bf16 rate",
                ),
                goals=(
                    Goal(says="at most half the assembly's time", met=total.median <= other.median / 2),
                    Goal(says="at most 45 s", met=total.median <= 45),
                    Goal(says=found, met=_agree(ours, assembly)),
                ),
            ),
            Row(
                what="of that, what is not inference",
                unit="s",
                higher_is_better=False,
                ours=Figure(name="Embolens", samples=around),
                others=(Figure(name="assembly", samples=around_other),),
                floor=Floor(value=quiet_s + reading_s, why=f"{quiet_s:g} s of quiet, the series read once"),
                goals=(Goal(says="at most 4 s", met=median(around) <= 4),),
            ),
        ),
        growths=(
            Growth(
                what="whole job",
                size="slices of the same chest",
                unit="s",
                points=tuple(sorted((float(size), cost) for size, cost in growth.items())),
                explanation="The networks see the chest on a grid of 1 mm whatever the slices.",
            ),
        ),
    )


def _others(parts: dict[str, list[float]], totals: tuple[float, ...], inference: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(
        total - sum(parts[name][index] for name in inference if name in parts) for index, total in enumerate(totals)
    )


def _agree(ours: _Ours, assembly: _Assembly) -> bool:
    return len({*ours.lesions, *assembly.lesions}) == 1


def _in_words(parts: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {median(seconds):.2f}" for name, seconds in parts.items())


def _folder(scratch: str, name: str) -> Path:
    folder = Path(scratch) / name
    folder.mkdir()
    return folder


@contextmanager
def _running_assembly(folder: Path, orthanc: Orthanc, chest: CtVolume) -> Iterator[_Assembly]:
    series = folder / "series"
    write_series(chest, series, "assembly")
    command = [sys.executable, "-m", "benchmarks.field_assembly", str(default_package_directory())]
    process = subprocess.Popen(
        [*command, str(orthanc.dicom_port), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    threading.Thread(target=process.wait, daemon=True).start()
    if not process.stdout.readline():
        raise RuntimeError("the assembly did not start")
    try:
        yield _Assembly(process, series)
    finally:
        process.terminate()
        process.wait(timeout=30)


_HOW = """\
A phantom of 400 x 512 x 512 voxels at 0.75 x 0.7 x 0.7 mm with five emboli, as 400 files of 0.5 MB. Ours is `embolens
serve` with the shipped settings and package, all processes and Redis, warm by a study of 100 slices: dcmtk's
`storescu` pushes the series over one association, the job finds that it is complete, and the relay sends the SEG (and
the SR, which the assembly has not) to Orthanc. The time runs from the moment at which the last slice lay on disk,
just before its response, to the moment at which Orthanc's response on the SEG was written down.

The assembly (`benchmarks/field_assembly.py`) is one process with its networks loaded that is handed the folder of the
series: it waits for nothing, though it would have to find out as well that the series is complete (Orthanc's own
measure for that, `StableAge`, is 60 s). SimpleITK reads and resamples, the same networks with the same weights run in
fp32, eager, MONAI's SlidingWindowInferer takes the windows of the package, highdicom writes the SEG, dcmtk's
`storescu` sends it with `TCP_NODELAY=1`. {versions}.

Inference is what the networks take with their windows: the stages roi, unet and aanet of the job's record; ours holds
the resampling to 1 mm in `roi`. All else is counted as not inference: the quiet second, the check of the headers, the
queue, reading, fusion with resampling back and lesions, every file of the result, and the delivery. {rounds} rounds;
medians in s: Embolens {ours}; assembly {other}. Emboli listed: {lesions}.
"""
