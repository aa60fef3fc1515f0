"""SIGTERM of gateway and listener in the middle of what they take in."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from pydicom import dcmread
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from services.requestor import Requestor
from tests.faults.conftest import MakeStudies
from tests.faults.invariants import check
from tests.faults.pacs import CountingPacs
from tests.faults.studies import push
from tests.faults.system import System

pytestmark = pytest.mark.timeout(120)


@pytest.mark.fault(
    "processes",
    "SIGTERM of the gateway in the middle of an upload",
    "the upload is finished and accepted, the process ends with 0; its job takes its way",
)
def test_a_gateway_told_to_end_finishes_the_upload(
    system: System, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    (study,) = make_studies(1)
    form = httpx.Request("POST", system.url, files=[("files", (file.name, file.read_bytes())) for file in study.files])
    body = form.read()
    ended: list[int] = []
    end = threading.Thread(target=lambda: ended.append(system.put_down("gateway", signal.SIGTERM)))

    def in_two_halves() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        end.start()
        time.sleep(1.0)
        yield body[len(body) // 2 :]

    headers = {"Content-Type": form.headers["Content-Type"], "Content-Length": str(len(body))}
    answer = system.http.post("/segment", content=in_two_halves(), headers=headers, timeout=30)
    end.join()

    assert answer.status_code == 202
    assert ended == [0]
    system.start("gateway")
    study.job_id = answer.json()["id"]
    check(system, pacs, [study])


@pytest.mark.fault(
    "processes",
    "SIGTERM of the listener while it is storing an instance",
    "that instance is answered with Success, the association is aborted after it, the process ends with 0; the rest, "
    "sent again, joins it in one job",
)
def test_a_listener_told_to_end_answers_the_instance_in_hand(
    system: System, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    (study,) = make_studies(1)
    ae = Requestor(ae_title="CT1")
    ae.add_requested_context(CTImageStorage)
    association = ae.associate("127.0.0.1", system.dicom_port, ae_title="EMBOLENS")
    holder = sqlite3.connect(system.data_dir / "embolens.sqlite", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")  # the first instance of a series waits for its job
    ended: list[int] = []
    end = threading.Thread(target=lambda: ended.append(system.put_down("listener", signal.SIGTERM)))

    def end_and_release() -> None:
        time.sleep(0.5)
        end.start()
        time.sleep(1.0)
        holder.execute("ROLLBACK")

    threading.Thread(target=end_and_release).start()
    status = association.send_c_store(dcmread(study.files[0])).get("Status")
    end.join()
    holder.close()

    assert status == 0x0000
    assert ended == [0]
    assert association.is_aborted
    study.acknowledged.add(study.sop_instance_uids[0])
    system.start("listener")
    push(study, system.dicom_port)
    check(system, pacs, [study])
