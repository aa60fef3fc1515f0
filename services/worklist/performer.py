"""The performer of one worklist (PS3.4 Annex CC, IHE AI Workflow for Imaging): claims workitems and ends each of them.

A workitem in hand is looked at every second: its inputs are fetched and analysed like any other series, how far they
are is told to the origin server, and in the end what came of them. Whatever happens in between, a workitem that was
claimed becomes COMPLETED or CANCELED as soon as the origin server can be reached, or is found to be ours no more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import ConfigurationError, EmbolensError, WorklistRefused, WorklistUnavailable
from services.delivery.destinations import Destinations, DicomWeb
from services.dicomweb_client import dicomweb_client
from services.process_log import where_raised
from services.settings import Settings
from services.store.jobs import utc_now
from services.store.outbox import Outbox
from services.store.rows import JobState, Priority, WorkitemState, WorklistItemRow
from services.store.study_store import StudyStore
from services.store.worklist_items import InputSeries, WorklistItems, inputs_of
from services.transport_security import sender_context
from services.worklist.event_channel import (
    CANCEL_REQUESTED,
    SCP_STATUS_CHANGE,
    STATE_REPORT,
    EventChannel,
    WorkitemEvent,
)
from services.worklist.input_standing import InputLook, Standing
from services.worklist.output_references import Output, outputs_of
from services.worklist.reported import UNSPECIFIED, Ending, ending_of, final_report, progress_report
from services.worklist.ups_client import UpsClient
from services.worklist.workitem import CANCELED, COMPLETED, IN_PROGRESS, Workitem
from services.worklist.worklist_table import Code, Worklist

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_LONGEST_BACKOFF_S = 300.0
_CHANNEL_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 10.0
# So often a workitem is tried to be ended as it should; then as often as CANCELED, with nothing but the reason.
_TRIES = 5
_WITH_OBJECTS = (JobState.DELIVERING, JobState.COMPLETED, JobState.NOT_ANALYSABLE)
_LEVEL = {WorkitemState.LOST: logging.WARNING}
_FINAL = {COMPLETED: WorkitemState.COMPLETED, CANCELED: WorkitemState.CANCELED}


class Performer:
    """One worklist's thread, and the thread of its event channel. One per worklist and data directory."""

    def __init__(
        self,
        worklist: Worklist,
        settings: Settings,
        items: WorklistItems,
        inputs: InputLook,
        outbox: Outbox,
        store: StudyStore,
    ) -> None:
        self._worklist = worklist
        self._settings = settings
        self._items = items
        self._inputs = inputs
        self._outbox = outbox
        self._store = store
        self._channel = EventChannel(worklist.name, self._connect_with, self._hear)
        self._heard: deque[WorkitemEvent] = deque()
        self._open_client: UpsClient | None = None
        self._polled_at = float("-inf")
        self._failures = 0
        # By id of the items in hand; all of it may be forgotten.
        self._subscribed: set[str] = set()
        self._reported: dict[str, tuple[int, str]] = {}
        self._reported_at: dict[str, float] = {}
        self._checked_at: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"worklist {worklist.name}", daemon=True)

    def start(self) -> None:
        self._channel.start()
        self._thread.start()

    def stop(self) -> None:
        """What is in hand is taken up again at the next start."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(_STOP_TIMEOUT_S)  # an answer that does not come is waited for longer; nothing hangs on it
        self._channel.stop()

    def _work(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping.is_set():
                break
            try:
                self._look_around()
            except (WorklistUnavailable, WorklistRefused, ConfigurationError) as error:
                wait_s = self._backoff_s()
                log.warning("worklist %s: %s; again in %g s", self._worklist.name, error, wait_s)
            except Exception as error:  # noqa: BLE001  the thread's outermost loop
                trace = where_raised(error)
                wait_s = self._backoff_s()
                log.error("worklist %s: %s; going on\n%s", self._worklist.name, type(error).__name__, trace)
            else:
                self._failures, wait_s = 0, min(_LOOK_S, self._worklist.poll_s)
        self._close_client()

    def _backoff_s(self) -> float:
        self._close_client()  # the next one reads the secrets anew
        self._failures += 1
        return float(min(self._worklist.poll_s * 2.0 ** min(self._failures - 1, 32), _LONGEST_BACKOFF_S))

    def _look_around(self) -> None:
        self._take_in_events()
        for item in self._items.held(self._worklist.name):
            if self._stopping.is_set():
                return
            if self._not_before.get(item.id, 0.0) <= time.monotonic():
                self._look_after_safely(item)
        if time.monotonic() - self._polled_at >= self._worklist.poll_s:
            self._poll()
            self._polled_at = time.monotonic()

    # Claiming

    def _poll(self) -> None:
        """Claim what waits for us, the most urgent first, as far as there is room for it."""
        room = self._worklist.at_once - len(self._items.held(self._worklist.name))
        if room <= 0:
            return
        found = {workitem.uid: workitem for workitem in self._client.search_scheduled()}
        known = self._items.known_among(self._worklist.name, found)
        waiting = sorted((one for uid, one in found.items() if uid not in known), key=lambda one: one.urgency)
        for seen in waiting:
            if room <= 0 or self._stopping.is_set():
                return
            try:
                workitem = self._client.get(seen.uid)
            except WorklistRefused as refusal:
                log.warning("workitem %s is left alone: %s", seen.uid, refusal)
                continue
            if workitem is not None and workitem.is_for_us(self._worklist, utc_now()):
                room -= self._take_on(workitem)

    def _take_on(self, workitem: Workitem) -> bool:
        """Whether the workitem is ours now."""
        destinations = Destinations.load(self._settings.destinations)
        workitem_code = workitem.code(self._worklist)
        assert workitem_code is not None  # else it would not be for us
        item = self._items.remember(
            self._worklist.name,
            workitem.uid,
            priority=workitem.priority,
            workitem_code=workitem_code.model_dump(),
            inputs=workitem.inputs(destinations, destinations.retrieved_from(), self._worklist.retrieve_from),
        )
        return item is not None and self._claim(item)

    def _claim(self, item: WorklistItemRow) -> bool:
        """claiming -> in_progress, or forgotten where it is somebody else's. May be repeated after any interruption."""
        self._subscribe(item)  # before, so that no request to cancel it goes unheard
        try:
            self._client.change_state(item.workitem_uid, IN_PROGRESS, item.transaction_uid)
        except WorklistRefused as refusal:
            if not self._is_ours(item):
                log.info("workitem %s is not for us: %s", item.workitem_uid, refusal)
                self._unsubscribe(item)
                self._items.forget(item.id)
                return False
        self._items.claimed(item.id)
        series = ", ".join(one.series_instance_uid for one in inputs_of(item))
        log.info("workitem %s of %s is claimed; series %s", item.workitem_uid, item.worklist, series or "none")
        return True

    def _is_ours(self, item: WorklistItemRow) -> bool:
        """Whether it has been claimed with our transaction UID, by a request whose answer did not arrive."""
        workitem = self._client.get(item.workitem_uid)
        if workitem is None or workitem.state != IN_PROGRESS:
            return False
        try:
            self._client.update(item.workitem_uid, progress_report(0, "claimed"), item.transaction_uid)
        except WorklistRefused:
            return False
        return True

    # In hand

    def _look_after_safely(self, item: WorklistItemRow) -> None:
        """One workitem must not keep the others from being looked after."""
        try:
            if item.state == WorkitemState.CLAIMING:
                self._claim(item)
            elif item.refusals >= _TRIES:
                self._give_up(item)
            else:
                self._look_after(item)
        except (WorklistUnavailable, ConfigurationError, SQLAlchemyError):
            raise
        except Exception as error:  # noqa: BLE001  the outermost of this workitem
            trace = where_raised(error)
            log.error("workitem %s: %s\n%s", item.workitem_uid, type(error).__name__, trace)
            known = isinstance(error, EmbolensError)
            self._postpone(item, str(error) if known else f"unexpected {type(error).__name__}")

    def _look_after(self, item: WorklistItemRow) -> None:
        if item.id not in self._subscribed:
            self._subscribe(item)
        if not self._is_still_in_progress(item):
            return
        if item.cancel_reason is not None:
            self._call_off(item)
        standings = self._look_at_inputs(item)
        if all(one.outcome is not None for one in standings):
            self._end(item, standings)
        else:
            self._report(item, standings)

    def _look_at_inputs(self, item: WorklistItemRow) -> list[Standing]:
        before = inputs_of(item)
        looks = [
            self._inputs.look(
                series,
                since=item.created_at,
                priority=Priority(item.priority),
                is_called_off=item.cancel_reason is not None,
            )
            for series in before
        ]
        after = [series for series, _ in looks]
        if after != before:
            self._items.record_inputs(item.id, after)
        return [standing for _, standing in looks]

    def _is_still_in_progress(self, item: WorklistItemRow) -> bool:
        """Asked now and then; where somebody else ended the workitem, the work for it ends."""
        if time.monotonic() - self._checked_at.get(item.id, float("-inf")) < self._worklist.poll_s:
            return True
        self._checked_at[item.id] = time.monotonic()
        workitem = self._client.get(item.workitem_uid)
        if workitem is not None and workitem.state == IN_PROGRESS:
            return True
        self._find_ended(item, workitem)
        return False

    def _find_ended(self, item: WorklistItemRow, workitem: Workitem | None) -> None:
        """It is not in progress any more: by us, before we could note it down, or by somebody else."""
        if workitem is None or workitem.state not in _FINAL:
            self._lose(item, "it is gone" if workitem is None else f"it is {workitem.state}")
            return
        try:  # with the right transaction UID this is a warning, PS3.4 Table CC.1.1-2
            self._client.change_state(item.workitem_uid, workitem.state, item.transaction_uid)
        except WorklistRefused:
            self._lose(item, f"it is {workitem.state}, and not by us")
            return
        self._call_off(item)
        self._close(item, _FINAL[workitem.state], "it was found so at the origin server")

    def _report(self, item: WorklistItemRow, standings: Sequence[Standing]) -> None:
        """Progress, where there is any, and not more often than the worklist's table allows."""
        percent = int(100 * sum(one.progress for one in standings) / len(standings))
        least = min((one for one in standings if one.outcome is None), key=lambda one: one.progress)
        told = (percent, least.text)
        now = time.monotonic()
        waited_s = now - self._reported_at.get(item.id, float("-inf"))
        if self._reported.get(item.id) == told or waited_s < self._worklist.progress_s:
            return
        self._reported_at[item.id] = now
        try:
            self._client.update(item.workitem_uid, progress_report(*told), item.transaction_uid)
        except WorklistRefused as refusal:
            log.warning("workitem %s: its progress is not taken: %s", item.workitem_uid, refusal)
        self._reported[item.id] = told

    # Ends

    def _end(self, item: WorklistItemRow, standings: Sequence[Standing]) -> None:
        ending = ending_of(standings, item.cancel_reason)
        destinations = Destinations.load(self._settings.destinations)
        outputs = [
            output
            for job in (one.job for one in standings)
            if job is not None and job.state in _WITH_OBJECTS
            for output in outputs_of(job.id, self._store, self._outbox, destinations, self._settings)
        ]
        self._finish(item, ending, outputs)

    def _give_up(self, item: WorklistItemRow) -> None:
        """It could not be ended as it should: CANCELED, so that whoever waits for it need not wait for ever."""
        if item.refusals >= 2 * _TRIES:
            self._lose(item, f"it cannot be ended: {item.error_message}")
            return
        self._call_off(item)
        self._finish(item, Ending(CANCELED, f"it could not be ended: {item.error_message}", UNSPECIFIED), [])

    def _finish(self, item: WorklistItemRow, ending: Ending, outputs: Sequence[Output]) -> None:
        last_percent, _ = self._reported.get(item.id, (0, ""))
        report = final_report(
            ending,
            percent=100 if ending.state == COMPLETED else last_percent,
            station=self._worklist.station,
            workitem_code=Code.model_validate(item.workitem_code),
            started_at=item.claimed_at or item.created_at,
            ended_at=utc_now(),
            outputs=outputs,
        )
        try:
            self._client.update(item.workitem_uid, report, item.transaction_uid)
            self._client.change_state(item.workitem_uid, ending.state, item.transaction_uid)
        except WorklistRefused as refusal:
            workitem = self._client.get(item.workitem_uid)
            if workitem is not None and workitem.state == IN_PROGRESS:
                self._postpone(item, str(refusal))
                return
            self._find_ended(item, workitem)
            return
        self._close(item, _FINAL[ending.state], ending.text)

    def _lose(self, item: WorklistItemRow, why: str) -> None:
        self._call_off(item)
        self._close(item, WorkitemState.LOST, why)

    def _close(self, item: WorklistItemRow, state: WorkitemState, text: str) -> None:
        self._items.end(item.id, state, None if state is WorkitemState.COMPLETED else text)
        # Not why: a person's reason to cancel may name the patient. It stays in the item's row.
        log.log(_LEVEL.get(state, logging.INFO), "workitem %s is %s", item.workitem_uid, state)
        self._unsubscribe(item)
        for remembered in (self._reported, self._reported_at, self._checked_at, self._not_before):
            remembered.pop(item.id, None)
        self._polled_at = float("-inf")  # there is room for another one

    def _call_off(self, item: WorklistItemRow) -> None:
        """Stop the work for it, but not what another workitem in hand needs."""
        others = [other for other in self._items.held(self._worklist.name) if other.id != item.id]
        needed = {_series(one) for other in others if other.cancel_reason is None for one in inputs_of(other)}
        for series in inputs_of(item):
            if _series(series) not in needed:
                self._inputs.call_off(series, since=item.created_at)

    def _postpone(self, item: WorklistItemRow, message: str) -> None:
        wait_s = min(self._worklist.poll_s * 2.0**item.refusals, _LONGEST_BACKOFF_S)
        log.error("workitem %s: %s; again in %g s", item.workitem_uid, message, wait_s)
        self._items.count_refusal(item.id, message)
        self._not_before[item.id] = time.monotonic() + wait_s

    # Events

    def _subscribe(self, item: WorklistItemRow) -> None:
        try:
            url = self._client.subscribe(item.workitem_uid)
        except WorklistRefused as refusal:
            log.warning("worklist %s: requests to cancel will not be heard: %s", self._worklist.name, refusal)
        else:
            self._channel.open(url, timeout_s=_CHANNEL_TIMEOUT_S)
        self._subscribed.add(item.id)

    def _unsubscribe(self, item: WorklistItemRow) -> None:
        """It does no harm where it fails: a workitem that has ended has no more events."""
        self._subscribed.discard(item.id)
        try:
            self._client.unsubscribe(item.workitem_uid)
        except (WorklistRefused, WorklistUnavailable) as error:
            log.debug("workitem %s: still subscribed: %s", item.workitem_uid, error)

    def _hear(self, event: WorkitemEvent) -> None:
        """In the channel's thread."""
        self._heard.append(event)
        self._wake.set()

    def _take_in_events(self) -> None:
        while self._heard:
            event = self._heard[0]
            if event.event_type == CANCEL_REQUESTED:
                reason = event.reason or "no reason given"
                if self._items.request_cancel(self._worklist.name, event.workitem_uid, reason):
                    log.info("workitem %s: its cancellation is requested", event.workitem_uid)
            elif event.event_type == SCP_STATUS_CHANGE:
                self._subscribed.clear()  # its list of subscriptions may be empty
            elif event.event_type == STATE_REPORT:
                self._checked_at.clear()
            self._heard.popleft()

    # The connection

    @property
    def _client(self) -> UpsClient:
        if self._open_client is None:
            http = dicomweb_client(self._service(), self._settings)
            self._open_client = UpsClient(http, self._worklist, our_ae_title=self._settings.ae_title)
        return self._open_client

    def _close_client(self) -> None:
        if self._open_client is not None:
            self._open_client.close()
            self._open_client = None

    def _connect_with(self) -> dict[str, Any]:
        """For the WebSocket what `dicomweb_client` is for HTTP."""
        with dicomweb_client(self._service(), self._settings) as http:
            request = http.build_request("GET", "")
            if http.auth is not None:
                request = next(http.auth.sync_auth_flow(request))
            is_secure = http.base_url.scheme == "https"
        authorization = request.headers.get("Authorization")
        return {
            "additional_headers": {"Authorization": authorization} if authorization else {},
            "ssl": sender_context(self._settings) if is_secure else None,
        }

    def _service(self) -> DicomWeb:
        service = Destinations.load(self._settings.destinations).dicomweb_service(self._worklist.server)
        if service is None:
            raise ConfigurationError(f"no DICOMweb service {self._worklist.server} in destinations.toml")
        return service


def _series(one: InputSeries) -> tuple[str, str]:
    return one.study_instance_uid, one.series_instance_uid
