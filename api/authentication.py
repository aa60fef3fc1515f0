"""Who calls: decided before a route is looked for, so that no route can be forgotten and no body is read before.

`request.state.principal` is the caller. Reading (GET) needs the scope `read` (figures: `metrics`), everything else
`submit`. Open to all are the health checks, the files of the page (which hold no study) and the login itself.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import anyio
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from api.gateway import Gateway
from api.problem_responses import problem_responses
from api.problems import answer_without_database, problem_of
from imaging.errors import EmbolensError, NotAuthenticated, NotPermitted, TooManyRequests
from services.accounts.api_key import PREFIX
from services.accounts.principal import UNAUTHENTICATED, Principal, Scope

COOKIE = "embolens_session"
SESSION_PATH = "/session"
METRICS_PATH = "/metrics"
_OPEN_PATHS = frozenset({"/", "/health/live", "/health/ready", SESSION_PATH})
_PAGES = "/pages/"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_TOKENS_CHECKED_AT_ONCE = 4  # while an issuer is slow, these wait for it, and not the callers who show keys

BEARER = HTTPBearer(
    auto_error=False, scheme_name="bearer", description="An API key (`embolens keys create`) or an OIDC access token"
)
SESSION = APIKeyCookie(
    auto_error=False, name=COOKIE, scheme_name="session", description="What the worklist page logs in with"
)
SCHEMES = [Security(BEARER), Security(SESSION)]
"""Dependencies by which the description says how a caller is known; `Authentication` sees to it."""
ANSWERS_TO_STRANGERS = problem_responses(401, 403, 429, 503)


def is_open(path: str) -> bool:
    """Whether a path is answered without asking who calls."""
    return path in _OPEN_PATHS or path.startswith(_PAGES)


def _needed(method: str, path: str) -> Scope:
    if path == METRICS_PATH:
        return Scope.METRICS
    return Scope.READ if method in _READING else Scope.SUBMIT


async def calling_principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(calling_principal)]


class Authentication:
    """The middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._token_checks: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and is_open(scope["path"])):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there is none
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        gateway: Gateway = scope["app"].state.gateway
        try:
            principal = await self._principal(request, gateway)
            scope.setdefault("state", {})["principal"] = principal
            wait_s = gateway.request_rate.take(principal.name)
            if wait_s:
                raise TooManyRequests(f"{principal.name!r} asks too often", retry_after_s=wait_s)
            needed = _needed(scope["method"], scope["path"])
            if not principal.has(needed):
                raise NotPermitted(
                    f"{principal.name!r} lacks the scope {needed.value!r}",
                    code="missing_scope",
                    remedy=f"use a key or token with {needed.value!r}",
                )
        except EmbolensError as error:
            await problem_of(request, error)(scope, receive, send)
            return
        except (OperationalError, InterfaceError, TimeoutError):
            await answer_without_database(request)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _principal(self, request: Request, gateway: Gateway) -> Principal:
        """Raises NotAuthenticated, NotPermitted, TooManyRequests, IssuerUnavailable."""
        if not gateway.settings.authentication:
            return UNAUTHENTICATED
        shown = request.headers.get("authorization")
        if shown is not None:
            return await self._of_bearer(shown, address_of(request), gateway)
        if (token := request.cookies.get(COOKIE)) is not None:
            check_same_origin(request, gateway.settings.gateway_url)
            principal = await run_in_threadpool(gateway.keys.principal_of_session, token)
            if principal is not None:
                return principal
        raise NotAuthenticated(
            "nobody has said who asks",
            remedy="send Authorization: Bearer and an API key; `embolens keys create` makes one",
        )

    async def _of_bearer(self, shown: str, address: str, gateway: Gateway) -> Principal:
        check_attempts(gateway, address)
        scheme, _, text = shown.partition(" ")
        text = text.strip()
        try:
            if scheme.lower() != "bearer":
                raise NotAuthenticated("an Authorization header of another scheme", remedy="send Bearer and an API key")
            if gateway.tokens is not None and not text.startswith(PREFIX):
                if self._token_checks is None:
                    self._token_checks = anyio.CapacityLimiter(_TOKENS_CHECKED_AT_ONCE)
                return await anyio.to_thread.run_sync(gateway.tokens.principal_of, text, limiter=self._token_checks)
            principal = await gateway.callers.ask(text)
            if principal is None:
                raise NotAuthenticated(
                    "the API key is not valid",
                    code="key.invalid",
                    remedy="see `embolens keys list`: it may have expired",
                )
        except NotAuthenticated:
            gateway.failed_logins.take(address)
            raise
        return principal


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


def check_attempts(gateway: Gateway, address: str) -> None:
    """Raises TooManyRequests where too many keys and tokens from this address were wrong: no other is looked at."""
    if wait_s := gateway.failed_logins.wait_s(address):
        raise TooManyRequests(
            "too many keys and tokens from this address were wrong", code="too_many_failed_logins", retry_after_s=wait_s
        )


def check_same_origin(request: Request, gateway_url: str) -> None:
    """A browser sends its cookie whoever has made the request; only our own page's requests count.

    SameSite=Strict keeps other sites out. This keeps out other ports of the same host, which are the same site.

    Raises:
        NotAuthenticated: the request is not of our page (code ``cross_origin``).
    """
    headers = request.headers
    ours = {headers.get("host", ""), urlsplit(gateway_url).netloc} - {""}
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    of_ours = site in (None, "same-origin", "none") and (origin is None or urlsplit(origin).netloc in ours)
    if not of_ours or (request.method not in _READING and origin is None):
        raise NotAuthenticated("a session counts for requests of the worklist page alone", code="cross_origin")
