"""Why a process of the pool ended, as far as it can be known."""

from __future__ import annotations

import pytest
from billiard.common import human_status

from worker.lost_process import cause_of_death


@pytest.mark.parametrize(
    ("exit_status", "code", "said"),
    [
        (-9, "worker_killed", "probably because memory ran out"),
        (-11, "worker_crashed", "SIGSEGV"),
        (-6, "worker_crashed", "SIGABRT"),
        (-40, "worker_crashed", "signal 40"),
        (7, "worker_crashed", "exit code 7"),
        (None, "worker_crashed", "exit code unknown"),
    ],
)
def test_the_cause_is_taken_from_how_the_pool_words_it(exit_status: int | None, code: str, said: str) -> None:
    found, message = cause_of_death(f"Worker exited prematurely: {human_status(exit_status)} Job: 11.")
    assert found == code
    assert said in message
