"""Ending a process: SIGTERM and SIGINT set an event that its main loop waits for."""

from __future__ import annotations

import _thread
import signal
import threading
from types import FrameType

_LOOK_EVERY_S = 1.0


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        # A handler runs in the main thread, in the middle of whatever it does: inside `stopping.wait` it would wait for
        # the lock that this very thread holds, without end. Another thread sets the event; `threading.Thread` takes
        # locks of its own when it starts, this does not.
        _thread.start_new_thread(stopping.set, ())

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping


def wait_until_told(stopping: threading.Event) -> None:
    """Wait in the main thread until `stopping` is set.

    The kernel may give a signal to any thread, and only the main thread runs the handler: one that waits without a
    limit would not wake for it.
    """
    while not stopping.wait(_LOOK_EVERY_S):
        pass
