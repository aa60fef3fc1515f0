"""A segmenter that needs no weights, and a real worker process around it: run this file as a program."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import cc3d
import numpy as np

from imaging.errors import NotAnalysable, Reason
from imaging.findings import ArteryLevel, Findings, Lesion, Outcome
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.settings import Settings, settings
from worker.app import run_worker
from worker.segmenter import OnProgress

CLOT_HU = 50
LUMEN_HU = 350


def _take_all_memory() -> None:
    taken = []
    while True:
        taken.append(np.ones(1 << 24))


def _run_for_ever() -> None:
    while True:
        time.sleep(0.01)


def _run_for_ever_and_hear_nothing() -> None:
    """As C code does, which no Python signal handler interrupts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    _run_for_ever()


# What a voxel of this value does to the process.
POISON: dict[int, Callable[[], object]] = {
    3001: lambda: ctypes.string_at(0),
    3002: lambda: os.kill(os.getpid(), signal.SIGKILL),
    3003: _take_all_memory,
    3004: _run_for_ever,
    3005: _run_for_ever_and_hear_nothing,
}


@dataclass(frozen=True, slots=True)
class Package:
    name: str = "threshold"
    version: str = "1"
    sha256: str = "0" * 64


@dataclass(slots=True)
class ThresholdSegmenter:
    """Voxels of exactly CLOT_HU are emboli. Each stage takes `stage_s` seconds, with many progress reports."""

    stage_s: float = 0.0
    error: BaseException | None = None
    package: Package = Package()

    def segment(
        self, volume: CtVolume, *, on_progress: OnProgress | None = None, min_score: float | None = None
    ) -> SegmentationResult:
        report = on_progress or (lambda stage, fraction: None)
        POISON.get(int(volume.hu.max()), lambda: None)()
        for stage in ("roi", "unet", "aanet", "fuse"):
            steps = max(1, int(self.stage_s / 0.02))
            for step in range(steps):
                report(stage, step / steps)
                time.sleep(self.stage_s / steps)
            report(stage, 1.0)
        if self.error is not None:
            raise self.error
        if not np.any(volume.hu >= LUMEN_HU):
            raise NotAnalysable([Reason("contrast.none", "no opacified vessel")])
        labels = cc3d.connected_components(volume.hu == CLOT_HU).astype(np.uint16)
        lesions = tuple(_lesion(volume, labels, label) for label in range(1, int(labels.max()) + 1))
        return SegmentationResult(
            embolus_labelmap=labels,
            artery=(volume.hu >= LUMEN_HU) | (labels > 0),
            findings=Findings(
                Outcome.EMBOLUS_FOUND if lesions else Outcome.NO_EMBOLUS,
                scan_probability=0.9 if lesions else 0.1,
                lesions=lesions,
            ),
        )


def _lesion(volume: CtVolume, labels: np.ndarray, label: int) -> Lesion:
    inside = labels == label
    voxels = volume.point_lps_mm(np.argwhere(inside))
    (left, posterior, superior), peak = voxels.mean(axis=0).tolist(), voxels[0].tolist()
    return Lesion(
        id=label,
        score=0.9,
        volume_ml=float(inside.sum()) * volume.voxel_volume_mm3 / 1000,
        centroid_lps_mm=(left, posterior, superior),
        peak_lps_mm=(peak[0], peak[1], peak[2]),
        max_diameter_mm=4.0,
        mean_hu=float(volume.hu[inside].mean()),
        artery_level=ArteryLevel.LOBAR,
    )


def load_threshold_segmenter(_: Settings) -> ThresholdSegmenter:
    if "LOADING_FAILS" in os.environ:
        raise RuntimeError(os.environ["LOADING_FAILS"])
    return ThresholdSegmenter(stage_s=float(os.environ.get("STAGE_S", "0")))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    run_worker(settings(), load_threshold_segmenter)
