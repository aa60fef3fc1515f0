"""Bearer tokens of an OpenID Connect issuer: JWTs that are checked here, with the keys that the issuer publishes.

The issuer is found by its discovery document (OpenID Connect Discovery 1.0). A token counts if it is signed with one of
its keys by an asymmetric algorithm, names it as issuer and us as audience, and is valid now. What it permits stands in
a claim: a scope behind `embolens.` (`embolens.read`), the prefix by setting, since an issuer's bare `admin` is often
somebody else's.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jwt

from imaging.errors import ConfigurationError, IssuerUnavailable, NotAuthenticated, NotPermitted
from services.accounts.exposure import is_loopback
from services.accounts.principal import Principal, Scope, is_tenant
from services.settings import Settings
from services.store.rows import DEFAULT_TENANT

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_LEEWAY_S = 30
_KEYS_FRESH_S = 3600.0  # then they are fetched again; where that fails, the old ones serve on
_REFETCH_AFTER_S = 10.0  # the issuer is not asked more often, whatever tokens come
_TIMEOUT_S = 5.0
_MOST_BYTES = 1024**2
_DISCOVERY = "/.well-known/openid-configuration"

_Key = tuple[Any, str | None]  # a public key, and the one algorithm that it is for, where the issuer says so


class TokenChecker:
    """Checks tokens of the one issuer that the settings name."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is fetched yet.

        Raises:
            ConfigurationError: no audience, or an issuer that is not reached by https.
        """
        if not settings.oidc_audience:
            raise ConfigurationError("an OIDC issuer without an audience", remedy="set EMBOLENS_OIDC_AUDIENCE")
        _check_url(settings.oidc_issuer)
        self._settings = settings
        self._issuer = settings.oidc_issuer
        self._lock = threading.Lock()
        self._keys: dict[str | None, _Key] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")

    def principal_of(self, token: str) -> Principal:
        """The caller who shows this token.

        Raises:
            NotAuthenticated: the token is not valid (code ``token.invalid`` or ``token.expired``).
            NotPermitted: it is, and names no tenant where one is asked for (code ``token.no_tenant``).
            IssuerUnavailable: whether it is cannot be told.
        """
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in ALGORITHMS:
                raise NotAuthenticated(f"a token signed by {str(algorithm)[:16]!r}", code="token.invalid")
            key_id = header.get("kid")
            try:
                claims = self._claims(token, algorithm, self._key(key_id))
            except jwt.InvalidSignatureError:
                if key_id is not None:
                    raise
                claims = self._claims(token, algorithm, self._key(None, anew=True))  # a new key, without a name as well
        except jwt.ExpiredSignatureError:
            raise NotAuthenticated("the token has expired", code="token.expired") from None
        except (jwt.PyJWTError, TypeError) as error:  # its text may quote the token
            raise NotAuthenticated(f"the token is not valid: {type(error).__name__}", code="token.invalid") from None
        return self._principal(claims)

    def _claims(self, token: str, algorithm: str, known: _Key) -> dict[str, Any]:
        key, only_for = known
        if only_for not in (None, algorithm):
            raise NotAuthenticated(f"a token signed by {algorithm} with a key for another", code="token.invalid")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=self._issuer,
            audience=self._settings.oidc_audience,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        tenant = DEFAULT_TENANT
        if self._settings.oidc_tenant_claim:
            tenant = str(_claim(claims, self._settings.oidc_tenant_claim) or "")
            if not is_tenant(tenant):
                claim = self._settings.oidc_tenant_claim
                raise NotPermitted(f"the token's claim {claim!r} names no tenant", code="token.no_tenant")
        given = _claim(claims, self._settings.oidc_scope_claim) or ()
        values = given.split() if isinstance(given, str) else given if isinstance(given, list) else ()
        prefix = self._settings.oidc_scope_prefix
        scopes = frozenset(scope for scope in Scope if prefix + scope.value in values)
        return Principal(f"oidc:{claims['sub']}"[:255], tenant, scopes)

    def _key(self, key_id: str | None, *, anew: bool = False) -> _Key:
        """The issuer's key of this id; the only one where the token names none. `anew`: not the one known so far."""
        is_fresh = time.monotonic() - self._fetched_at <= _KEYS_FRESH_S
        if not anew and is_fresh and (known := self._find(key_id)) is not None:
            return known
        with self._lock:  # one caller fetches, and the others wait for what it gets
            failure = None
            now = time.monotonic()
            known = self._find(key_id)
            is_wanted = anew or known is None or now - self._fetched_at > _KEYS_FRESH_S
            if is_wanted and now - self._tried_at > _REFETCH_AFTER_S:
                self._tried_at = now
                try:
                    self._keys = self._fetch()
                    self._fetched_at = now
                except IssuerUnavailable as error:
                    failure = error
                    log.warning("%s", error)
                known = self._find(key_id)
            if known is not None:
                return known
            if failure is not None or self._fetched_at < self._tried_at:
                raise failure or IssuerUnavailable("the issuer of tokens did not answer", remedy="try again shortly")
        raise NotAuthenticated("the token is signed with a key that its issuer does not publish", code="token.invalid")

    def _find(self, key_id: str | None) -> _Key | None:
        keys = self._keys
        if key_id is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(key_id)

    def _fetch(self) -> dict[str | None, _Key]:
        """Raises IssuerUnavailable: it does not answer, or not as an issuer does."""
        found = _json(self._issuer.rstrip("/") + _DISCOVERY)
        if found.get("issuer") != self._issuer:
            raise IssuerUnavailable(f"{self._issuer} says it is another issuer", remedy="set EMBOLENS_OIDC_ISSUER")
        address = str(found.get("jwks_uri"))
        try:
            _check_url(address)
        except ConfigurationError as error:
            raise IssuerUnavailable(f"the issuer's keys are at {error.message}") from error
        keys: dict[str | None, _Key] = {}
        published = _json(address).get("keys")
        if not isinstance(published, list):
            raise IssuerUnavailable("the issuer's answer has no keys")
        for one in published:
            try:
                if one.get("use", "sig") == "sig" and one.get("kty") != "oct":
                    keys[one.get("kid")] = (jwt.PyJWK(one).key, one.get("alg"))
            except (
                jwt.PyJWTError,
                AttributeError,
                KeyError,
                TypeError,
                ValueError,
            ):  # a kind of key that is not known here signs nothing here
                log.debug("a key of the issuer is not understood, and so signs nothing here")
        return keys


def _json(url: str) -> dict[str, Any]:
    try:
        with (
            httpx.Client(timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False) as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as response,
        ):
            response.raise_for_status()
            content = b""
            for piece in response.iter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise IssuerUnavailable(f"{url} answers with more than {_MOST_BYTES} bytes")
            answer = json.loads(content)
    except (httpx.HTTPError, ValueError) as error:
        raise IssuerUnavailable(
            f"the issuer of tokens does not answer: {type(error).__name__}", remedy="try again shortly"
        ) from error
    if not isinstance(answer, dict):
        raise IssuerUnavailable(f"{url} is no JSON object")
    return answer


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name; a dot leads into an object, as in Keycloak's `realm_access.roles`."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _check_url(url: str) -> None:
    """Raises ConfigurationError: no https, beyond this machine."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"no URL: {url!r}") from error
    if parsed.scheme == "https" or (parsed.scheme == "http" and is_loopback(parsed.host)):
        return
    raise ConfigurationError(f"{url!r}, which is not https", remedy="keys that travel in the clear prove nothing")
