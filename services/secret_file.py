"""A secret that lies in a file of its own, never in the settings or in a TOML."""

from __future__ import annotations

from pathlib import Path

from imaging.errors import ConfigurationError


def read_secret(path: Path) -> str:
    """The file's text without the white space around it, read anew each time so that it can be exchanged.

    Raises:
        ConfigurationError: the file cannot be read or is empty. The message names the file alone.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(f"cannot read the secret in {path}: {reason}", code="secret.unreadable") from error
    if not secret:
        raise ConfigurationError(f"{path} holds no secret", code="secret.unreadable")
    return secret


def bearer_token(path: Path | None) -> dict[str, str]:
    """The header of a request that shows the token in this file; none without a file. Raises as `read_secret`."""
    return {} if path is None else {"Authorization": f"Bearer {read_secret(path)}"}
