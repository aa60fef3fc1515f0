"""The messages of all chains, in the order of their times."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from services.audit.chain import BadLine, day_files, read_signed
from services.audit.message import AuditMessage


def written_messages(directory: Path, study_instance_uid: str = "") -> Iterator[AuditMessage]:
    """Those of one study, or all. A line that cannot be read is left out: `verify` tells of it."""
    chains = (_messages_of(chain) for chain in sorted(directory.glob("*")) if chain.is_dir())
    for message in heapq.merge(*chains, key=lambda message: message.time):
        if not study_instance_uid or study_instance_uid in message.study_instance_uids():
            yield message


def message_in(line: bytes) -> AuditMessage | None:
    """None for a line that holds no message."""
    with suppress(BadLine, KeyError, ValueError):
        return AuditMessage.from_record(read_signed(line.rstrip(b"\n"), None)["message"])
    return None


def _messages_of(chain: Path) -> Iterator[AuditMessage]:
    for path in day_files(chain):
        with path.open("rb") as file:
            yield from filter(None, map(message_in, file))
