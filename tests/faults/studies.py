"""Small studies, and senders that do not give up: what is not acknowledged is sent again, as a PACS does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.file_meta import mapped, read_file_meta
from services.requestor import Requestor
from tests.services.dicom.made_series import axial_affine
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU

_PAUSE_S = 0.5  # before what failed is tried again
_GIVE_UP_S = 150.0
_DIMSE_TIMEOUT_S = 45.0


@dataclass(eq=False)
class Study:
    """One series of one study. `acknowledged` and `job_id` are what the sender has been told."""

    study_instance_uid: str
    series_instance_uid: str
    files: Sequence[Path]
    sop_instance_uids: Sequence[str]
    acknowledged: set[str] = field(default_factory=set)
    job_id: str | None = None
    statuses: list[int] = field(default_factory=list)

    def data_sets(self) -> dict[str, bytes]:
        """By SOP Instance UID: what was sent, without file meta."""
        return {uid: data_set_of(file) for uid, file in zip(self.sop_instance_uids, self.files, strict=True)}


def data_set_of(file: Path) -> bytes:
    content = mapped(file)
    return bytes(content[read_file_meta(content).data_set_begin :])


def make_study(directory: Path, number: int, *, slices: int = 24) -> Study:
    """An artery along x with a clot of 4x4x4 voxels, in noise of which no two studies have the same."""
    hu = np.random.default_rng(number).integers(-850, -750, (slices, 64, 64), dtype=np.int16)
    hu[8:16, 24:32, 6:58] = LUMEN_HU
    hu[10:14, 26:30, 30:34] = CLOT_HU
    study_uid, series_uid = generate_uid(prefix=None), generate_uid(prefix=None)
    files = write_ct_series(
        CtVolume(hu, axial_affine((1.0, 1.0, 1.0))),
        directory / str(number),
        patient_id=f"FAULT-{number}",
        patient_name=f"Fault^{number}",
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
    )
    uids = [str(dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for file in files]
    return Study(study_uid, series_uid, files, uids)


def push(study: Study, dicom_port: int, *, slice_pause_s: float = 0.0, give_up_s: float = _GIVE_UP_S) -> None:
    """C-STORE until every instance is acknowledged; the statuses that were no Success are kept in the study."""
    deadline = time.monotonic() + give_up_s
    while len(study.acknowledged) < len(study.files):
        assert time.monotonic() < deadline, f"{len(study.acknowledged)} of {len(study.files)} acknowledged"
        if not _push_the_rest(study, dicom_port, slice_pause_s):
            time.sleep(_PAUSE_S)


def _push_the_rest(study: Study, dicom_port: int, slice_pause_s: float) -> bool:
    ae = Requestor(ae_title="CT1")
    ae.dimse_timeout, ae.acse_timeout, ae.network_timeout, ae.connection_timeout = _DIMSE_TIMEOUT_S, 5, 60, 5
    ae.add_requested_context(CTImageStorage)
    association = ae.associate("127.0.0.1", dicom_port, ae_title="EMBOLENS")
    if not association.is_established:
        return False
    for uid, file in zip(study.sop_instance_uids, study.files, strict=True):
        if uid in study.acknowledged:
            continue
        if not association.is_established:
            return False
        try:
            status = association.send_c_store(dcmread(file)).get("Status")
        except (RuntimeError, ValueError):  # the association ended between the question above and the request
            return False
        if status == 0x0000:
            study.acknowledged.add(uid)
        elif status is not None:
            study.statuses.append(int(status))
        time.sleep(slice_pause_s)
    association.release()
    return len(study.acknowledged) == len(study.files)


def upload(study: Study, http: httpx.Client, *, give_up_s: float = _GIVE_UP_S) -> None:
    """POST /segment with one Idempotency-Key until it is accepted; the statuses before that are kept in the study."""
    deadline = time.monotonic() + give_up_s
    parts = [("files", (file.name, file.read_bytes())) for file in study.files]
    while study.job_id is None:
        assert time.monotonic() < deadline, f"not accepted: {study.statuses}"
        try:
            answer = http.post("/segment", files=parts, headers={"Idempotency-Key": study.study_instance_uid})
        except httpx.TransportError:
            time.sleep(_PAUSE_S)
            continue
        if answer.status_code in (200, 202):  # 200: it was taken in before the gateway was killed, and has ended
            study.job_id = answer.json()["id"]
        else:
            assert answer.status_code != 503 or "Retry-After" in answer.headers
            study.statuses.append(answer.status_code)
            time.sleep(_PAUSE_S)


def store_over_http(study: Study, http: httpx.Client, *, give_up_s: float = _GIVE_UP_S) -> None:
    """STOW-RS until every instance is acknowledged; the statuses before that are kept in the study."""
    deadline = time.monotonic() + give_up_s
    head = b"--part\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(head + file.read_bytes() + b"\r\n" for file in study.files) + b"--part--\r\n"
    headers = {
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=part',
        "Accept": "application/dicom+json",
    }
    while len(study.acknowledged) < len(study.files):
        assert time.monotonic() < deadline, f"not accepted: {study.statuses}"
        try:
            answer = http.post("/dicom-web/studies", content=body, headers=headers)
        except httpx.TransportError:
            time.sleep(_PAUSE_S)
            continue
        if answer.status_code == 200:
            study.acknowledged |= {item["00081155"]["Value"][0] for item in answer.json()["00081199"]["Value"]}
        else:
            study.statuses.append(answer.status_code)
            time.sleep(_PAUSE_S)


class Senders:
    """Threads that send; `finish` waits for all of them and raises what one of them raised."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def begin(self, send: Callable[..., None], *arguments: object, after_s: float = 0.0, **options: object) -> None:
        def run() -> None:
            time.sleep(after_s)
            try:
                send(*arguments, **options)
            except BaseException as error:  # noqa: BLE001  raised again where it is waited for
                self._errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def finish(self, timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a sender does not come to an end"
        for error in self._errors:
            raise error
