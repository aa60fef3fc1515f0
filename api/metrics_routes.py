"""What a monitoring system scrapes: Prometheus text format 0.0.4, without anything that names a patient or a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Response

from api.authentication import METRICS_PATH
from api.gateway import Gateway, OpenGateway
from api.problem_responses import problem_responses
from services.store.figures import figures_of

router = APIRouter(tags=["health"])

_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "Gauges, listed in docs/operations.md", "content": {"text/plain": {}}}
}
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
Sample = tuple[Mapping[str, str], float]


@router.get(
    METRICS_PATH,
    summary="Figures for Prometheus",
    response_class=Response,
    responses=problem_responses(503, beside=_ANSWER),
)
def metrics(gateway: OpenGateway) -> Response:
    """Jobs, queue, deliveries and disk as they are now: read from the database, the same at every gateway."""
    return Response(_exposition(gateway), media_type=_MEDIA_TYPE)


def _exposition(gateway: Gateway) -> str:
    now = figures_of(gateway.database)
    free = gateway.store.room().free
    families: list[tuple[str, str, Iterable[Sample]]] = [
        ("embolens_jobs", "Jobs by state", (({"state": state}, count) for state, count in now.jobs.items())),
        (
            "embolens_queue_jobs",
            "Queued jobs by priority",
            (({"priority": priority}, count) for priority, count in now.queued.items()),
        ),
        (
            "embolens_queue_oldest_seconds",
            "How long the oldest queued job has waited",
            (({"priority": priority}, waited_s) for priority, waited_s in now.oldest_queued_s.items()),
        ),
        (
            "embolens_deliveries",
            "Objects and notifications that have not arrived, by destination and state",
            (({"destination": to, "state": state}, count) for (to, state), count in now.undelivered.items()),
        ),
        (
            "embolens_delivery_oldest_seconds",
            "How long the oldest of them has waited",
            (({"destination": to}, waited_s) for to, waited_s in now.oldest_undelivered_s.items()),
        ),
        ("embolens_data_dir_free_bytes", "Free space where the studies lie", [({}, free)]),
    ]
    return "".join(_family(*family) for family in families)


def _family(name: str, meaning: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
    lines += [f"{name}{_labels(labels)} {value:.15g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}" if labels else ""
