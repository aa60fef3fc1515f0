"""Sends the audit trail to a syslog server over TLS. The chains are the queue: what was not sent yet waits in them.

Syslog has no acknowledgement. A batch counts as sent when the server answers our end of the connection with its
own: then it has read everything before. Otherwise the batch goes again: a message may arrive twice, and none is lost.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imaging.errors import ConfigurationError
from services.audit.chain import day_files
from services.audit.message import AuditMessage
from services.audit.syslog_connection import send_and_close
from services.audit.syslog_message import framed, syslog_message
from services.audit.trail import audit_directory
from services.audit.written import message_in
from services.settings import Settings
from services.transport_security import sender_context

log = logging.getLogger(__name__)

_SENT, _SENDING = "sent.json", "sending.lock"
_BATCH = 500


class AuditForwarder:
    """Call `forward` again and again; what cannot be sent is sent another time."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError: `audit_syslog` is no HOST:PORT, or a certificate cannot be read."""
        host, separator, port = settings.audit_syslog.rpartition(":")
        if not separator or not port.isdigit():
            raise ConfigurationError(
                f"EMBOLENS_AUDIT_SYSLOG is {settings.audit_syslog!r}", remedy="HOST:PORT, as syslog.example:6514"
            )
        self._address = (host.strip("[]"), int(port))
        self._directory = audit_directory(settings)
        self._settings = settings
        self._answers = True
        sender_context(settings)

    def forward(self) -> int:
        """Send what is new; returns how many messages. A server that does not answer is said once in the log."""
        sent = 0
        try:
            for chain in sorted(self._directory.glob("*/")):
                sent += self._forward_chain(chain)
        except OSError as error:
            if self._answers:
                log.warning("the audit trail's syslog server does not take messages: %s", type(error).__name__)
            self._answers = False
        else:
            self._answers = True
        return sent

    def _forward_chain(self, chain: Path) -> int:
        sent = 0
        with (chain / _SENDING).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another relay sends it
                return 0
            os.chmod(lock.name, 0o600)
            position = _position(chain)
            while True:
                batch = list(_lines_behind(chain, position))
                if not batch:
                    return sent
                self._send([framed(syslog_message(message)) for _, message in batch if message is not None])
                position = batch[-1][0]
                _remember(chain, position)
                sent += len(batch)

    def _send(self, frames: list[bytes]) -> None:
        """Raises OSError (ssl.SSLError is one): they may not have arrived."""
        if frames:
            send_and_close(self._address, sender_context(self._settings), b"".join(frames))


_Position = tuple[str, int]  # file name, bytes of it


def _lines_behind(chain: Path, position: _Position) -> Iterator[tuple[_Position, AuditMessage | None]]:
    """The next lines, each with the position after it; None for a line that holds no message."""
    file_name, begin = position
    count = 0
    for path in day_files(chain):
        if path.name < file_name:
            continue
        with path.open("rb") as file:
            file.seek(begin if path.name == file_name else 0)
            for line in file:
                if not line.endswith(b"\n") or count == _BATCH:
                    break
                count += 1
                yield (path.name, file.tell()), message_in(line)


def _position(chain: Path) -> _Position:
    with suppress(FileNotFoundError, ValueError, KeyError):
        remembered = json.loads((chain / _SENT).read_text())
        return str(remembered["file"]), int(remembered["size"])
    return "", 0


def _remember(chain: Path, position: _Position) -> None:
    new = chain / f"{_SENT}.new"
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"file": position[0], "size": position[1]}, file)
    new.replace(chain / _SENT)
