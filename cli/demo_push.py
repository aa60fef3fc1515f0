"""Pushing a series as a PACS does: over several associations at once, the slices interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from imaging.errors import DeliveryError
from services.requestor import Requestor

_ASSOCIATIONS = 2


def push_series(
    files: Sequence[Path],
    *,
    host: str,
    port: int,
    called_ae_title: str,
    calling_ae_title: str,
    on_sent: Callable[[], None],
) -> None:
    """C-STORE every file. `on_sent` is called after each, from the sending threads.

    Raises:
        DeliveryError: an association or an instance was not accepted.
    """

    def send_share(share: Sequence[Path]) -> None:
        requestor = Requestor(calling_ae_title)
        requestor.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        association = requestor.associate(host, port, ae_title=called_ae_title)
        if not association.is_established:
            raise DeliveryError(f"{called_ae_title} at {host}:{port} accepts no association", code="demo.push")
        try:
            for file in share:
                status = association.send_c_store(file)
                if status.get("Status") != 0x0000:
                    raise DeliveryError(f"{file.name} was answered with {status.get('Status')}", code="demo.push")
                on_sent()
        finally:
            association.release()

    with ThreadPoolExecutor(_ASSOCIATIONS) as senders:
        shares = [files[start::_ASSOCIATIONS] for start in range(_ASSOCIATIONS)]
        for sent in [senders.submit(send_share, share) for share in shares]:
            sent.result()
