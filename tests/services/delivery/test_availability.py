"""A node is told what another one has. Its SCP is pynetdicom's: no program of Debian's takes these notifications."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import InstanceAvailabilityNotification

from services.delivery.relay import Relay
from services.settings import Settings
from services.store.jobs import Delivery, JobStore, Notification
from services.store.outbox import Outbox
from services.store.study_store import StudyStore
from tests.services.delivery.peers import StoreScp, result_object, wait_until, write_destinations

FINDINGS = {"outcome": "no_embolus", "reasons": []}
MESSAGE_ID = "6f1f7a52-5a3e-4b2f-9a44-2c1de28f1f0e"


class InformationSystem:
    def __init__(self) -> None:
        self.told: list[tuple[str, Dataset]] = []
        self.status = 0x0000
        ae = AE("RIS")
        ae.add_supported_context(InstanceAvailabilityNotification)
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_CREATE, self._take)])
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        self._server.shutdown()

    def _take(self, event: Event) -> tuple[int, None]:
        self.told.append((str(event.request.AffectedSOPInstanceUID), event.attribute_list))
        return self.status, None


@pytest.fixture
def ris() -> Iterator[InformationSystem]:
    ris = InformationSystem()
    yield ris
    ris.stop()


def test_a_node_is_told_once_the_archive_has_everything(
    relay: Relay,
    settings: Settings,
    outbox: Outbox,
    jobs: JobStore,
    store: StudyStore,
    store_scp: StoreScp,
    ris: InformationSystem,
) -> None:
    write_destinations(
        settings,
        store_scp.toml()
        + 'announce_to = ["RIS"]\n'
        + f'[[nodes]]\nae_title = "RIS"\nhost = "127.0.0.1"\nport = {ris.port}\n',
    )
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "worker", lease_s=60)
    directory = store.result_directory(job.id)
    directory.mkdir(parents=True)
    objects = [result_object(directory / name) for name in ("seg.dcm", "sr.dcm")]
    deliveries = [
        Delivery("node:PACS", store.relative(directory / name), one.SOPClassUID, one.SOPInstanceUID)
        for name, one in zip(("seg.dcm", "sr.dcm"), objects, strict=True)
    ]
    told = Notification("availability:RIS", MESSAGE_ID, waits_for="node:PACS")
    jobs.finish(job.id, "worker", findings=FINDINGS, stage_seconds={}, deliveries=[*deliveries, told])

    relay.deliver_due()  # the archive is down
    assert ris.told == []
    store_scp.start()

    def completed() -> bool:
        relay.deliver_due()
        return jobs.get(job.id).state == "completed"

    wait_until(completed)
    ((sop_instance_uid, notification),) = ris.told
    assert sop_instance_uid == f"2.25.{int(MESSAGE_ID.replace('-', ''), 16)}"
    assert notification.StudyInstanceUID == objects[0].StudyInstanceUID
    items = [item for series in notification.ReferencedSeriesSequence for item in series.ReferencedSOPSequence]
    assert {item.ReferencedSOPInstanceUID for item in items} == {one.SOPInstanceUID for one in objects}
    assert {(item.InstanceAvailability, item.RetrieveAETitle) for item in items} == {("ONLINE", "PACS")}
    assert {row.destination: row.state for row in outbox.of_job(job.id)} == {
        "node:PACS": "delivered",
        "availability:RIS": "delivered",
    }


@pytest.mark.parametrize(("status", "state"), [(0x0110, "pending"), (0x0111, "delivered")])
def test_what_the_node_answers_decides(
    relay: Relay,
    settings: Settings,
    outbox: Outbox,
    jobs: JobStore,
    store: StudyStore,
    ris: InformationSystem,
    status: int,
    state: str,
) -> None:
    ris.status = status
    write_destinations(settings, f'[[nodes]]\nae_title = "RIS"\nhost = "127.0.0.1"\nport = {ris.port}\n')
    job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="CT1")
    jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
    jobs.claim(job.id, "worker", lease_s=60)
    directory = store.result_directory(job.id)
    directory.mkdir(parents=True)
    one = result_object(directory / "seg.dcm")
    deliveries = [
        Delivery("folder:x", store.relative(directory / "seg.dcm"), one.SOPClassUID, one.SOPInstanceUID),
        Notification("availability:RIS", MESSAGE_ID, waits_for="folder:x"),
    ]
    jobs.finish(job.id, "worker", findings=FINDINGS, stage_seconds={}, deliveries=deliveries)
    (row,) = outbox.claim_due(limit=5, lease_s=60)
    outbox.delivered(row)
    relay.deliver_due()
    assert [row.state for row in outbox.of_job(job.id)] == ["delivered", state]
