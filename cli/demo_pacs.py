"""The demo's PACS: a Storage SCP on loopback that keeps what it is sent."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from services.embedded_redis import free_port

AE_TITLE = "DEMOPACS"
_SUCCESS = 0x0000  # PS3.4 Table B.2-1


class DemoPacs:
    """Listens between `__enter__` and `__exit__`; every object lies in `directory` as ``<SOP Instance UID>.dcm``."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()

    def __enter__(self) -> Self:
        acceptor = AE(AE_TITLE)
        acceptor.supported_contexts = AllStoragePresentationContexts
        acceptor.add_supported_context(Verification)
        server = acceptor.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)]
        )
        assert server is not None  # None is what a blocking server answers
        self._server = server
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()

    def received(self) -> list[Path]:
        return sorted(self.directory.glob("*.dcm"))

    def _keep(self, event: Any) -> int:
        final = self.directory / f"{event.request.AffectedSOPInstanceUID}.dcm"
        arriving = final.with_suffix(".arriving")
        arriving.write_bytes(event.encoded_dataset())
        arriving.replace(final)
        return _SUCCESS
