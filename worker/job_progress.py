"""From a stage's progress to the job's, and how long each stage took."""

from __future__ import annotations

import time

from services.store.rows import Stage
from worker.held_lease import HeldLease

# Share of the whole job's time, from a 220-slice study on two CPU cores; they need only be right enough for a bar.
STAGE_WEIGHTS = {
    Stage.LOAD: 0.02,
    Stage.ROI: 0.04,
    Stage.UNET: 0.50,
    Stage.AANET: 0.36,
    Stage.FUSE: 0.05,
    Stage.WRITE: 0.03,
}


def overall_fraction(stage: Stage, fraction: float) -> float:
    """Fraction of the whole job, 0..1, when `fraction` of `stage` is done."""
    before = 0.0
    for earlier, weight in STAGE_WEIGHTS.items():
        if earlier is stage:
            return before + weight * min(max(fraction, 0.0), 1.0)
        before += weight
    raise ValueError(f"{stage} has no weight")


def stage_fraction(stage: Stage, overall: float) -> float:
    """The inverse of `overall_fraction`, for those who show one bar per stage."""
    return min(max((overall - overall_fraction(stage, 0.0)) / STAGE_WEIGHTS[stage], 0.0), 1.0)


class JobProgress:
    """What the cascade calls as `on_progress`: notes how far it is, and stops the work when the lease says so.

    It never waits for the database: what was noted goes there with the lease. It also keeps each stage's wall time.
    """

    def __init__(self, lease: HeldLease) -> None:
        self._lease = lease
        self._stage: Stage | None = None
        self._stage_began = time.monotonic()
        self.stage_seconds: dict[str, float] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        """Raises Cancelled or StateConflict, as `HeldLease.check` does."""
        self._lease.check()
        entered = Stage(stage)
        if entered is not self._stage:
            self._leave_stage(time.monotonic())
            self._stage = entered
        self._lease.reached = entered, overall_fraction(entered, fraction)

    def done(self) -> dict[str, float]:
        """Wall time of every stage, s. Call after the last one."""
        self._leave_stage(time.monotonic())
        self._stage = None
        return {stage: round(seconds, 3) for stage, seconds in self.stage_seconds.items()}

    def _leave_stage(self, now: float) -> None:
        if self._stage is not None:
            spent = self.stage_seconds.get(self._stage.value, 0.0)
            self.stage_seconds[self._stage.value] = spent + now - self._stage_began
        self._stage_began = now
