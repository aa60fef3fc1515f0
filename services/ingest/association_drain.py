"""Ending a listener's associations: each one answers the instance it has in hand, and is aborted after that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.pdu import P_DATA_TF

_LOOK_EVERY_S = 0.05


class AssociationDrain:
    """Knows which associations are in the middle of a message. Its `handlers` go to the server."""

    def __init__(self) -> None:
        self.handlers: list[evt.EventHandlerType] = [
            (evt.EVT_PDU_RECV, self._received),
            (evt.EVT_PDU_SENT, self._sent),
            (evt.EVT_CONN_CLOSE, self._broke_off),
        ]
        self._in_hand: set[Association] = set()
        self._lock = threading.Lock()
        self._ending = False

    def end(self, associations: Iterable[Association], *, within_s: float) -> None:
        """Abort those that have nothing in hand, and wait for the others to answer and be aborted.

        What a sender was told nothing about, it sends again. Call when no new association can be opened any more.
        """
        with self._lock:
            self._ending = True
            in_hand = set(self._in_hand)
        for association in associations:
            if association not in in_hand:
                association.abort()
        deadline = time.monotonic() + within_s
        while any(association.is_alive() for association in in_hand) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)

    @property
    def is_ending(self) -> bool:
        """Whether an association that has answered is aborted."""
        return self._ending

    def begin(self, association: Association) -> None:
        """A part of a message has come."""
        with self._lock:
            if association not in self._in_hand:
                self._in_hand.difference_update([one for one in self._in_hand if not one.is_alive()])
                self._in_hand.add(association)

    def answered(self, association: Association) -> None:
        with self._lock:
            self._in_hand.discard(association)
            ending = self._ending
        if ending:
            association.abort(block=False)

    def _received(self, event: Event) -> None:
        if isinstance(event.pdu, P_DATA_TF):
            self.begin(event.assoc)

    def _sent(self, event: Event) -> None:
        if isinstance(event.pdu, P_DATA_TF):
            self.answered(event.assoc)

    def _broke_off(self, event: Event) -> None:
        with self._lock:
            self._in_hand.discard(event.assoc)
