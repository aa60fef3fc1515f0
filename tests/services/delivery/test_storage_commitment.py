"""An archive says whether it keeps what it took, on the association of the request or on one of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from sqlalchemy import update

from services.delivery.relay import Relay
from services.delivery.storage_commitment import CommitmentReports
from services.ingest.intake_rules import IntakeRules
from services.ingest.store_scp import Listener
from services.requestor import Requestor
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore, utc_now
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.rows import JobRow, OutboxRow
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from tests.end_to_end.hospital import Orthanc
from tests.services.delivery.peers import only_row, wait_until, write_destinations
from tests.services.ingest.peers import EVERYBODY

MakeJob = Callable[..., JobRow]
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


class ReportWait:
    """How long a report is waited for on the association of the request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.set(30.0)  # for reports that come, on however busy a machine

    def set(self, seconds: float) -> None:
        self._monkeypatch.setattr("services.delivery.storage_commitment._REPORT_WAIT_S", seconds)


@pytest.fixture(autouse=True)
def report_wait(monkeypatch: pytest.MonkeyPatch) -> ReportWait:
    return ReportWait(monkeypatch)


@pytest.fixture
def listener(
    settings: Settings, database: Database, store: StudyStore, jobs: JobStore, outbox: Outbox, listener_port: int
) -> Iterator[Listener]:
    settings = settings.model_copy(update={"dicom_port": listener_port})
    queue = TaskQueue(settings.redis_url)
    reports = CommitmentReports(outbox, settings)
    rules = IntakeRules(associations=EVERYBODY)
    listener = Listener(settings, store, jobs, queue, rules, RetrievalStore(database), reports)
    listener.start()
    yield listener
    listener.stop()
    queue.close()


def table(port: int, ae_title: str = "PACS", **more: object) -> str:
    lines = [f"{name} = {value}" for name, value in more.items()]
    return "\n".join(
        [f'[[nodes]]\nae_title = "{ae_title}"\nhost = "127.0.0.1"\nport = {port}\ncommitment = true', *lines]
    )


def test_an_archive_commits_on_an_association_of_its_own(
    report_wait: ReportWait,
    relay: Relay,
    settings: Settings,
    outbox: Outbox,
    jobs: JobStore,
    finished_job: MakeJob,
    orthanc: Orthanc,
    listener: Listener,
) -> None:
    report_wait.set(0.2)
    write_destinations(settings, table(orthanc.dicom_port, "ORTHANC"))
    job = finished_job("node:ORTHANC")
    relay.deliver_due()
    wait_until(lambda: only_row(outbox, job).state == "delivered")
    row = only_row(outbox, job)
    assert row.committed_at is not None
    assert row.last_error is None
    assert jobs.get(job.id).state == "completed"


def test_what_the_archive_lost_is_sent_again(
    report_wait: ReportWait,
    relay: Relay,
    settings: Settings,
    outbox: Outbox,
    jobs: JobStore,
    finished_job: MakeJob,
    orthanc: Orthanc,
    listener: Listener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    report_wait.set(0.2)
    write_destinations(settings, table(orthanc.dicom_port, "ORTHANC"))
    job = finished_job("node:ORTHANC")
    (row,) = outbox.claim_due(limit=5, lease_s=0)
    outbox.stored(row)  # as if the archive had taken it and lost it since

    def committed() -> bool:
        relay.deliver_due()
        return only_row(outbox, job).committed_at is not None

    wait_until(committed)
    assert "ORTHANC does not commit to keeping the object (0x0112)" in caplog.text
    assert jobs.get(job.id).state == "completed"
    assert orthanc.http.post("/tools/lookup", content=row.sop_instance_uid or "").json()


class Archive:
    """An SCP of storage commitment that reports on the association of the request, as Orthanc does not."""

    def __init__(self, *, with_commitment: bool = True) -> None:
        self.requests: list[Dataset] = []
        self.report: Callable[[Dataset], Dataset | None] = everything
        self.answer = 0x0000
        self.answered: list[int] = []
        self._reporting: list[threading.Thread] = []
        ae = AE("PACS")
        ae.add_supported_context(SEGMENTATION)
        if with_commitment:
            ae.add_supported_context(StorageCommitmentPushModel)
        handlers = [
            (evt.EVT_C_STORE, lambda event: 0x0000),
            (evt.EVT_N_ACTION, self._take),
            (evt.EVT_PDU_SENT, self._report_once_answered),
        ]
        self._server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]
        self._to_report: Dataset | None = None

    def stop(self) -> None:
        for thread in self._reporting:
            thread.join()
        self._server.shutdown()

    def _take(self, event: Event) -> tuple[int, None]:
        self.requests.append(event.action_information)
        self._to_report = self.report(self.requests[-1]) if self.answer == 0x0000 else None
        return self.answer, None

    def _report_once_answered(self, event: Event) -> None:
        report, self._to_report = self._to_report, None
        if report is not None:
            self._reporting.append(threading.Thread(target=self._send, args=(event.assoc, report)))
            self._reporting[-1].start()

    def _send(self, association: Association, report: Dataset) -> None:
        kind = 2 if "FailedSOPSequence" in report else 1
        instance = StorageCommitmentPushModelInstance
        status, _ = association.send_n_event_report(report, kind, StorageCommitmentPushModel, instance)
        self.answered.append(status.get("Status", -1))


def everything(request: Dataset) -> Dataset:
    report = Dataset()
    report.TransactionUID = request.TransactionUID
    report.ReferencedSOPSequence = request.ReferencedSOPSequence
    return report


def of_no_transaction(request: Dataset) -> Dataset:
    report = everything(request)
    del report.TransactionUID
    return report


def of_another_transaction(request: Dataset) -> Dataset:
    report = everything(request)
    report.TransactionUID = "1.2.3"
    return report


@pytest.fixture
def archive() -> Iterator[Archive]:
    archive = Archive()
    yield archive
    archive.stop()


def test_an_archive_commits_on_the_association_of_the_request(
    relay: Relay, settings: Settings, outbox: Outbox, jobs: JobStore, finished_job: MakeJob, archive: Archive
) -> None:
    write_destinations(settings, table(archive.port))
    made = [finished_job("node:PACS") for _ in range(2)]
    relay.deliver_due()
    for job in made:
        assert only_row(outbox, job).committed_at is not None
        assert jobs.get(job.id).state == "completed"
    asked = [[item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence] for request in archive.requests]
    assert sorted(asked) == sorted([only_row(outbox, job).sop_instance_uid] for job in made)
    assert archive.answered == [0x0000, 0x0000]


def test_without_a_report_the_job_waits_and_the_archive_is_asked_again(
    report_wait: ReportWait,
    relay: Relay, settings: Settings, outbox: Outbox, jobs: JobStore, finished_job: MakeJob, archive: Archive,
) -> None:  # fmt: skip
    report_wait.set(0.2)
    write_destinations(settings, table(archive.port, commitment_limit_s=0.6))
    archive.report = lambda request: None
    job = finished_job("node:PACS")
    relay.deliver_due()
    row = only_row(outbox, job)
    assert (row.state, row.committed_at, jobs.get(job.id).state) == ("stored", None, "delivering")

    def asked_again() -> bool:
        relay.deliver_due()
        return len(archive.requests) >= 2

    wait_until(asked_again)
    row = only_row(outbox, job)
    assert row.last_error == "PACS did not report on storage commitment, and was asked again"
    archive.report = everything
    report_wait.set(30.0)

    def committed() -> bool:
        relay.deliver_due()
        return only_row(outbox, job).committed_at is not None

    wait_until(committed)
    assert len({request.TransactionUID for request in archive.requests}) == len(archive.requests)
    assert only_row(outbox, job).last_error is None


def test_an_archive_that_never_reports_leaves_its_objects_parked_until_a_retry(
    report_wait: ReportWait,
    settings: Settings, outbox: Outbox, store: StudyStore, jobs: JobStore, finished_job: MakeJob, archive: Archive,
    database: Database,
) -> None:  # fmt: skip
    report_wait.set(0.2)
    relay = Relay(settings.model_copy(update={"delivery_park_after_s": 0.0}), outbox, store)
    write_destinations(settings, table(archive.port))
    archive.report = lambda request: None
    job = finished_job("node:PACS")
    relay.deliver_due()
    with database.write() as session:
        session.execute(update(OutboxRow).values(attempts=20, next_attempt_at=utc_now()))
    relay.deliver_due()
    assert only_row(outbox, job).state == "parked"
    archive.report = everything
    report_wait.set(30.0)
    jobs.retry(job.id)
    relay.deliver_due()
    assert only_row(outbox, job).committed_at is not None
    relay.stop()


@pytest.mark.parametrize(("report", "status"), [(of_another_transaction, 0x0115), (of_no_transaction, 0x0110)])
def test_a_report_on_something_else_changes_nothing(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, archive: Archive,
    report: Callable[[Dataset], Dataset], status: int,
) -> None:  # fmt: skip
    write_destinations(settings, table(archive.port))
    archive.report = report
    job = finished_job("node:PACS")
    relay.deliver_due()
    assert only_row(outbox, job).state == "stored"
    assert archive.answered == [status]


def test_a_report_by_another_node_changes_nothing(
    report_wait: ReportWait,
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, archive: Archive, listener: Listener,
) -> None:  # fmt: skip
    report_wait.set(0.2)
    write_destinations(settings, table(archive.port))
    archive.report = lambda request: None
    job = finished_job("node:PACS")
    relay.deliver_due()
    answers = {}
    for ae_title in ("STRANGER", "PACS"):
        ae = Requestor(ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = ae.associate("127.0.0.1", listener.port, ext_neg=[role])
        status, _ = association.send_n_event_report(
            everything(archive.requests[0]), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        answers[ae_title] = (status.Status, only_row(outbox, job).state)
        association.release()
    assert answers == {"STRANGER": (0x0115, "stored"), "PACS": (0x0000, "delivered")}


def test_a_node_that_refuses_the_request_is_asked_later(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob, archive: Archive
) -> None:
    write_destinations(settings, table(archive.port))
    archive.answer = 0x0110
    job = finished_job("node:PACS")
    relay.deliver_due()
    row = only_row(outbox, job)
    assert row.state == "stored"
    assert "refused the request for storage commitment (0x0110)" in (row.last_error or "")


def test_a_node_without_storage_commitment_leaves_the_object_stored_and_says_why(
    relay: Relay, settings: Settings, outbox: Outbox, finished_job: MakeJob
) -> None:
    archive = Archive(with_commitment=False)
    write_destinations(settings, table(archive.port))
    job = finished_job("node:PACS")
    relay.deliver_due()
    archive.stop()
    row = only_row(outbox, job)
    assert row.state == "stored"
    assert row.last_error == "PACS does not take: Storage Commitment Push Model SOP Class"


def test_a_node_that_is_no_longer_to_commit_has_delivered(
    relay: Relay, settings: Settings, outbox: Outbox, jobs: JobStore, finished_job: MakeJob, archive: Archive
) -> None:
    job = finished_job("node:PACS")
    (row,) = outbox.claim_due(limit=5, lease_s=0)
    outbox.stored(row)
    write_destinations(settings, table(archive.port).replace("commitment = true", ""))
    relay.deliver_due()
    row = only_row(outbox, job)
    assert (row.state, row.committed_at, jobs.get(job.id).state) == ("delivered", None, "completed")
    assert archive.requests == []
