"""What one listener allows its peers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.settings import Settings
from services.store.study_store import StudyStore

MAX_PDU_BYTES = 128 * 1024
_MESSAGE_MAX_BYTES = 1 << 20  # of anything but an instance: a command set, a report of storage commitment
_LEAST_BYTES_PER_S = 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one listener allows its peers.

    Attributes:
        timeout_s: for one PDU to come in whole, for one to be taken by the peer; after this a message that comes in at
            less than 1 KiB/s is given up.
        pdu_bytes: longest PDU, as announced.
        instance_bytes: longest data set of a C-STORE.
        associations: at once; beside them, connections on which nobody has asked for an association yet.
        directory: where data sets lie while they arrive.
    """

    timeout_s: float
    pdu_bytes: int
    instance_bytes: int
    associations: int
    directory: Path

    @classmethod
    def of(cls, settings: Settings, store: StudyStore) -> Self:
        return cls(
            timeout_s=settings.network_timeout_s,
            pdu_bytes=MAX_PDU_BYTES,
            instance_bytes=settings.instance_max_bytes,
            associations=settings.max_associations,
            directory=store.arriving_path,
        )


class BoundedMessage:
    """The message that is coming in, whoever reads it: how much of it has come, and since when."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._bytes = 0
        self._began = 0.0

    def begin(self) -> None:
        self._bytes, self._began = 0, time.monotonic()

    def grow(self, count: int, *, is_instance: bool) -> str | None:
        """Which bound it breaks with so many bytes more."""
        self._bytes += count
        longest = self._bounds.instance_bytes if is_instance else _MESSAGE_MAX_BYTES
        seconds = time.monotonic() - self._began
        if self._bytes > longest:
            return f"a message of more than {longest} bytes"
        if seconds > self._bounds.timeout_s and self._bytes < seconds * _LEAST_BYTES_PER_S:
            return f"a message at less than {_LEAST_BYTES_PER_S} bytes per second"
        return None
