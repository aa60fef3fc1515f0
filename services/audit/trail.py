"""The audit trail of one process: what it did is written down before it is answered.

A line that cannot be written (a full disk, a lost share) keeps no study waiting: the process serves on, says so with a
critical line in its log, keeps the messages (the last thousand), and writes them when it can again.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path

from services.audit.chain import ChainWriter
from services.audit.codes import AuditCode
from services.audit.message import AuditMessage, Participant
from services.secret_file import read_secret
from services.settings import Settings

log = logging.getLogger(__name__)

_KEPT = 1000


class AuditTrail:
    """Thread-safe; several processes of one kind on one host share a chain."""

    def __init__(self, settings: Settings, process: str) -> None:
        """Raises ConfigurationError: the key cannot be read."""
        host = socket.gethostname()
        self.directory = audit_directory(settings)
        self.source = f"{process}@{host}"
        self._ae_title = settings.ae_title
        self._host = host
        self._writer = ChainWriter(self.directory / re.sub(r"[^A-Za-z0-9.@-]", "_", self.source), audit_key(settings))
        self._unwritten: deque[AuditMessage] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    def us(self, role: AuditCode | None = None, *, is_requestor: bool = False) -> Participant:
        """This process, as one who takes part."""
        titles = f"AETITLES={self._ae_title}"  # PS3.15 A.5.2.1
        return Participant(self.source, is_requestor, role, self._host, titles)

    def write(self, message: AuditMessage) -> bool:
        """Add the message; whether it, and all before it, could be written."""
        with self._lock:
            self._unwritten.append(replace(message, source=self.source))
            try:
                while self._unwritten:
                    self._writer.append(self._unwritten[0].to_record())
                    self._unwritten.popleft()
            except OSError as error:
                log.critical(
                    "the audit trail cannot be written (%s): %d messages wait in memory",
                    error.strerror,
                    len(self._unwritten),
                )
                return False
        return True


def audit_directory(settings: Settings) -> Path:
    return settings.data_dir.resolve() / "audit"


def audit_key(settings: Settings) -> bytes | None:
    """Raises ConfigurationError: it cannot be read."""
    return None if settings.audit_key_file is None else read_secret(settings.audit_key_file).encode()
