"""The processes that receive instances for the listener, from the listener's side."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.context import ForkContext, SpawnContext
from types import TracebackType
from typing import Literal, Self

from pydicom.uid import UID

from services.ingest.receiver import run_receiver
from services.ingest.receiver_channel import Channel, Message
from services.settings import Settings

log = logging.getLogger(__name__)

_CONTEXTS: dict[str, Callable[[], ForkContext | SpawnContext]] = {"fork": ForkContext, "spawn": SpawnContext}


class Receiver:
    """One process."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def takes(self, connection: socket.socket, syntaxes: Mapping[int, UID], directory: str) -> bool:
        """Hand over an association between two messages; False where the process is gone, and nothing has happened.

        Args:
            syntaxes: of the presentation contexts on which plain C-STOREs of CT are taken.
            directory: where it writes files, and nobody else.
        """
        try:
            said = {"syntaxes": syntaxes, "directory": directory}
            self._channel.send(said, descriptor=connection.fileno())
        except ConnectionError:
            return False
        return True

    def answer_all(self, answer: Callable[[Message], bool]) -> Message | None:
        """Answer every instance that is received, until the association is given back.

        Args:
            answer: whether the association is not wanted back after this instance.

        Returns:
            With what it was given back; None where the process is gone.
        """
        wanted_back = False
        while (message := self._channel.receive()) is not None and message.said["kind"] != "back":
            if not answer(message) and not wanted_back:
                wanted_back = True
                with suppress(ConnectionError):  # `receive` tells of it
                    self._channel.send({})
        return message

    def close(self) -> None:
        self._channel.close()


class ReceiverPool:
    """Receivers, each for one association at a time. One whose process is gone is not replaced: the associations that
    find none free are received by the listener's own process."""

    def __init__(self, settings: Settings, *, start_method: Literal["fork", "spawn"] = "fork") -> None:
        """Start as many as the settings say. Forked, they are there at once and share the listener's memory as it is
        now; so there must be no other thread yet, and nothing open that is not to be theirs."""
        self._lock = threading.Lock()
        context = _CONTEXTS[start_method]()
        ours: list[socket.socket] = []
        self.processes = []
        for number in range(settings.dicom_receivers):
            own, theirs = socket.socketpair()
            ours.append(own)
            others = ours if start_method == "fork" else []
            process = context.Process(
                target=_run, args=(theirs, others, settings, os.getpid()), name=f"receiver-{number}"
            )
            process.start()
            theirs.close()
            self.processes.append(process)
        self._all = [Receiver(Channel(one)) for one in ours]
        self._free = list(self._all)

    def take(self) -> Receiver | None:
        """One that is free, to be given back or lost."""
        with self._lock:
            return self._free.pop() if self._free else None

    def give_back(self, receiver: Receiver) -> None:
        with self._lock:
            self._free.append(receiver)

    def lose(self, receiver: Receiver) -> None:
        """Its process is gone, or cannot be talked to any more; then it ends."""
        log.error("a process that receives instances is gone; the listener goes on without it")
        receiver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._all:
            one.close()
        for process in self.processes:
            process.join()


def _run(connection: socket.socket, others: list[socket.socket], settings: Settings, parent_pid: int) -> None:
    for one in others:  # held open here, they would hide from another receiver that the listener has closed them
        one.close()
    run_receiver(connection, settings, parent_pid)
