"""Asking the gateway, with nothing but the standard library and never through a proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from imaging.errors import EmbolensError
from services.secret_file import bearer_token

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class GatewayClient:
    """Reads from the gateway below `base_url` (with its closing slash)."""

    def __init__(self, base_url: str, *, key_file: Path | None = None) -> None:
        """`key_file` holds the API key to show; health checks need none."""
        self._base_url = base_url
        self._key_file = key_file

    def is_ready(self) -> bool:
        try:
            with _OPENER.open(f"{self._base_url}health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, timed out, or an answer that is not 2xx: URLError and HTTPError are OSErrors
            return False

    def get(self, path: str) -> Any:
        """The JSON under `path`.

        Raises:
            ConfigurationError: the key cannot be read.
            EmbolensError: there is no such thing, or no gateway (code ``gateway.no_answer``).
        """
        try:
            request = urllib.request.Request(self._base_url + path, headers=bearer_token(self._key_file))
            with _OPENER.open(request, timeout=10) as answer:
                return json.load(answer)
        except OSError as error:
            raise EmbolensError(f"the gateway did not answer for {path}: {error}", code="gateway.no_answer") from error
