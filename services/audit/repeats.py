"""What happens again and again within a short time is written down once, with how often it came meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

_MOST_KEYS = 10_000


class Repeats:
    """Of one process; a burst that ends before the window does is counted no more when the process ends."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: dict[Hashable, tuple[float, int]] = {}  # since when, and how often left out
        self._lock = threading.Lock()

    def left_out(self, key: Hashable) -> int | None:
        """None: the same was written within the window. Otherwise it is to be written, and this is how often it was
        left out before."""
        now = time.monotonic()
        with self._lock:
            since, count = self._seen.get(key, (-self._window_s, 0))
            if now - since < self._window_s:
                self._seen[key] = since, count + 1
                return None
            if len(self._seen) >= _MOST_KEYS:
                self._seen = {known: one for known, one in self._seen.items() if now - one[0] < self._window_s}
            if len(self._seen) >= _MOST_KEYS:  # as many different ones within the window: the oldest are forgotten
                self._seen.clear()
            self._seen[key] = now, 0
            return count


def with_count(text: str, left_out: int) -> str:
    return f"{text} ({left_out} more like it before)" if left_out else text
