"""What a listener gives to its associations, so that plain C-STOREs need not go through pynetdicom's layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from pydicom.uid import UID
from pynetdicom.association import Association

from services.ingest.receiver import WrittenInstance
from services.ingest.receiver_pool import ReceiverPool
from services.ingest.store_reader import RESPONSE_MAX_BYTES, TAKEN_AT_ONCE, ReceivedInstance, StoreAnswer


class InHand(Protocol):
    """Is told when an association begins and ends a message."""

    @property
    def is_ending(self) -> bool:
        """Whether an association that ends one is aborted."""

    def begin(self, association: Association) -> None: ...

    def answered(self, association: Association) -> None: ...


@dataclass(frozen=True, slots=True)
class StoreShortcut:
    """Who answers a C-STORE that does not go through pynetdicom, and who wants to know of it.

    Attributes:
        answer: one that was received by this process.
        answer_written: one whose file a process of `receivers` has written.
        receivers: None where this process receives everything.
    """

    answer: Callable[[Association, ReceivedInstance], StoreAnswer]
    answer_written: Callable[[Association, WrittenInstance], StoreAnswer]
    in_hand: InHand
    receivers: ReceiverPool | None = None


class AssociatedSender:
    """The association, for what reads C-STOREs off it."""

    def __init__(self, association: Association, in_hand: InHand) -> None:
        self._association = association
        self._in_hand = in_hand

    @property
    def is_established(self) -> bool:
        return self._association.is_established

    @cached_property
    def syntaxes(self) -> dict[int, UID]:
        """Transfer syntaxes of the presentation contexts on which plain C-STOREs of CT are taken; known from when the
        association is established."""
        longest = self._association.requestor.maximum_length or 0  # no limit
        if self._association.acceptor.accepted_common_extended or 0 < longest < RESPONSE_MAX_BYTES:
            return {}
        return {
            context_id: context.transfer_syntax[0]
            for context_id, context in self._association._accepted_cx.items()
            if context.abstract_syntax in TAKEN_AT_ONCE
        }

    def transfer_syntax(self, context_id: int) -> UID | None:
        return self.syntaxes.get(context_id)

    def begin(self) -> None:
        self._in_hand.begin(self._association)

    def answered(self) -> None:
        self._in_hand.answered(self._association)
