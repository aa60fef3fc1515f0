"""The transactions of a performer with the origin server of a worklist (UPS-RS, PS3.18 chapter 11)."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
from pydicom.dataset import Dataset

from imaging.errors import WorklistRefused, WorklistUnavailable
from services.dicom.headers import MALFORMED, text
from services.store.study_store import is_uid
from services.worklist.workitem import READY, SCHEDULED, Workitem
from services.worklist.worklist_table import Worklist

_JSON = "application/dicom+json"
_PAGE = 100
_MOST_PAGES = 20
_MAX_ANSWER_BYTES = 64 * 1024**2
_GONE = (404, 410)
# These say nothing of the workitem: an operator has to act, or it is too early.
_NOT_TO_US_OR_NOT_NOW = (401, 403, 407, 408, 425, 429)
_NO_SUBSCRIPTIONS = (403, 501)  # of servers that have none (11.10.3.1)


class UpsClient:
    """One worklist's origin server.

    Raises, in each method: `WorklistUnavailable` where it does not answer, or not to us; it is to be asked again later.
    `WorklistRefused`, with its own words, where it does not do what it is asked for, or answers with something else.
    """

    def __init__(self, http: httpx.Client, worklist: Worklist, *, our_ae_title: str) -> None:
        self._http = http
        self._worklist = worklist
        self._our_ae_title = our_ae_title

    def close(self) -> None:
        self._http.close()

    def search_scheduled(self) -> Iterator[Workitem]:
        """Workitems that seem to wait for us, as the search tells of them (11.9); more attributes have to be got."""
        for code in self._worklist.workitem_codes:
            query = {
                "ProcedureStepState": SCHEDULED,
                "InputReadinessState": READY,
                "ScheduledWorkitemCodeSequence.CodeValue": code.value,
                "ScheduledWorkitemCodeSequence.CodingSchemeDesignator": code.scheme,
            }
            if not self._worklist.unassigned:
                query["ScheduledStationNameCodeSequence.CodeValue"] = self._worklist.station.value
            if self._worklist.worklist_label is not None:
                query["WorklistLabel"] = self._worklist.worklist_label
            for page in range(_MOST_PAGES):
                answer = self._ask("GET", "workitems", params=query | {"limit": _PAGE, "offset": page * _PAGE})
                found = _datasets(answer) if answer.content else []
                yield from (Workitem(one) for one in found if is_uid(text(one, "SOPInstanceUID")))
                if len(found) < _PAGE:
                    break

    def get(self, workitem_uid: str) -> Workitem | None:
        """The whole workitem (11.5); None where there is no such one, or no longer."""
        try:
            answer = self._ask("GET", _path(workitem_uid))
        except _Gone:
            return None
        found = _datasets(answer)
        if len(found) != 1 or Workitem(found[0]).uid != workitem_uid:
            raise WorklistRefused(f"{self._worklist.server} answered with another workitem than {workitem_uid}")
        return Workitem(found[0])

    def change_state(self, workitem_uid: str, state: str, transaction_uid: str) -> None:
        """Claim, complete or cancel (11.7)."""
        payload = Dataset()
        payload.ProcedureStepState = state
        payload.TransactionUID = transaction_uid
        path = f"{_path(workitem_uid)}/state"
        if self._worklist.requester_in_path:
            path += f"/{quote(self._our_ae_title, safe='')}"
        self._ask("PUT", path, payload=payload)

    def update(self, workitem_uid: str, changes: Dataset, transaction_uid: str) -> None:
        """Modify attributes of a workitem that is ours (11.6)."""
        changes.TransactionUID = transaction_uid  # PS3.4 Table CC.2.5-3 wants it here, PS3.18 11.6.1 in the query
        self._ask("POST", f"{_path(workitem_uid)}?{transaction_uid}", payload=changes)

    def subscribe(self, workitem_uid: str) -> str:
        """Have events of the workitem reported to us (11.10); returns where they come, a WebSocket's URL (8.10.4).

        Of the URL that the server names only the path counts where it names another host: our credentials go to the
        configured one alone.
        """
        answer = self._ask("POST", self._subscription(workitem_uid), refusals=_NO_SUBSCRIPTIONS)
        base = self._http.base_url
        scheme = "wss" if base.scheme == "https" else "ws"
        authority = base.netloc.decode("ascii")
        for header in ("Content-Location", "Location"):
            named = urlsplit(str(answer.headers.get(header, "")))
            if named.scheme in ("ws", "wss"):
                return urlunsplit((scheme, authority, named.path, named.query, ""))
        path = f"{base.path.rstrip('/')}/subscribers/{quote(self._our_ae_title, safe='')}"
        return urlunsplit((scheme, authority, path, "", ""))

    def unsubscribe(self, workitem_uid: str) -> None:
        """No more events of the workitem (11.11)."""
        self._ask("DELETE", self._subscription(workitem_uid))

    def _subscription(self, workitem_uid: str) -> str:
        return f"{_path(workitem_uid)}/subscribers/{quote(self._our_ae_title, safe='')}"

    def _ask(
        self,
        method: str,
        path: str,
        *,
        payload: Dataset | None = None,
        refusals: Collection[int] = (),
        **arguments: Any,
    ) -> httpx.Response:
        headers = {"Accept": _JSON, "Cache-Control": "no-cache"}
        if payload is not None:
            arguments["content"] = json.dumps([payload.to_json_dict()])
            headers["Content-Type"] = _JSON
        server = self._worklist.server
        try:
            with self._http.stream(method, path, headers=headers, **arguments) as answer:
                content = bytearray()
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise WorklistRefused(f"{server} answers with more than {_MAX_ANSWER_BYTES} bytes")
        except httpx.HTTPError as error:
            raise WorklistUnavailable(f"{server} does not answer ({type(error).__name__})") from error
        read = httpx.Response(answer.status_code, headers=_without_encoding(answer.headers), content=bytes(content))
        if answer.is_success:
            return read
        said = f"{server} answered {method} with {answer.status_code} {answer.headers.get('Warning', '')}".strip()
        if answer.status_code in _GONE:
            raise _Gone(said)
        is_refusal = answer.is_client_error and answer.status_code not in _NOT_TO_US_OR_NOT_NOW
        if is_refusal or answer.status_code in refusals:
            raise WorklistRefused(said)
        raise WorklistUnavailable(said)


class _Gone(WorklistRefused):
    """404 or 410: it does not know the workitem."""


def _path(workitem_uid: str) -> str:
    return f"workitems/{quote(workitem_uid, safe='')}"


def _without_encoding(headers: httpx.Headers) -> list[tuple[str, str]]:
    """Of content that has been decoded."""
    return [
        (name, value) for name, value in headers.items() if name.lower() not in ("content-encoding", "content-length")
    ]


def _datasets(answer: httpx.Response) -> list[Dataset]:
    """Origin servers answer with an array of datasets (PS3.18 Annex F), some with the one dataset itself."""
    try:
        content = answer.json()
        return [Dataset.from_json(one) for one in (content if isinstance(content, list) else [content])]
    except MALFORMED as error:  # json.JSONDecodeError is a ValueError
        raise WorklistRefused("the answer is not DICOM JSON") from error
