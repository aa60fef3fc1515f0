"""Token buckets: how often somebody may ask. In this process only: with several gateways each allows as much."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_REMEMBERED = 10_000  # callers; whoever has not asked for the longest time is forgotten, and starts with a full bucket


class RateLimit:
    """`per_second` on average, `burst` at once. Without a rate, any number."""

    def __init__(self, per_second: float, burst: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._now = now
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # who -> (tokens left, at this time)

    def wait_s(self, who: str) -> float:
        """Seconds until `who` may ask; 0: now. Nothing is taken."""
        if not self._per_second:
            return 0.0
        with self._lock:
            return self._wait_s(self._tokens(who))

    def take(self, who: str) -> float:
        """As `wait_s`; where it is 0, one token is taken."""
        if not self._per_second:
            return 0.0
        with self._lock:
            tokens = self._tokens(who)
            wait_s = self._wait_s(tokens)
            self._buckets[who] = (tokens if wait_s else tokens - 1, self._now())
            self._buckets.move_to_end(who)
            if len(self._buckets) > _REMEMBERED:
                self._buckets.popitem(last=False)
            return wait_s

    def _tokens(self, who: str) -> float:
        tokens, at = self._buckets.get(who, (self._burst, self._now()))
        return min(self._burst, tokens + (self._now() - at) * self._per_second)

    def _wait_s(self, tokens: float) -> float:
        return 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
