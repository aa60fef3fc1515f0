"""Starting without looking for garbage: what is imported and built at a start stays as long as the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """No collection runs inside, and none looks afterwards at what was made: at most a fifth of a start's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
