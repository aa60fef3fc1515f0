"""Whether a process may listen where its settings put it: nothing beyond loopback without secrets that hold."""

from __future__ import annotations

import re
from ipaddress import ip_address

from sqlalchemy.engine import make_url

from imaging.errors import ConfigurationError
from services.settings import Settings

LEAST_LENGTH = 16
_LEAST_DIFFERENT = 6
_WELL_KNOWN = (
    "password passwort passwd secret changeme change embolens postgres postgresql redis admin administrator root test "
    "default example letmein welcome qwerty qwertyuiop user guest dicom pacs radiology hospital"
)
_WITHOUT_PASSWORD = frozenset({"passfile", "sslcert", "service"})  # PostgreSQL's other ways to prove who asks
_CODE = "exposure"


def check_secrets(settings: Settings, host: str) -> None:
    """Where `host` is beyond loopback, the database and the broker have passwords that are not guessed.

    Raises:
        ConfigurationError: naming what is weak, never the password.
    """
    if is_loopback(host):
        return
    database = make_url(settings.resolved_database_url)
    by_socket = database.host is None or database.host.startswith("/")
    others = _WITHOUT_PASSWORD & set(database.query)
    if database.get_backend_name() != "sqlite" and not by_socket and not (others and not database.password):
        _check_password(database.password, "EMBOLENS_DATABASE_URL", host)
    if settings.redis_url and not settings.redis_url.startswith("unix"):
        broker = make_url(settings.redis_url)
        if broker.host and not is_loopback(broker.host):
            _check_password(broker.password, "EMBOLENS_REDIS_URL", host)


def check_authentication(settings: Settings, *, has_key: bool) -> None:
    """Where the gateway binds beyond loopback, it asks who calls, and somebody can answer.

    Raises:
        ConfigurationError: authentication is off, or nobody could log in.
    """
    if is_loopback(settings.gateway_host):
        return
    if not settings.authentication:
        raise ConfigurationError(
            f"the gateway would listen on {settings.gateway_host} with EMBOLENS_AUTHENTICATION=false",
            code=_CODE,
            remedy="switch authentication on, or set EMBOLENS_GATEWAY_HOST=127.0.0.1",
        )
    if not (has_key or settings.oidc_issuer):
        raise ConfigurationError(
            f"the gateway would listen on {settings.gateway_host}, and there is no API key and no OIDC issuer",
            code=_CODE,
            remedy="make a key with `embolens keys create NAME --scope admin`, or set EMBOLENS_OIDC_ISSUER",
        )


def weakness(password: str | None) -> str | None:
    """What is wrong with a password that a machine uses; None: nothing that is seen without guessing."""
    if not password:
        return "has no password"
    if len(password) < LEAST_LENGTH:
        return f"has a password of fewer than {LEAST_LENGTH} characters"
    letters = re.sub(r"[^a-z]", "", password.lower())
    if re.fullmatch(f"(?:{'|'.join(_WELL_KNOWN.split())})+", letters):
        return "has a well-known password"
    if len(set(password)) < _LEAST_DIFFERENT:
        return "has a password of few different characters"
    return None


def is_loopback(host: str) -> bool:
    """Whether this is an address of this machine alone."""
    try:
        address = ip_address(host.strip("[]"))
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_password(password: object, setting: str, host: str) -> None:
    if (fault := weakness(None if password is None else str(password))) is not None:
        raise ConfigurationError(
            f"{setting} {fault}, and this process would listen on {host}",
            code=_CODE,
            remedy="use a random one, e.g. of `openssl rand -hex 24`, or bind to 127.0.0.1",
        )
