"""For how long things have stood still, by what this process saw itself: no clock of another machine counts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class Unchanged(Generic[Thing]):
    """Call `look` again and again. A thing that changes has to become another one.

    Between two looks at most `longest_s` count: when this process was stopped, or the database did not answer, nobody
    else could change anything either.
    """

    def __init__(self, longest_s: float, clock: Callable[[], float]) -> None:
        self._longest_s = longest_s
        self._clock = clock
        self._looked_at = clock()
        self._unchanged_s: Mapping[Thing, float] = {}

    def look(self, there: Iterable[Thing]) -> Mapping[Thing, float]:
        """What is there now, with the seconds since it was first seen."""
        now = self._clock()
        passed_s = min(now - self._looked_at, self._longest_s)
        self._looked_at = now
        known = self._unchanged_s
        self._unchanged_s = {thing: known[thing] + passed_s if thing in known else 0.0 for thing in there}
        return self._unchanged_s
