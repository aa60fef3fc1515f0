"""The name of a worker among all workers on the same Redis and the same database."""

from __future__ import annotations

import socket
import uuid

_THIS_START = uuid.uuid4().hex[:8]  # the processes of a worker's pool are forked from it, and have it too


def node_name(process_id: int) -> str:
    """Unique by start: containers may share a host name, and the process ids of their own name spaces are the same."""
    return f"embolens-{process_id}-{_THIS_START}@{socket.gethostname()}"


def every_node_name() -> str:
    """A glob that matches every worker of this machine."""
    return f"embolens-*@{socket.gethostname()}"
