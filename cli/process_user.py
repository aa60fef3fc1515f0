"""Who a process runs as."""

from __future__ import annotations

import getpass
import os


def process_user() -> str:
    """The user's name; in a container without one, the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
