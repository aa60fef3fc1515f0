"""An answer that comes at once is not lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is loaded
from pynetdicom.transport import AssociationSocket

from services.requestor import Requestor
from tests.services.ingest.peers import wait_until


class LatePause(threading.Event):
    """Where pynetdicom's loop pauses: it has passed it, once, and goes on only when the answer is there."""

    def __init__(self, association: Association) -> None:
        super().__init__()
        self.set()
        self.is_passed = threading.Event()
        self._messages: Any = association.dimse.msg_queue

    def wait(self, timeout: float | None = None) -> bool:
        passed = super().wait(timeout)
        if not self.is_passed.is_set():
            self.is_passed.set()
            wait_until(lambda: not self._messages.empty())
        return passed


@pytest.mark.parametrize(("entity", "is_answered"), [(AE, False), (Requestor, True)])
def test_an_answer_that_comes_before_the_loop_has_paused_is_the_senders(entity: type[AE], is_answered: bool) -> None:
    acceptor = AE()
    acceptor.add_supported_context(Verification)
    server = acceptor.start_server(("127.0.0.1", 0), block=False)
    requestor = entity()
    requestor.dimse_timeout = 1
    requestor.add_requested_context(Verification)
    association = requestor.associate("127.0.0.1", server.server_address[1])
    pause = LatePause(association)
    read, has_looked = association.dimse.get_msg, threading.Event()

    def read_after_the_loop(block: bool = False) -> Any:
        if block:
            has_looked.wait(5)
            return read(True)
        taken = read(False)
        if pause.is_passed.is_set():
            has_looked.set()
        return taken

    association.dimse.get_msg = read_after_the_loop  # type: ignore[method-assign]
    try:
        association._reactor_checkpoint = pause
        assert pause.is_passed.wait(5)
        assert bool(association.send_c_echo()) is is_answered
    finally:
        association.abort()
        server.shutdown()


@pytest.mark.parametrize(("entity", "is_read"), [(AE, False), (Requestor, True)])
def test_a_rejection_that_comes_before_it_is_waited_for_is_read(
    entity: type[AE], is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LateLook(threading.Event):
        """pynetdicom looks for a connection only when the rejection has closed it."""

        def __init__(self, transport: AssociationSocket) -> None:
            super().__init__()
            self._transport = transport

        def wait(self, timeout: float | None = None) -> bool:
            is_set = super().wait(timeout)
            wait_until(lambda: not self._transport._is_connected)
            return is_set

    create = AE._create_socket

    def with_late_look(self: AE, *arguments: Any) -> AssociationSocket:
        transport = create(self, *arguments)
        transport._ready = LateLook(transport)
        return transport

    monkeypatch.setattr(AE, "_create_socket", with_late_look)
    acceptor = AE()
    acceptor.add_supported_context(Verification)
    acceptor.require_calling_aet = ["KNOWN"]
    server = acceptor.start_server(("127.0.0.1", 0), block=False)
    requestor = entity()
    requestor.add_requested_context(Verification)
    try:
        association = requestor.associate("127.0.0.1", server.server_address[1])
        assert not association.is_established
        assert association.is_rejected is is_read
        if is_read:
            assert association.acceptor.primitive is not None
            assert association.acceptor.primitive.reason_str == "Calling AE title not recognised"
    finally:
        server.shutdown()
