"""An audit message as a syslog message (RFC 5424) and as a frame of syslog over TLS (RFC 5425); PS3.15 A.6."""

from __future__ import annotations

import re

from services.audit.message import AuditMessage

_PRIORITY = 10 * 8 + 5  # facility 10 (security/authorization), severity 5 (notice)
_APP_NAME = "embolens"
_MESSAGE_ID = "IHE+DICOM"
_BOM = b"\xef\xbb\xbf"  # says that the text is UTF-8 (RFC 5424 6.4)


def syslog_message(message: AuditMessage) -> bytes:
    """PRI VERSION TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA MSG."""
    process, _, host = message.source.partition("@")
    when = message.time.isoformat(timespec="milliseconds")
    header = f"<{_PRIORITY}>1 {when} {_name(host, 255)} {_APP_NAME} {_name(process, 128)} {_MESSAGE_ID} - "
    return header.encode("ascii") + _BOM + message.to_xml().encode()


def framed(message: bytes) -> bytes:
    """Its length in octets, a space, and the message (RFC 5425 4.3)."""
    return b"%d %s" % (len(message), message)


def _name(text: str, length: int) -> str:
    """Printable US-ASCII without a space; the nil value where there is nothing (RFC 5424 6)."""
    return re.sub(r"[^!-~]", "", text)[:length] or "-"
