"""Posting a notification to a URL, signed (Standard Webhooks), and to nowhere that it was not meant for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
import time
from pathlib import Path

import httpx

from imaging.errors import ConfigurationError, DeliveryError
from services.delivery.destinations import Webhook
from services.secret_file import bearer_token, read_secret
from services.settings import Settings
from services.transport_security import sender_context

_CONNECTION_TIMEOUT_S = 10.0
_REPLY_TIMEOUT_S = 30.0
_SECRET_PREFIX = "whsec_"  # nosec B105
_LEAST_SECRET_BYTES = 24
# IPv6 addresses that stand for an IPv4 one: compatible, mapped, 6to4, NAT64 (RFC 6052, RFC 8215).
_HOLDS_IPV4 = [
    ipaddress.ip_network(one) for one in ("::/96", "::ffff:0:0/96", "2002::/16", "64:ff9b::/96", "64:ff9b:1::/48")
]
_CONTENT_TYPES = {"json": "application/json", "fhir": "application/fhir+json"}


def post_notification(webhook: Webhook, message_id: str, message: str, settings: Settings) -> str:
    """Post it; returns what there is to say of the answer.

    The address is looked up once and looked at, and that address is connected to: a name that leads elsewhere a moment
    later leads nowhere. Redirections are not followed.

    Raises:
        DeliveryError: no 2xx came back, or the address is one of a private network and `allow_private` is not set.
    """
    url = httpx.URL(str(webhook.url))
    body = message.encode()
    sent_at = str(int(time.time()))
    try:
        headers = {
            "Content-Type": _CONTENT_TYPES[webhook.format],
            "Host": url.netloc.decode("ascii"),
            "webhook-id": message_id,
            "webhook-timestamp": sent_at,
            "webhook-signature": signature(_key(webhook.secret_file), message_id, sent_at, body),
            **bearer_token(webhook.token_file),
        }
        verify = sender_context(settings) if url.scheme == "https" else False
    except ConfigurationError as error:
        raise DeliveryError(error.message, code=error.code) from error
    address = _address(webhook, url)
    timeout = httpx.Timeout(_REPLY_TIMEOUT_S, connect=_CONNECTION_TIMEOUT_S)
    try:
        with httpx.Client(verify=verify, timeout=timeout, follow_redirects=False, trust_env=False) as client:
            pinned = url.copy_with(host=address)
            request = client.build_request(
                "POST", pinned, content=body, headers=headers, extensions={"sni_hostname": url.host}
            )
            response = client.send(request, stream=True)  # what it says beside the status is of no interest
            response.close()
    except httpx.HTTPError as error:
        raise DeliveryError(f"webhook {webhook.name}: {type(error).__name__}", remedy="does it answer?") from error
    if not response.is_success:
        raise DeliveryError(f"webhook {webhook.name} answered {response.status_code}")
    return ""


def signature(key: bytes, message_id: str, sent_at: str, body: bytes) -> str:
    """HMAC-SHA-256 over id, time (seconds since 1970) and body, joined by full stops, in base64 after ``v1,``."""
    signed = hmac.new(key, b".".join([message_id.encode(), sent_at.encode(), body]), hashlib.sha256)
    return f"v1,{base64.b64encode(signed.digest()).decode()}"


def _key(secret_file: Path) -> bytes:
    secret = read_secret(secret_file).removeprefix(_SECRET_PREFIX)
    try:
        key = base64.b64decode(secret, validate=True)
    except binascii.Error:
        key = b""
    if len(key) < _LEAST_SECRET_BYTES:
        raise ConfigurationError(
            f"{secret_file} holds no secret for a webhook",
            code="secret.unusable",
            remedy=f"put whsec_ and the base64 of at least {_LEAST_SECRET_BYTES} random bytes into it",
        )
    return key


def _address(webhook: Webhook, url: httpx.URL) -> str:
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    try:
        found = socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DeliveryError(f"webhook {webhook.name}: no address for {url.host}") from error
    addresses = [str(entry[4][0]).split("%")[0] for entry in found]
    if not webhook.allow_private and not all(map(_is_public, addresses)):
        raise DeliveryError(
            f"webhook {webhook.name}: {url.host} leads into a private network, and allow_private is not set",
            code="delivery.private_address",
            remedy="set it, if that is meant",
        )
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and any(parsed in network for network in _HOLDS_IPV4):
        return False
    return parsed.is_global and not parsed.is_multicast
