"""Asking for studies of other nodes; the listener fetches them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, status

from api.authentication import Caller
from api.gateway import Gateway, OpenGateway
from api.page_cursor import cursor_after, place_of
from api.problem_responses import problem_responses
from api.retrieve_schemas import (
    RetrievalPageSchema,
    RetrievalSchema,
    RetrievedSeriesSchema,
    RetrieveRequestSchema,
)
from api.schemas import JobErrorSchema
from api.status_routes import MAX_PAGE, Uid
from imaging.errors import NotFound
from services.delivery.destinations import Destinations
from services.retrieve.archives import check_node
from services.retrieve.rules import RetrieveRule
from services.store.retrievals import has_ended, series_of
from services.store.rows import Priority, RetrievalRow, RetrievalState

router = APIRouter(tags=["retrieve"])


def visible_retrieval_id(retrieval_id: str, gateway: OpenGateway, caller: Caller) -> str:
    """The id as the database writes it.

    Raises:
        NotFound: no UUID, no such retrieval, or another tenant's: the answer is the same.
    """
    try:
        known = str(uuid.UUID(retrieval_id))
    except ValueError:
        raise NotFound(f"no retrieval {retrieval_id[:64]!r}") from None
    if not caller.sees(gateway.retrievals.get(known).tenant):
        raise NotFound(f"no retrieval {known!r}")
    return known


RetrievalId = Annotated[str, Depends(visible_retrieval_id)]


@router.post(
    "/retrieve",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Fetch a study from a node, or run a rule",
    responses=problem_responses(400, 404, 503),
)
def request_retrieval(
    body: RetrieveRequestSchema, response: Response, gateway: OpenGateway, caller: Caller
) -> RetrievalSchema:
    """`Location` names the retrieval. A study that is being fetched already is not fetched twice: the answer names the
    retrieval that is under way."""
    gateway.line.make_sure_of_room(body.priority or Priority.ROUTINE)
    destinations = Destinations.load(gateway.settings.destinations)
    tenants = gateway.rules.tenants
    visible = [name for name in destinations.retrieved_from() if caller.sees(tenants.of(name))]
    if body.rule is not None:
        row = _run_rule(gateway, _rule(destinations, body.rule, visible), visible, body.priority)
    else:
        assert body.node is not None
        assert body.study_instance_uid is not None
        check_node(body.node, visible)
        row = gateway.retrievals.request_study(
            node=body.node,
            study_instance_uid=body.study_instance_uid,
            series_instance_uid=body.series_instance_uid,
            priority=body.priority or Priority.ROUTINE,
            tenant=tenants.of(body.node),
        )
    response.headers["Location"] = f"{gateway.settings.gateway_url.rstrip('/')}/retrieve/{row.id}"
    return _view(gateway, row)


@router.get("/retrieve", summary="List retrievals", responses=problem_responses())
def list_retrievals(
    gateway: OpenGateway,
    caller: Caller,
    state: RetrievalState | None = None,
    study_instance_uid: Uid = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
) -> RetrievalPageSchema:
    """Newest first, those that rules asked for among them."""
    found = gateway.retrievals.page(
        limit=limit + 1,
        state=state,
        study_instance_uid=study_instance_uid,
        after=None if cursor is None else place_of(cursor),
        tenant=caller.sees_tenant,
    )
    rows = found[:limit]
    following = cursor_after(rows[-1].created_at, rows[-1].id) if len(found) > limit else None
    return RetrievalPageSchema(retrievals=[_view(gateway, row) for row in rows], next=following)


@router.get("/retrieve/{retrieval_id}", summary="Look at a retrieval", responses=problem_responses(404))
def get_retrieval(retrieval_id: RetrievalId, gateway: OpenGateway) -> RetrievalSchema:
    """How far it is, what went wrong, and the jobs that came of it."""
    return _view(gateway, gateway.retrievals.get(retrieval_id))


@router.delete(
    "/retrieve/{retrieval_id}",
    summary="Cancel a retrieval",
    responses=problem_responses(
        *(404, 409), beside={202: {"model": RetrievalSchema, "description": "It runs, and stops soon"}}
    ),
)
def cancel_retrieval(retrieval_id: RetrievalId, response: Response, gateway: OpenGateway) -> RetrievalSchema:
    """Stop it, and what the run of a rule has asked for. What has come is kept; a series of which only a part has come
    is set aside (`intake.incomplete`)."""
    row = gateway.retrievals.cancel(retrieval_id)
    if not has_ended(row):
        response.status_code = status.HTTP_202_ACCEPTED
    return _view(gateway, row)


def _rule(destinations: Destinations, wanted: str | RetrieveRule, visible: Sequence[str]) -> RetrieveRule:
    if isinstance(wanted, RetrieveRule):
        return wanted
    rule = destinations.retrieve_rule(wanted)
    if rule is None or rule.node not in visible:
        known = ", ".join(rule.name for rule in destinations.retrieve if rule.node in visible) or "none"
        raise NotFound(
            f"no rule {wanted!r} in destinations.toml", code="retrieve.unknown_rule", remedy=f"known: {known}"
        )
    return rule


def _run_rule(gateway: Gateway, rule: RetrieveRule, visible: Sequence[str], priority: Priority | None) -> RetrievalRow:
    check_node(rule.node, visible)
    today = datetime.now().date()  # local, as the archive's dates are
    return gateway.retrievals.request_run(
        node=rule.node,
        rule=rule.query(today).model_dump(),
        priority=priority or rule.priority,
        tenant=gateway.rules.tenants.of(rule.node),
    )


def _view(gateway: Gateway, row: RetrievalRow) -> RetrievalSchema:
    series = series_of(row)
    fetched = [one for one in series if one.skipped is None]
    jobs = gateway.retrievals.newest_jobs(row) if fetched else {}
    is_run = row.study_instance_uid is None
    children = gateway.retrievals.page(limit=MAX_PAGE, parent_id=row.id) if is_run else []
    error = None
    if row.error_code is not None:
        error = JobErrorSchema(code=row.error_code, message=row.error_message or "")
    return RetrievalSchema(
        id=row.id,
        state=RetrievalState(row.state),
        priority=Priority(row.priority),
        node=row.node,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        rule=None if row.rule is None else row.rule["rule"],
        parent=row.parent_id,
        instances_found=sum(one.instances for one in fetched),
        instances_received=sum(one.received for one in fetched),
        instances_failed=sum(one.failed for one in fetched),
        series=[
            RetrievedSeriesSchema(
                series_instance_uid=one.series_instance_uid,
                instances=one.instances,
                received=one.received,
                failed=one.failed,
                skipped=one.skipped,
                job=jobs.get(one.series_instance_uid),
            )
            for one in series
        ],
        jobs=list(jobs.values()),
        studies_found=row.studies_found,
        retrievals=[child.id for child in children],
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at if row.state == RetrievalState.PENDING.value else None,
        error=error,
        created_at=row.created_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
    )
