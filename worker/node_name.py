"""The name of a worker among all workers on the same Redis."""

from __future__ import annotations

import socket


def node_name(process_id: int | str) -> str:
    """Unique by process and machine; `*` for the process matches every worker of this machine."""
    return f"embolens-{process_id}@{socket.gethostname()}"
