"""A small, strict UPS-RS origin server, to test our performer against.

It exists because none of the servers that implement UPS-RS can be installed beside the tests: dcm4chee-arc wants
WildFly and an LDAP directory, Raccoon a MongoDB, Microsoft's DICOM server an SQL Server, and Orthanc has no UPS-RS. It
is written from the Standard, not from our client: the state machine and its status codes (PS3.4 Table CC.1.1-2 as
PS3.18 chapter 11 maps them), transaction UIDs, what an update may touch and what a final state needs (PS3.4 Table
CC.2.5-3), subscriptions and the WebSocket on which events are reported (PS3.18 8.10). What it does not know it refuses.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DT

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
UPS_EVENT = "1.2.840.10008.5.1.4.34.6.4"
SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
# What a performer may set (N-SET column of PS3.4 Table CC.2.5-3); the rest belongs to who scheduled it.
PERFORMERS_ATTRIBUTES = {
    "TransactionUID",
    "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
}
MATCHED = {
    "ProcedureStepState",
    "InputReadinessState",
    "WorklistLabel",
    "ScheduledStationNameCodeSequence.CodeValue",
    "ScheduledStationNameCodeSequence.CodingSchemeDesignator",
    "ScheduledWorkitemCodeSequence.CodeValue",
    "ScheduledWorkitemCodeSequence.CodingSchemeDesignator",
}


class Refused(Exception):
    def __init__(self, status: int, warning: str) -> None:
        super().__init__(warning)
        self.status = status
        self.warning = warning


@dataclass
class Held:
    """One workitem. `history` are its states, `progress` what was reported: percent and description."""

    dataset: Dataset
    transaction_uid: str | None = None
    history: list[str] = field(default_factory=lambda: [SCHEDULED])
    progress: list[tuple[int, str]] = field(default_factory=list)
    subscribers: set[str] = field(default_factory=set)

    @property
    def state(self) -> str:
        return self.history[-1]

    @property
    def performed(self) -> Dataset:
        performed: Dataset = self.dataset.UnifiedProcedureStepPerformedProcedureSequence[0]
        return performed

    @property
    def information(self) -> Dataset:
        information: Dataset = self.dataset.ProcedureStepProgressInformationSequence[0]
        return information


class OriginServer:
    """The worklist, with the rules; `serving` puts it on a port.

    `lose_answers` counts down: so many state changes are made and then answered as if a proxy had lost the answer.
    """

    def __init__(self) -> None:
        self.workitems: dict[str, Held] = {}
        self.channels: dict[str, list[WebSocket]] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.lose_answers = 0
        self.has_events = True
        self.before_claim: Callable[[Held], None] = lambda held: None
        self.demands: Callable[[str], None] = lambda state: None
        self.port = 0
        self.garbled: set[str] = set()
        self.token: str | None = None
        self.names_events_at = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def count(self, method: str, ending: str = "") -> int:
        return sum(1 for seen, path, _ in self.requests if seen == method and path.endswith(ending))

    def add(self, workitem: Dataset) -> Held:
        held = Held(workitem)
        self.workitems[str(workitem.SOPInstanceUID)] = held
        return held

    def request_cancel(self, uid: str, reason: str = "") -> httpx.Response:
        """As somebody who does not own the workitem, over HTTP."""
        payload = Dataset()
        payload.ReasonForCancellation = reason
        return httpx.post(
            f"{self.url}/workitems/{uid}/cancelrequest",
            content=json.dumps([payload.to_json_dict()]),
            headers={"Content-Type": "application/dicom+json"},
        )

    # PS3.4 CC.2.8, PS3.18 11.9

    def search(self, query: dict[str, str]) -> list[Dataset]:
        limit, offset = int(query.pop("limit", "1000")), int(query.pop("offset", "0"))
        if unknown := set(query) - MATCHED:
            raise Refused(400, f"not a matching key here: {sorted(unknown)}")
        found = []
        for held in self.workitems.values():
            if all(_matches(held.dataset, key, value) for key, value in query.items()):
                answer = Dataset()
                for keyword in (
                    "SOPClassUID", "SOPInstanceUID", "ProcedureStepState", "InputReadinessState",
                    "ScheduledProcedureStepPriority", "ScheduledProcedureStepStartDateTime",
                    "ScheduledStationNameCodeSequence", "ScheduledWorkitemCodeSequence", "WorklistLabel",
                ):  # fmt: skip
                    if keyword in held.dataset:
                        answer[keyword] = held.dataset[keyword]
                found.append(answer)
        return found[offset : offset + limit]

    def get(self, uid: str) -> Held:
        if uid not in self.workitems:
            raise Refused(404, "no such workitem")
        return self.workitems[uid]

    # PS3.4 CC.2.1 and Table CC.1.1-2

    def change_state(self, uid: str, payload: Dataset) -> str:
        """Returns the text of a warning, or nothing."""
        held = self.get(uid)
        if set(payload.dir()) - {"ProcedureStepState", "TransactionUID"}:
            raise Refused(400, "more than the Change UPS State data elements")
        wanted, transaction_uid = payload.get("ProcedureStepState"), payload.get("TransactionUID")
        if not transaction_uid:
            raise Refused(400, "The Transaction UID is missing.")
        if not UID(transaction_uid).is_valid or len(transaction_uid) > 64:
            raise Refused(400, "The Transaction UID is no UID.")
        if wanted not in (IN_PROGRESS, COMPLETED, CANCELED):
            raise Refused(400, "C303 the UPS may only become SCHEDULED via Create")
        if wanted == IN_PROGRESS and held.state == SCHEDULED:
            self.before_claim(held)
        if held.state == SCHEDULED:
            if wanted != IN_PROGRESS:
                raise Refused(409, "C310 the UPS is not yet in the IN PROGRESS state")
            held.transaction_uid = transaction_uid
            self._enter(held, IN_PROGRESS)
            return ""
        if transaction_uid != held.transaction_uid:
            raise Refused(400, "C301 The Transaction UID is incorrect.")
        if held.state == IN_PROGRESS:
            if wanted == IN_PROGRESS:
                raise Refused(409, "C302 the UPS is already IN PROGRESS")
            _meets_final_state(held, wanted)
            self.demands(wanted)
            self._enter(held, wanted)
            return ""
        if held.state == wanted:
            return f"The UPS is already in the requested state of {wanted}."
        raise Refused(409, "C300 the UPS may no longer be updated")

    # PS3.4 CC.2.6, PS3.18 11.6

    def update(self, uid: str, payload: Dataset, in_query: str) -> None:
        held = self.get(uid)
        if held.state in (COMPLETED, CANCELED):
            raise Refused(400, "C300 the UPS may no longer be updated")
        if held.state == SCHEDULED:
            raise Refused(409, "The target URI did not reference a claimed Workitem.")
        for transaction_uid in (in_query, payload.get("TransactionUID")):
            if transaction_uid != held.transaction_uid:
                raise Refused(400, "C301 The Transaction UID is incorrect.")
        if foreign := set(payload.dir()) - PERFORMERS_ATTRIBUTES:
            raise Refused(400, f"not a performer's to change: {sorted(foreign)}")
        _well_formed(payload)
        for keyword in PERFORMERS_ATTRIBUTES - {"TransactionUID"}:
            if keyword in payload:
                held.dataset[keyword] = payload[keyword]
        if "ProcedureStepProgressInformationSequence" in payload:
            told = held.information
            held.progress.append((int(told.ProcedureStepProgress), told.get("ProcedureStepProgressDescription", "")))
            self._report(held, 3, ProcedureStepProgressInformationSequence=[told])

    # PS3.4 CC.2.2

    def ask_to_cancel(self, uid: str, payload: Dataset) -> str:
        held = self.get(uid)
        if held.state == COMPLETED:
            raise Refused(409, "C311 the UPS is already COMPLETED")
        if held.state == CANCELED:
            return "The UPS is already in the requested state of CANCELED."
        if held.state == SCHEDULED:
            self._enter(held, IN_PROGRESS)
            self._enter(held, CANCELED)
        else:
            self._report(
                held, 2, RequestingAE="MANAGER", ReasonForCancellation=payload.get("ReasonForCancellation", "")
            )
        return ""

    def _enter(self, held: Held, state: str) -> None:
        held.history.append(state)
        held.dataset.ProcedureStepState = state
        self._report(held, 1, ProcedureStepState=state, InputReadinessState=held.dataset.InputReadinessState)

    def _report(self, held: Held, event_type: int, **attributes: Any) -> None:
        event = Dataset()
        for keyword, value in attributes.items():
            setattr(event, keyword, value)
        command = {
            "00000002": {"vr": "UI", "Value": [UPS_EVENT]},
            "00000110": {"vr": "US", "Value": [1]},
            "00001000": {"vr": "UI", "Value": [str(held.dataset.SOPInstanceUID)]},
            "00001002": {"vr": "US", "Value": [event_type]},
        }
        message = json.dumps(command | event.to_json_dict())
        for aet in held.subscribers:
            for channel in self.channels.get(aet, []):
                _keep(asyncio.ensure_future(channel.send_text(message)))

    @contextmanager
    def serving(self, port: int = 0) -> Iterator[None]:
        """On a port of the system's choice, or on that one again."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(
            _application(self), log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=1, lifespan="off"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(timeout=10)
            listening.close()
            assert not thread.is_alive()


_pending: set[asyncio.Future[None]] = set()


def _keep(task: asyncio.Future[None]) -> None:
    """Else the task may be collected before it has run."""
    _pending.add(task)
    task.add_done_callback(_pending.discard)


def _matches(workitem: Dataset, key: str, value: str) -> bool:
    sequence, _, attribute = key.partition(".")
    if not attribute:
        return bool(workitem.get(sequence, "") == value)
    return any(item.get(attribute) == value for item in workitem.get(sequence, []))


def _well_formed(changes: Dataset) -> None:
    """Types 1 and 2 of the modules, the code macro, value lengths (PS3.3 C.30.1, C.30.3, Table 8.8-1, PS3.5 6.2)."""
    for item in changes.get("ProcedureStepProgressInformationSequence", []):
        if "ProcedureStepProgress" in item and not 0 <= float(item.ProcedureStepProgress) <= 100:
            raise Refused(400, "Procedure Step Progress is a percentage")
        if len(item.get("ProcedureStepProgressDescription", "")) > 1024:
            raise Refused(400, "ST of more than 1024 characters")
        _has_codes(item, "ProcedureStepDiscontinuationReasonCodeSequence", least=0)
        if "ProcedureStepCancellationDateTime" in item:
            _is_moment(item.ProcedureStepCancellationDateTime)
    for item in changes.get("UnifiedProcedureStepPerformedProcedureSequence", []):
        _has_codes(item, "PerformedStationNameCodeSequence", least=0)
        _has_codes(item, "PerformedWorkitemCodeSequence", least=1)
        _is_moment(item.PerformedProcedureStepStartDateTime)
        if len(item.get("PerformedProcedureStepDescription", "")) > 64:
            raise Refused(400, "LO of more than 64 characters")
        for output in item.get("OutputInformationSequence", []):
            ways = ("DICOMRetrievalSequence", "WADORSRetrievalSequence", "XDSRetrievalSequence")
            if output.get("TypeOfInstances") != "DICOM" or not any(output.get(way) for way in ways):
                raise Refused(400, "an output that nobody can retrieve")
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "ReferencedSOPSequence"):
                if not output.get(keyword):
                    raise Refused(400, f"an output without {keyword}")


def _has_codes(item: Dataset, keyword: str, *, least: int) -> None:
    codes = item.get(keyword, [])
    if len(codes) < least:
        raise Refused(400, f"{keyword} is missing")
    for code in codes:
        if not (code.get("CodeValue") and code.get("CodingSchemeDesignator") and code.get("CodeMeaning")):
            raise Refused(400, f"{keyword} is no code")


def _is_moment(value: str) -> None:
    try:
        DT(value)
    except ValueError:
        raise Refused(400, f"no DT: {value}") from None


def _meets_final_state(held: Held, wanted: str) -> None:
    """The final state column of PS3.4 Table CC.2.5-3: `P` is needed for COMPLETED, `X` for CANCELED."""
    missing = []
    if wanted == COMPLETED:
        (performed,) = held.dataset.get("UnifiedProcedureStepPerformedProcedureSequence", None) or [Dataset()]
        missing = [
            keyword
            for keyword in (
                "PerformedStationNameCodeSequence",
                "PerformedProcedureStepStartDateTime",
                "PerformedProcedureStepEndDateTime",
                "PerformedWorkitemCodeSequence",
            )
            if not performed.get(keyword)
        ]
        if "OutputInformationSequence" not in performed:  # may be empty
            missing.append("OutputInformationSequence")
        if "ProcedureStepCancellationDateTime" in held.information:
            missing.append("COMPLETED, yet with a time of cancellation")
    else:
        (information,) = held.dataset.get("ProcedureStepProgressInformationSequence", None) or [Dataset()]
        missing = [
            keyword
            for keyword in ("ProcedureStepCancellationDateTime", "ProcedureStepDiscontinuationReasonCodeSequence")
            if not information.get(keyword)
        ]
    if missing:
        raise Refused(409, f"C304 final state requirements are not met: {missing}")


def _application(worklist: OriginServer) -> FastAPI:
    app = FastAPI()
    base = "/dicom-web"

    @app.middleware("http")
    async def note_down(request: Request, call_next: Any) -> Response:
        try:
            if not authorised(request.headers.get("authorization")):
                raise Refused(401, "who are you?")
            response: Response = await call_next(request)
        except Refused as refused:
            response = Response(status_code=refused.status, headers={"Warning": f"299 {base}: {refused.warning}"})
        worklist.requests.append((request.method, request.url.path, response.status_code))
        return response

    def authorised(credentials: str | None) -> bool:
        return worklist.token is None or credentials == f"Bearer {worklist.token}"

    def warned(status: int, warning: str = "") -> Response:
        return Response(status_code=status, headers={"Warning": f"299 {base}: {warning}"} if warning else {})

    async def payload_of(request: Request, *, may_be_empty: bool = False) -> Dataset:
        body = await request.body()
        if not body and may_be_empty:
            return Dataset()
        if request.headers.get("content-type") != "application/dicom+json":
            raise Refused(415, "application/dicom+json only")
        content = json.loads(body)
        if not (isinstance(content, list) and len(content) == 1):
            raise Refused(400, "not an array of one dataset")
        return Dataset.from_json(content[0])

    def described(*datasets: Dataset) -> Response:
        return Response(
            json.dumps([dataset.to_json_dict() for dataset in datasets]), media_type="application/dicom+json"
        )

    @app.get(base + "/workitems")
    async def search(request: Request) -> Response:
        found = worklist.search(dict(request.query_params))
        return described(*found) if found else Response(status_code=204)

    @app.get(base + "/workitems/{uid}")
    async def get(uid: str) -> Response:
        if uid in worklist.garbled:
            return Response("<html>", media_type="text/html")
        return described(worklist.get(uid).dataset)

    @app.post(base + "/workitems/{uid}")
    async def update(uid: str, request: Request) -> Response:
        worklist.update(uid, await payload_of(request), request.url.query)
        return Response(status_code=200)

    @app.put(base + "/workitems/{uid}/state")
    async def change_state(uid: str, request: Request) -> Response:
        warning = worklist.change_state(uid, await payload_of(request))
        if worklist.lose_answers:
            worklist.lose_answers -= 1
            return Response(status_code=504)
        return warned(200, warning)

    @app.post(base + "/workitems/{uid}/cancelrequest")
    async def ask_to_cancel(uid: str, request: Request) -> Response:
        return warned(202, worklist.ask_to_cancel(uid, await payload_of(request, may_be_empty=True)))

    @app.post(base + "/workitems/{uid}/subscribers/{aet}")
    async def subscribe(uid: str, aet: str) -> Response:
        held = worklist.get(uid)
        if not worklist.has_events:
            raise Refused(403, "no subscriptions here")
        held.subscribers.add(aet)
        authority = worklist.names_events_at or f"127.0.0.1:{worklist.port}"
        return Response(
            status_code=201,
            headers={"Content-Location": f"ws://{authority}{base}/events/subscribers/{aet}"},
        )

    @app.delete(base + "/workitems/{uid}/subscribers/{aet}")
    async def unsubscribe(uid: str, aet: str) -> Response:
        if aet not in worklist.get(uid).subscribers:
            raise Refused(404, "no such subscription")
        worklist.get(uid).subscribers.discard(aet)
        return Response(status_code=200)

    @app.websocket(base + "/events/subscribers/{aet}")
    async def report_events(channel: WebSocket, aet: str) -> None:
        if not authorised(channel.headers.get("authorization")):
            await channel.close()
            return
        await channel.accept()
        worklist.channels.setdefault(aet, []).append(channel)
        try:
            while True:
                await channel.receive_text()
        except WebSocketDisconnect:
            pass
        finally:
            worklist.channels[aet].remove(channel)

    return app


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def workitem(*inputs: Dataset, station: str | None = "EMBOLENS", **attributes: Any) -> Dataset:
    """A workitem as a manager creates it (PS3.4 Table CC.2.5-3): computer aided detection, ready."""
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = UPS_PUSH, generate_uid()
    item.ProcedureStepState, item.InputReadinessState = SCHEDULED, "READY"
    item.ScheduledProcedureStepPriority = "MEDIUM"
    item.ProcedureStepLabel, item.WorklistLabel = "PE detection", "AI"
    item.ScheduledProcedureStepStartDateTime = "20260102080000"
    item.ScheduledWorkitemCodeSequence = [code("110004", "DCM", "Computer Aided Detection")]
    item.ScheduledStationNameCodeSequence = [] if station is None else [code(station, "99TEST", "Embolens")]
    item.PatientName, item.PatientID = "Secret^Person", "PHI-4711"
    item.InputInformationSequence = list(inputs)
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def input_of(slices: list[Dataset], *, ae_title: str | None = None, url: str | None = None) -> Dataset:
    """An item of the Input Information Sequence: these images of one series (PS3.3 Table 10-3b)."""
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID, item.SeriesInstanceUID = slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID
    item.ReferencedSOPSequence = []
    for one in slices:
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
        item.ReferencedSOPSequence.append(image)
    if ae_title is not None:
        retrieval = Dataset()
        retrieval.RetrieveAETitle = ae_title
        item.DICOMRetrievalSequence = [retrieval]
    if url is not None:
        retrieval = Dataset()
        retrieval.RetrieveURL = url
        item.WADORSRetrievalSequence = [retrieval]
    return item
