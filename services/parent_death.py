"""A child process that does not outlive its parent, however the parent dies (`kill -9` included)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int, signal_number: signal.Signals) -> None:
    """Have the kernel send `signal_number` to this process when the thread that started it ends. Linux only.

    A parent that is gone already is noticed as well: the process then signals itself.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal_number)
