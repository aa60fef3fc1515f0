"""Every request that reads, brings or changes a study, or was refused, goes into the audit trail before it is answered.

Looking at lists, states and progress is not written down: these name no patient. What one client does with one study in
the same way within a minute is one message, since a viewer asks for hundreds of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.gateway import Gateway
from imaging.errors import NotFound
from services.audit import events
from services.audit.events import Peer, Subject
from services.audit.repeats import Repeats, with_count
from services.audit.subjects import subject_of_job
from services.audit.trail import AuditTrail
from services.store.rows import HeldSeriesRow

_SAME_WITHIN_S = 60.0
_LOGIN_WITHIN_S = 3600.0
_UNKNOWN = "anonymous"
Write = Callable[[AuditTrail, Peer, Subject], bool]


def _changed(what: str) -> Write:
    return lambda trail, peer, subject: events.procedure_changed(trail, peer, subject, what)


def _retrieved(trail: AuditTrail, peer: Peer, subject: Subject) -> bool:
    return events.instances_sent(trail, peer, subject, they_asked=True)


_OF_A_JOB: Mapping[str, Write] = {  # by the route's name
    "submit": events.imported,
    "cancel": _changed("job cancelled"),
    "retry": _changed("job asked for again"),
    "retry_delivery": _changed("delivery asked for again"),
    "get_findings": events.exported,
    "get_report_pdf": events.exported,
    "get_key_images_zip": events.exported,
    **{f"get_{name}_{kind}": events.exported for name, kind in (("seg", "dcm"), ("sr", "dcm"), ("report", "dcm"))},
    **{f"get_{name}": events.exported for name in ("mask_nii_gz", "artery_nii_gz", "preview_png")},
}
_READ_ONLY = events.exported, _retrieved


class AuditedRequests:
    """ASGI middleware; `app.state.gateway` has the audit trail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._repeats = Repeats(_SAME_WITHIN_S)
        self._logins = Repeats(_LOGIN_WITHIN_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_answered = False

        async def send_audited(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                await _write(list(self._messages(scope, message["status"], Headers(raw=message["headers"]))))
            await send(message)

        try:
            await self._app(scope, receive, send_audited)
        finally:
            if not is_answered and scope.get("state", {}).get("received"):  # it broke off, or ended in an error of ours
                await _write(list(_of_received(scope)))

    def _messages(self, scope: Scope, status: int, headers: Headers) -> Iterator[_Message]:
        """What is to be written about a request: of most that only look, nothing, and no thread is asked for it."""
        gateway: Gateway = scope["app"].state.gateway
        principal, peer = scope.get("state", {}).get("principal"), _peer(scope)
        path, trail = scope["path"], gateway.audit
        if status == 401:
            if (left_out := self._repeats.left_out((peer, status))) is not None:
                yield partial(events.authenticated, trail, peer, failed=with_count("not let in", left_out))
            return
        if principal is not None and self._logins.left_out(peer) is not None:
            yield partial(events.authenticated, trail, peer)
        if status == 403:
            if (left_out := self._repeats.left_out((peer, status, path))) is not None:
                yield partial(events.access_refused, trail, peer, path, with_count("may not do this", left_out))
            return
        yield from _of_received(scope)  # also where the request ends in an error: what it brought before stays
        if status >= 400 or "route" not in scope:
            return
        route: str = scope["route"].name
        parameters = scope.get("path_params", {})
        if route.startswith("search_"):
            yield partial(events.queried, trail, peer, path, scope["query_string"].decode("latin-1"))
        elif route.startswith("retrieve_"):
            study = parameters["study"]
            if self._repeats.left_out((peer, "retrieve", study)) is not None:
                yield lambda: _retrieved(trail, peer, _study(gateway, study))
        elif (write := _OF_A_JOB.get(route)) is not None:
            # Of a new job the response names it.
            job_id = parameters.get("job_id") or headers.get("location", "").rsplit("/", 1)[-1]
            if write not in _READ_ONLY or self._repeats.left_out((peer, route, job_id)) is not None:
                yield lambda: write(trail, peer, _job(gateway, job_id))


_Message = Callable[[], bool]  # writes it


async def _write(messages: Sequence[_Message]) -> None:
    def write_all() -> None:
        for message in messages:
            message()

    if messages:
        await run_in_threadpool(write_all)


def _of_received(scope: Scope) -> Iterator[_Message]:
    gateway: Gateway = scope["app"].state.gateway
    received: Mapping[str, Mapping[str, int]] = scope.get("state", {}).get("received", {})
    for study, instances in received.items():
        yield partial(_write_received, gateway, _peer(scope), study, instances)


def _write_received(gateway: Gateway, peer: Peer, study: str, instances: Mapping[str, int]) -> bool:
    return events.instances_received(gateway.audit, peer, replace(_study(gateway, study), instances=instances))


def _peer(scope: Scope) -> Peer:
    principal = scope.get("state", {}).get("principal")
    address = scope["client"][0] if scope.get("client") else None
    return Peer(_UNKNOWN if principal is None else principal.name, address)


def _job(gateway: Gateway, job_id: str) -> Subject:
    try:
        return subject_of_job(gateway.store, job_id)
    except NotFound:  # no id at all
        return Subject("", job_id=job_id)


def _study(gateway: Gateway, study_instance_uid: str) -> Subject:
    """The patient as the index knows it; of a study that has just come it may not be there yet."""
    query = select(HeldSeriesRow.patient_id).where(HeldSeriesRow.study_instance_uid == study_instance_uid).limit(1)
    try:
        with gateway.database.read() as session:
            return Subject(study_instance_uid, session.scalar(query) or "")
    except SQLAlchemyError:
        return Subject(study_instance_uid)
