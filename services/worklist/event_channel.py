"""The WebSocket over which an origin server reports events of the workitems we subscribed to (PS3.18 8.10)."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import InvalidHandshake, WebSocketException
from websockets.sync.client import ClientConnection, connect

from services.process_log import where_raised
from services.store.study_store import is_uid

log = logging.getLogger(__name__)

# Event Type ID (0000,1002), PS3.4 Table CC.2.4-1
STATE_REPORT = 1
CANCEL_REQUESTED = 2
SCP_STATUS_CHANGE = 4

_OPEN_TIMEOUT_S = 10.0
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0
_MAX_EVENT_BYTES = 1024**2
_MAX_REASON_CHARACTERS = 10_240  # VR LT


@dataclass(frozen=True, slots=True)
class WorkitemEvent:
    """One event report.

    Attributes:
        reason: Reason For Cancellation of a cancel request; empty where none is given.
    """

    workitem_uid: str
    event_type: int
    reason: str = ""


class EventChannel:
    """Opened when there is something to hear, and again, with growing waits, whenever it breaks.

    Args:
        connect_with: what `websockets.sync.client.connect` needs beside the URL: TLS, credentials; asked for anew each
            time.
        on_event: called in the channel's thread.
    """

    def __init__(
        self,
        name: str,
        connect_with: Callable[[], dict[str, Any]],
        on_event: Callable[[WorkitemEvent], None],
    ) -> None:
        self._name = name
        self._connect_with = connect_with
        self._on_event = on_event
        self._url: str | None = None
        self._connection: ClientConnection | None = None
        self._is_open = threading.Event()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"events {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._go_on()
        self._thread.join()

    def open(self, url: str, *, timeout_s: float) -> bool:
        """Listen at `url` from now on; whether the channel is open, `timeout_s` being waited for it."""
        if url != self._url:
            self._url = url
            self._is_open.clear()
            self._go_on()
        return self._is_open.wait(timeout_s)

    def _go_on(self) -> None:
        self._wake.set()
        if (connection := self._connection) is not None:
            connection.close()

    def _work(self) -> None:
        wait_s = 0.0
        while not self._stopping.is_set():
            self._wake.wait(wait_s or None)
            self._wake.clear()
            if self._stopping.is_set() or (url := self._url) is None:
                continue
            try:
                with connect(
                    url,
                    open_timeout=_OPEN_TIMEOUT_S,
                    close_timeout=1,
                    max_size=_MAX_EVENT_BYTES,
                    proxy=None,
                    **self._connect_with(),
                ) as connection:
                    log.info("worklist %s: events are listened to", self._name)
                    wait_s = 0.0
                    self._connection = connection
                    if self._url == url and not self._stopping.is_set():
                        self._is_open.set()
                        self._listen(connection)
            except (OSError, WebSocketException) as error:
                status = f" {error}" if isinstance(error, InvalidHandshake) else ""
                log.warning("worklist %s: no event channel (%s%s)", self._name, type(error).__name__, status)
            except Exception as error:  # noqa: BLE001  the thread's outermost loop
                trace = where_raised(error)
                log.error("worklist %s: events: %s\n%s", self._name, type(error).__name__, trace)
            self._connection = None
            self._is_open.clear()
            wait_s = min(_LONGEST_BACKOFF_S, wait_s * 2 or _FIRST_BACKOFF_S)

    def _listen(self, connection: ClientConnection) -> None:
        for message in connection:
            if (event := read_event(message)) is None:
                log.warning("worklist %s: an event report that cannot be read", self._name)
            else:
                self._on_event(event)


def read_event(message: str | bytes) -> WorkitemEvent | None:
    """An event report in the DICOM JSON Model; None where it is none."""
    try:
        content = json.loads(message)
        dataset = content[0] if isinstance(content, list) else content
        reason = (dataset.get("00741238") or {}).get("Value") or [""]  # Reason For Cancellation
        event = WorkitemEvent(
            workitem_uid=str(dataset["00001000"]["Value"][0]),  # Affected SOP Instance UID
            event_type=int(dataset["00001002"]["Value"][0]),  # Event Type ID
            reason=str(reason[0]).replace("\0", "")[:_MAX_REASON_CHARACTERS],
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return event if is_uid(event.workitem_uid) else None
