"""The application entity that opens associations: pynetdicom's, which gets every answer that it waits for."""

from __future__ import annotations

from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE


class Requestor(AE):
    """An AE whose associations keep the peer's answers for whoever asked.

    The thread of an association looks for requests of the peer, and pauses while a `send_*` waits for an answer. In
    pynetdicom 3 it may have passed the pause already, and take an answer that comes at once for such a request; the
    sender then waits until its DIMSE timeout. Nor does it read a rejection that came, and closed the connection, before
    it looked whether there is one.
    """

    def associate(self, *args: Any, **kwargs: Any) -> Association:
        """As `AE.associate`."""
        association = super().associate(*args, **kwargs)
        if not association.is_established and not association.is_rejected:
            _read_rejection(association)
        take = association.dimse.get_msg

        def take_for_whom_it_is_for(block: bool = False) -> Any:
            return take(block) if block or association._reactor_checkpoint.is_set() else (None, None)

        association.dimse.get_msg = take_for_whom_it_is_for  # type: ignore[method-assign]
        return association


def _read_rejection(association: Association) -> None:
    answer = association.dul.receive_pdu()
    if isinstance(answer, A_ASSOCIATE) and answer.result:
        association.acceptor.primitive = answer
        association.is_aborted, association.is_rejected = False, True
