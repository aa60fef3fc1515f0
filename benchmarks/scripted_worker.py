"""A real worker process whose networks are played: each job keeps one core busy for SPIN_S seconds."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.process_log import log_to_stderr
from services.settings import Settings, settings
from tests.worker.threshold_worker import ThresholdSegmenter
from worker.app import run_worker
from worker.segmenter import OnProgress


@dataclass(slots=True)
class _Spinning(ThresholdSegmenter):
    spin_s: float = 0.0

    def segment(
        self, volume: CtVolume, *, on_progress: OnProgress | None = None, min_score: float | None = None
    ) -> SegmentationResult:
        until = time.thread_time() + self.spin_s
        while time.thread_time() < until:
            pass
        # Not super(): a dataclass with slots is another class than the one that is being defined here.
        return ThresholdSegmenter.segment(self, volume, on_progress=on_progress, min_score=min_score)


def load(_: Settings) -> _Spinning:
    return _Spinning(spin_s=float(os.environ["SPIN_S"]))


if __name__ == "__main__":
    log_to_stderr()
    run_worker(settings(), load)
