"""Speaking to a DICOMweb service: one httpx client that knows its base, its credentials and whom to trust."""

from __future__ import annotations

import httpx

from services.delivery.destinations import DicomWeb
from services.secret_file import bearer_token, read_secret
from services.settings import Settings
from services.transport_security import sender_context

_CONNECTION_TIMEOUT_S = 10.0
_REPLY_TIMEOUT_S = 60.0


def dicomweb_client(service: DicomWeb, settings: Settings) -> httpx.Client:
    """A client for paths below the service's base: ``client.get("studies/1.2.3")``. To be closed by the caller.

    Every wait is bounded. An `https` service shows a certificate that `tls_trusted`, or without it the system, vouches
    for. Neither redirections nor the proxies of the environment are followed: nothing goes where the file does not say.

    Raises:
        ConfigurationError: a secret or a certificate cannot be read.
    """
    base = str(service.url)
    return httpx.Client(
        base_url=base,
        auth=_credentials(service),
        headers=bearer_token(service.token_file),
        verify=sender_context(settings) if base.startswith("https:") else False,
        timeout=httpx.Timeout(_REPLY_TIMEOUT_S, connect=_CONNECTION_TIMEOUT_S),
        follow_redirects=False,
        trust_env=False,
    )


def _credentials(service: DicomWeb) -> httpx.BasicAuth | None:
    if service.username is None or service.password_file is None:
        return None
    return httpx.BasicAuth(service.username, read_secret(service.password_file))
