"""A B A B: every way once per round, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from rich.console import Console

from benchmarks.page import Figure

ROUNDS = 5
_TOUCHED_BYTES = 3 << 28
console = Console(stderr=True)


def side_by_side(
    ways: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: bool = True, unit: str = "s"
) -> dict[str, Figure]:
    """Run every way once per round, in turn, and keep what each returned; a first round is thrown away.

    Args:
        ways: name -> do it once and return the figure in `unit`.
        warm_up: False where a first round costs minutes and nothing is cached between rounds.
    """
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(-1 if warm_up else 0, rounds):
        for name, run in ways.items():
            _touch_memory()
            figure = run()
            if round_number >= 0:
                samples[name].append(figure)
            when = "warm-up" if round_number < 0 else f"round {round_number + 1} of {rounds}"
            console.print(f"  {when:>15}  {name}: {figure:.4g} {unit}", highlight=False)
    return {name: Figure(name=name, samples=tuple(figures)) for name, figures in samples.items()}


def _touch_memory() -> None:
    """A virtual machine's host takes back what was free for two seconds and gives it again at 5 to 11 us a page: longer
    than it takes to receive a file or to read an image. It would fall on whoever comes after a long turn.
    """
    np.empty(_TOUCHED_BYTES, np.uint8)[::4096] = 1


def seconds(run: Callable[[], object]) -> Callable[[], float]:
    """`run` as a way whose figure is the time it took, in s."""

    def timed() -> float:
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

    return timed
