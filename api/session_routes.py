"""The login of the worklist page: a key is shown once, and the browser gets a session in its place."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from api.authentication import COOKIE, SESSION_PATH, address_of, check_attempts, check_same_origin
from api.gateway import Gateway, OpenGateway
from imaging.errors import InputError, InputTooLarge, NotAuthenticated

router = APIRouter(include_in_schema=False)

_MOST_BYTES = 4096


class _Login(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str = Field(max_length=200)


@router.post(SESSION_PATH, status_code=204)
async def log_in(request: Request, gateway: OpenGateway) -> Response:
    """The cookie cannot be read by scripts, and is sent with requests of our own page alone."""
    check_same_origin(request, gateway.settings.gateway_url)
    address = address_of(request)
    check_attempts(gateway, address)
    shown = await _shown(request)
    lasts = timedelta(seconds=gateway.settings.session_s)
    opened = await run_in_threadpool(gateway.keys.open_session, shown.key.strip(), lasts=lasts)
    if opened is None:
        gateway.failed_logins.take(address)
        raise NotAuthenticated("the API key is not valid", code="key.invalid", remedy="see `embolens keys list`")
    response = Response(status_code=204)
    response.set_cookie(
        COOKIE,
        opened,
        max_age=int(gateway.settings.session_s),
        httponly=True,
        samesite="strict",
        secure=_is_https(request, gateway),
    )
    return response


@router.delete(SESSION_PATH, status_code=204)
async def log_out(request: Request, gateway: OpenGateway) -> Response:
    """Ends the session here, whatever the browser keeps."""
    check_same_origin(request, gateway.settings.gateway_url)
    if (token := request.cookies.get(COOKIE)) is not None:
        await run_in_threadpool(gateway.keys.close_session, token)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=_is_https(request, gateway))
    return response


async def _shown(request: Request) -> _Login:
    """Whoever asks here is not known yet: no more is read than a key needs."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise InputTooLarge(f"a login of more than {_MOST_BYTES} bytes")
    try:
        return _Login.model_validate_json(body)
    except ValidationError:  # its text would quote the key
        raise InputError("a login is JSON with a key", code="request.invalid") from None


def _is_https(request: Request, gateway: Gateway) -> bool:
    return request.url.scheme == "https" or gateway.settings.gateway_url.startswith("https:")
