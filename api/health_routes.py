"""Whether this process lives, and whether it can take studies.

Ready means: an upload that comes now is taken in and not lost. That needs the database and the data directory. It does
not need Redis: a job waits in the database until a sweep finds the queue again, so without Redis the gateway is
`degraded`, answers 200 and stays behind its load balancer.

Anybody may ask, so nothing is told but that: no version, no address, no figure.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from api.gateway import Gateway, OpenGateway
from api.problem_responses import problem_responses
from api.problems import problem
from api.schemas import LiveSchema, PartSchema, ReadySchema
from imaging.errors import QueueUnavailable

MIB = 1024**2
_LEAST_FOR_DATABASE_BYTES = MIB  # far more than a job's row

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", summary="Is the process alive", responses=problem_responses())
async def live() -> LiveSchema:
    return LiveSchema()


@router.get("/ready", summary="Can studies be taken", response_model=ReadySchema, responses=problem_responses(503))
def ready(request: Request, gateway: OpenGateway) -> ReadySchema | Response:
    """`degraded` while Redis is away: studies are taken in and wait. 503 when the database or the disk fails."""
    parts = {"database": _database(gateway), "data_dir": _data_dir(gateway), "redis": _redis(gateway)}
    failing = [name for name in ("database", "data_dir") if not parts[name].ok]
    if failing:
        return problem(
            request,
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not_ready",
            "; ".join(f"{name}: {parts[name].detail}" for name in failing),
            parts={name: part.model_dump() for name, part in parts.items()},
        )
    return ReadySchema(status="ready" if parts["redis"].ok else "degraded", parts=parts)


def _database(gateway: Gateway) -> PartSchema:
    answers = _probed(gateway.database.ping, "does not answer")
    free = gateway.database.free_bytes()
    if answers.ok and free is not None and free < _LEAST_FOR_DATABASE_BYTES:
        return PartSchema(ok=False, detail=f"{free / MIB:.1f} MiB free on its disk")
    return answers


def _redis(gateway: Gateway) -> PartSchema:
    return _probed(gateway.queue.ping, "does not answer; studies wait for it")


def _data_dir(gateway: Gateway) -> PartSchema:
    written = _probed(lambda: gateway.store.arriving_directory().rmdir(), "cannot be written")
    if not written.ok:
        return written
    if not gateway.store.room().has_for_intake():
        return PartSchema(ok=False, detail="hardly any room left: nothing new is taken in")
    return PartSchema(ok=True)


def _probed(probe: Callable[[], None], failure: str) -> PartSchema:
    try:
        probe()
    except (SQLAlchemyError, QueueUnavailable, OSError):
        return PartSchema(ok=False, detail=failure)  # what the driver says may hold an address or a password
    return PartSchema(ok=True)
