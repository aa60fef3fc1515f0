"""What the beats of a lease ask of the database, and say to it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import OperationalError

from services.store.jobs import LeaseAnswer
from services.store.rows import Stage
from worker.held_lease import HeldLease

AT_ROI, AT_UNET = (Stage.ROI, 0.1), (Stage.UNET, 0.5)


class Jobs:
    """Takes down what is asked for, and does what comes next in the play before it answers."""

    def __init__(self, *play: Callable[[], None]) -> None:
        self.asked: list[object] = []
        self.ended = threading.Event()
        self._play = iter(play)

    def look_at_lease(self, *_: object) -> LeaseAnswer:
        return self._answer("look")

    def renew_lease(self, *_: object, lease_s: float, reached: object) -> LeaseAnswer:
        return self._answer(reached)

    def _answer(self, asked: object) -> LeaseAnswer:
        self.asked.append(asked)
        try:
            next(self._play)()
        except StopIteration:
            self.ended.set()
            return LeaseAnswer.LOST
        return LeaseAnswer.HELD


def beats(jobs: Any, lease_s: float) -> HeldLease:
    return HeldLease(jobs, "job", "owner", lease_s=lease_s)


def test_what_is_reached_goes_with_the_lease_and_goes_once() -> None:
    jobs = Jobs(lambda: None, lambda: setattr(lease, "reached", AT_UNET), lambda: None)
    lease = beats(jobs, 6.0)  # two beats fit into a third of it
    lease.reached = AT_ROI
    with lease:
        assert jobs.ended.wait(30)
    assert jobs.asked == [AT_ROI, "look", AT_UNET, "look"]


def test_what_the_database_does_not_take_stops_nothing_and_goes_with_the_next_beat() -> None:
    def locked() -> None:
        raise OperationalError("UPDATE jobs", None, Exception("locked"))

    jobs = Jobs(locked, lambda: lease.check())
    lease = beats(jobs, 0.03)
    lease.reached = AT_ROI
    with lease:
        assert jobs.ended.wait(30)
    assert jobs.asked == [AT_ROI] * 3
