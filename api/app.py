"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import (
    conversion_routes,
    dicomweb_retrieve_routes,
    dicomweb_search_routes,
    dicomweb_store_routes,
    event_routes,
    health_routes,
    metrics_routes,
    page_routes,
    result_routes,
    retrieve_routes,
    session_routes,
    status_routes,
    submission_routes,
)
from api.audited_requests import AuditedRequests
from api.authentication import ANSWERS_TO_STRANGERS, SCHEMES, Authentication
from api.gateway import Gateway
from api.problems import add_problem_handlers
from api.schemas import ProblemSchema
from imaging.findings import RESEARCH_USE_ONLY
from services.dicomweb.resource_urls import PREFIX
from services.settings import Settings
from services.version import VERSION

_BODY_MAX_BYTES = 1024**2
_UPLOADS = ("/segment", "/convert", f"{PREFIX}/studies")
_TAGS = [
    {"name": "segment", "description": "Studies and their jobs, however they came in"},
    {"name": "results", "description": "What came out"},
    {"name": "retrieve", "description": "Studies fetched from configured nodes"},
    {"name": "convert", "description": "Files into files, without a job"},
    {"name": "dicomweb", "description": "STOW-RS, QIDO-RS and WADO-RS (PS3.18), described in docs/dicomweb.md"},
    {"name": "health", "description": "For load balancers and orchestrators"},
]


def create_app(settings: Settings, *, is_stopping: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application; its resources are opened when it starts and closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway = await run_in_threadpool(Gateway.open, settings)
        gateway.is_stopping = is_stopping
        app.state.gateway = gateway
        app.state.reads = status_routes.StatusReads(gateway)
        yield
        await run_in_threadpool(gateway.close)

    app = FastAPI(
        title="Embolens",
        version=VERSION,
        summary="Finds pulmonary emboli in CT pulmonary angiograms",
        description=RESEARCH_USE_ONLY,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    for studies in (
        submission_routes,
        status_routes,
        event_routes,
        result_routes,
        retrieve_routes,
        conversion_routes,
        dicomweb_store_routes,
        dicomweb_search_routes,
        dicomweb_retrieve_routes,
        metrics_routes,
    ):
        app.include_router(studies.router, dependencies=SCHEMES, responses=ANSWERS_TO_STRANGERS)
    for open_to_all in (health_routes, page_routes, session_routes):
        app.include_router(open_to_all.router)
    add_problem_handlers(app)
    app.add_middleware(_BoundedBodies)
    app.add_middleware(Authentication)
    app.add_middleware(AuditedRequests)
    app.add_middleware(_SafeHeaders)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        )
        template = "#/components/schemas/{model}"
        problem = ProblemSchema.model_json_schema(ref_template=template)
        schema["components"]["schemas"] |= {"ProblemSchema": problem} | problem.pop("$defs", {})
        app.openapi_schema = schema
    return app.openapi_schema


class _BoundedBodies:
    """Requests of 1 MiB at most, but for uploads, which are never gathered in memory and have limits of their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def receive_so_much() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _BODY_MAX_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {_BODY_MAX_BYTES} bytes")
            return message

        is_upload = scope["type"] != "http" or scope["path"].startswith(_UPLOADS)
        await self._app(scope, receive if is_upload else receive_so_much, send)


class _SafeHeaders:
    """Nothing is cached unless a route says so, and no browser guesses types."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        await self._app(scope, receive, send_with_headers)
