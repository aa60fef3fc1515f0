"""TLS for DICOM associations, the listener's and the sender's (PS3.15 Annex B, BCP 195)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imaging.errors import ConfigurationError
from services.settings import Settings

# The suites of the Modified BCP 195 profile (PS3.15 B.13) for TLS 1.2; those of TLS 1.3 are always offered beside them.
TLS_1_2_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384"
)
_HANDSHAKE_TIMEOUT_S = 30.0


class _ListenersContext(ssl.SSLContext):
    """Leaves the handshake to the association's own thread: where connections are accepted it would let one silent
    peer keep all others waiting."""

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **keywords: Any) -> ssl.SSLSocket:
        sock.settimeout(_HANDSHAKE_TIMEOUT_S)
        return super().wrap_socket(sock, *arguments, **keywords | {"do_handshake_on_connect": False})


def listener_context(settings: Settings) -> ssl.SSLContext | None:
    """What the listener speaks TLS with; None where it has no certificate and speaks plain DICOM.

    With trusted certificates a peer has to show one that they vouch for.

    Raises:
        ConfigurationError: a file cannot be read or is no certificate.
    """
    if settings.tls_certificate is None:
        return None
    context = _loaded(settings, _ListenersContext(ssl.PROTOCOL_TLS_SERVER))
    if settings.tls_trusted is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def sender_context(settings: Settings) -> ssl.SSLContext:
    """What nodes with `tls` are spoken to with. They have to show a certificate for their host that `tls_trusted`, or
    without it the system, vouches for; where they ask for ours, they get it.

    Raises:
        ConfigurationError: as `listener_context`.
    """
    context = _loaded(settings, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    if settings.tls_trusted is None:
        context.load_default_certs()
    return context


def _loaded(settings: Settings, context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_1_2_SUITES)
    if (certificate := settings.tls_certificate) is not None:
        _load("certificate or key", certificate, lambda: context.load_cert_chain(certificate, settings.tls_key))
    if (trusted := settings.tls_trusted) is not None:
        _load("trusted certificates", trusted, lambda: context.load_verify_locations(trusted))
    return context


def _load(what: str, path: Path, load: Callable[[], None]) -> None:
    try:
        load()
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"TLS {what} {path}: {error.strerror or error}",
            code="tls.certificate",
            remedy="set EMBOLENS_TLS_CERTIFICATE, EMBOLENS_TLS_KEY and EMBOLENS_TLS_TRUSTED to PEM files",
        ) from error
