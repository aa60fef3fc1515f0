"""Destinations that fail in every way a PACS knows: nothing is dropped, nobody else held up, all of it visible."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.events import Event
from pynetdicom.pdu import A_ABORT_RQ
from sqlalchemy import select

from services.delivery import association
from services.delivery import relay as relay_process
from services.delivery.relay import Relay
from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import Delivery, JobStore, Notification, utc_now
from services.store.outbox import Outbox
from services.store.rows import JobRow, OutboxRow
from services.store.study_store import StudyStore
from tests.api.conftest import findings_with, serving
from tests.end_to_end.hospital import running_orthanc, wait_for
from tests.services.delivery.peers import StoreScp, only_row, result_object, wait_until, write_destinations
from tests.services.delivery.test_storage_commitment import Archive, table

REPOSITORY = Path(__file__).resolve().parents[2]
TAKEN = {0x0000, 0xB000, 0xB006, 0xB007}


@dataclass
class Site:
    """A data directory, its relay, and jobs that have ended."""

    settings: Settings
    database: Database
    relays: list[Relay] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.jobs = JobStore(self.database)
        self.outbox = Outbox(self.database)
        self.store = StudyStore(self.settings.data_dir)

    def relay(self, **changes: object) -> Relay:
        self.relays.append(Relay(self.settings.model_copy(update=changes), self.outbox, self.store))
        return self.relays[-1]

    def finished_job(self, *destinations: str, objects: int = 1) -> JobRow:
        """With so many SEGs for each of the nodes, services and folders, and a notification for every other."""
        job = self.jobs.open_receiving(study_instance_uid="1.2", series_instance_uid=generate_uid())
        self.jobs.complete_intake(job.id, inputs_digest="d", instance_count=1, completion_reason="test")
        assert self.jobs.claim(job.id, "worker", lease_s=60) is not None
        directory = self.store.result_directory(job.id)
        directory.mkdir(parents=True)
        deliveries: list[Delivery | Notification] = []
        for number in range(objects):
            path = directory / f"{number}.dcm"
            made = result_object(path)
            deliveries += [
                Delivery(to, self.store.relative(path), made.SOPClassUID, made.SOPInstanceUID)
                for to in destinations
                if not to.startswith(("webhook:", "hl7:"))
            ]
        deliveries += [
            Notification(to, f"{number}-{job.id[:30]}", f"MSH|^~\\&|||||||ORU^R01|{number}")
            for number, to in enumerate(destinations)
            if to.startswith(("webhook:", "hl7:"))
        ]
        self.jobs.finish(job.id, "worker", findings=findings_with(0), stage_seconds={}, deliveries=deliveries)
        return self.jobs.get(job.id)

    def let_pass(self, seconds: float | None = None) -> None:
        """As if so much time had passed; None: as much as is left until the next attempt."""
        with self.database.write() as session:
            for row in session.scalars(select(OutboxRow)):
                gone = timedelta(seconds=seconds) if seconds is not None else row.next_attempt_at - utc_now()
                row.next_attempt_at -= gone
                row.created_at -= gone

    def deliver_until_completed(self, relay: Relay, job: JobRow) -> None:
        def completed() -> bool:
            self.let_pass()
            relay.deliver_due()
            return self.jobs.get(job.id).state == "completed"

        wait_until(completed)


@pytest.fixture
def site(tmp_path: Path, redis_url: str, database: Database) -> Iterator[Site]:
    (tmp_path / "destinations.toml").write_text("")
    made = Site(
        Settings(
            data_dir=tmp_path / "data",
            database_url=database.url,
            redis_url=redis_url,
            destinations=tmp_path / "destinations.toml",
            gateway_port=free_port(),
        ),
        database,
    )
    yield made
    for relay in made.relays:
        relay.stop()


@pytest.fixture
def store_scp(tmp_path: Path) -> Iterator[StoreScp]:
    """dcmtk's storescp, not yet running."""
    scp = StoreScp(tmp_path / "pacs", free_port())
    yield scp
    scp.stop()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a silent peer."""
    monkeypatch.setattr(association, "CONNECTION_TIMEOUT_S", 1.0)
    monkeypatch.setattr(association, "REPLY_TIMEOUT_S", 1.0)


def node_toml(port: int) -> str:
    return f'[[nodes]]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {port}\n'


class Pacs:
    """A Storage SCP that answers of every instance what it is told to; `hung` ones it does not answer in time."""

    def __init__(self, port: int = 0) -> None:
        self.statuses: dict[str, int] = {}
        self.comments: dict[str, str] = {}
        self.hung: set[str] = set()
        self.takes_s = 0.0
        self.stored: Counter[str] = Counter()
        self.aborted = threading.Event()
        self._ending = threading.Event()
        ae = AE("PACS")
        ae.add_supported_context(SegmentationStorage)
        self._server = ae.start_server(
            ("127.0.0.1", port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._answer), (evt.EVT_PDU_RECV, self._look)],
        )
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        self._ending.set()
        self._server.shutdown()

    def _look(self, event: Event) -> None:
        if isinstance(event.pdu, A_ABORT_RQ):
            self.aborted.set()

    def _answer(self, event: Event) -> Dataset:
        uid = str(event.request.AffectedSOPInstanceUID)
        self._ending.wait(None if uid in self.hung else self.takes_s)
        answer = Dataset()
        answer.Status = self.statuses.get(uid, 0x0000)
        if uid in self.comments:
            answer.ErrorComment = self.comments[uid]
        if answer.Status in TAKEN:
            self.stored[uid] += 1
        return answer


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    made = Pacs()
    yield made
    made.stop()


@contextmanager
def speaking(speak: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on a port of its own that does this with every connection, then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    speak(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def rejecting(result: int, reason: int) -> Callable[[socket.socket], None]:
    """PS3.8 9.3.4: an A-ASSOCIATE-RJ by the service user."""

    def speak(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(bytes([3, 0, 0, 0, 0, 4, 0, result, 1, reason]))
        connection.recv(1)

    return speak


def half_a_pdu(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(bytes([2, 0, 0, 0, 0, 200, 0, 1]))  # the begin of an A-ASSOCIATE-AC


def no_tls(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"I speak DICOM only\r\n")


def silence(connection: socket.socket) -> None:
    connection.settimeout(10)
    while connection.recv(65536):
        pass


@pytest.mark.fault(
    "delivery",
    "the PACS is down for an hour",
    "tried after 30 s, doubling to 10 min, never dropped; delivered once it is up",
)
def test_an_hour_without_the_pacs(site: Site, store_scp: StoreScp) -> None:
    write_destinations(site.settings, store_scp.toml())
    job = site.finished_job("node:PACS")
    relay = site.relay()  # with the defaults
    waits_s: list[float] = []
    while sum(waits_s) < 3600:
        assert relay.deliver_due() == 1
        row = only_row(site.outbox, job)
        assert (row.state, row.attempts) == ("pending", len(waits_s) + 1)
        assert "no association with PACS" in (row.last_error or "")
        assert row.last_attempt_at is not None
        waits_s.append((row.next_attempt_at - utc_now()).total_seconds())
        assert relay.deliver_due() == 0
        site.let_pass()
    assert waits_s == pytest.approx([30, 60, 120, 240, 480, *[600] * (len(waits_s) - 5)], abs=5)
    store_scp.start()
    relay.deliver_due()
    assert only_row(site.outbox, job).state == "delivered"
    assert len(store_scp.received()) == 1
    assert site.jobs.get(job.id).state == "completed"


@pytest.mark.fault(
    "delivery", "Orthanc hangs (SIGSTOP), goes on, ends and is started again", "both results arrive, each is there once"
)
def test_orthanc_hangs_and_restarts(site: Site, short_waits: None, tmp_path: Path) -> None:
    (tmp_path / "orthanc").mkdir()
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        write_destinations(site.settings, node_toml(orthanc.dicom_port).replace("PACS", "ORTHANC"))
        relay = site.relay()
        first, second = site.finished_job("node:ORTHANC"), None
        orthanc.process.send_signal(signal.SIGSTOP)
        try:
            relay.deliver_due()
        finally:
            orthanc.process.send_signal(signal.SIGCONT)
        assert only_row(site.outbox, first).state == "pending"
        site.deliver_until_completed(relay, first)
        orthanc.process.terminate()
        orthanc.process.wait(timeout=20)
        second = site.finished_job("node:ORTHANC")
        relay.deliver_due()
        assert "no association" in (only_row(site.outbox, second).last_error or "")
        again = subprocess.Popen(
            ["Orthanc", str(tmp_path / "orthanc/orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for("Orthanc answers again", lambda: _listens(orthanc.dicom_port), 30)
            site.deliver_until_completed(relay, second)
            for job in (first, second):
                uid = only_row(site.outbox, job).sop_instance_uid or ""
                assert len(orthanc.http.post("/tools/lookup", content=uid).json()) == 1
        finally:
            again.terminate()
            again.wait(timeout=20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.fault(
    "delivery",
    "the PACS rejects the association (permanent, transient), breaks off in a PDU, speaks no TLS or never answers",
    "says what it was, tries again, and delivers to the PACS that has come to its senses; a folder is not held up",
)
@pytest.mark.parametrize(
    ("speak", "more", "told"),
    [
        (rejecting(1, 7), "", "rejected the association (rejected permanent"),
        (rejecting(2, 2), "", "rejected the association (rejected transient"),
        (half_a_pdu, "", "no association with PACS"),
        (silence, "", "no association with PACS"),
        (no_tls, "tls = true\n", "no association with PACS"),
    ],
    ids=["permanent", "transient", "half a PDU", "silence", "no TLS"],
)
def test_no_association_is_to_be_had(
    site: Site, pacs: Pacs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, speak: Any, more: str, told: str
) -> None:
    if speak is silence:  # the others answer, and may take their time where the machine is busy
        monkeypatch.setattr(association, "CONNECTION_TIMEOUT_S", 1.0)
    (tmp_path / "results").mkdir()
    folder = f'[[folders]]\nname = "research"\npath = "{tmp_path / "results"}"\n'
    with speaking(speak) as port:
        write_destinations(site.settings, node_toml(port) + more + folder)
        job = site.finished_job("node:PACS", "folder:research")
        relay = site.relay()
        relay.deliver_due()
    rows = {row.destination: row for row in site.outbox.of_job(job.id)}
    assert rows["folder:research"].state == "delivered"
    assert rows["node:PACS"].state == "pending"
    assert rows["node:PACS"].dimse_status is None
    assert told in (rows["node:PACS"].last_error or "")
    write_destinations(site.settings, node_toml(pacs.port) + folder)
    site.deliver_until_completed(relay, job)


@pytest.mark.fault(
    "delivery",
    "of eight instances the PACS takes three with a warning and one without, and refuses four (A700, A900, C000, 0122)",
    "the four taken are sent once, warning and comment kept; only the four refused wait, each with its status",
)
def test_every_instance_has_an_answer_of_its_own(site: Site, pacs: Pacs, caplog: pytest.LogCaptureFixture) -> None:
    write_destinations(site.settings, node_toml(pacs.port))
    job = site.finished_job("node:PACS", objects=8)
    uids = [row.sop_instance_uid or "" for row in site.outbox.of_job(job.id)]
    said = [0x0000, 0xB000, 0xB006, 0xB007, 0xA700, 0xA900, 0xC000, 0x0122]
    pacs.statuses = dict(zip(uids, said, strict=True))
    pacs.comments = {uids[1]: "changed the name of PHI-4711", uids[6]: "cannot understand " + "x" * 40}
    relay = site.relay()
    relay.deliver_due()
    rows = site.outbox.of_job(job.id)
    assert [row.dimse_status for row in rows] == said
    assert [row.state for row in rows] == ["delivered"] * 4 + ["pending"] * 4
    assert rows[1].status_comment == "changed the name of PHI-4711"
    assert rows[6].status_comment == pacs.comments[uids[6]][:64]
    assert [row.last_error for row in rows[4:]] == [
        "PACS is out of resources (0xA700)",
        "PACS refused the object (0xA900)",
        "PACS refused the object (0xC000)",
        "PACS refused the object (0x0122)",
    ]
    assert all(row.last_error is None for row in rows[:4])
    assert "PHI-4711" not in caplog.text
    pacs.statuses = {}
    site.deliver_until_completed(relay, job)
    assert pacs.stored == Counter(uids)
    assert [row.dimse_status for row in site.outbox.of_job(job.id)] == [*said[:4], 0, 0, 0, 0]
    assert [row.attempts for row in site.outbox.of_job(job.id)] == [1] * 4 + [2] * 4


@pytest.mark.fault(
    "delivery",
    "the PACS stops answering in the middle of an association",
    "what it answered counts, the rest goes out when it answers again; nothing twice",
)
def test_silence_in_the_middle_of_an_association(site: Site, pacs: Pacs, short_waits: None) -> None:
    write_destinations(site.settings, node_toml(pacs.port))
    job = site.finished_job("node:PACS", objects=3)
    uids = [row.sop_instance_uid or "" for row in site.outbox.of_job(job.id)]
    pacs.hung = {uids[1]}
    relay = site.relay()
    relay.deliver_due()
    rows = site.outbox.of_job(job.id)
    assert [row.state for row in rows] == ["delivered", "pending", "pending"]
    assert "did not answer" in (rows[1].last_error or "")
    healed = Pacs()
    write_destinations(site.settings, node_toml(healed.port))
    site.deliver_until_completed(relay, job)
    healed.stop()
    assert pacs.stored == Counter(uids[:1])
    assert healed.stored == Counter(uids[1:])


@pytest.mark.fault(
    "delivery",
    "the PACS takes longer over a batch than a relay's claim on it lasts, and a second relay runs",
    "every object is sent once: the claim is renewed while the batch goes on",
)
def test_two_relays_and_a_slow_pacs(site: Site, pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_process, "CLAIM_S", 2.0)
    write_destinations(site.settings, node_toml(pacs.port))
    job = site.finished_job("node:PACS", objects=6)
    pacs.takes_s = 0.6
    first, second = site.relay(), site.relay()
    first.start_due()

    def completed() -> bool:
        first.renew_claims()
        second.start_due()
        return site.jobs.get(job.id).state == "completed"

    wait_until(completed)
    assert pacs.stored == Counter(row.sop_instance_uid or "" for row in site.outbox.of_job(job.id))
    assert {row.attempts for row in site.outbox.of_job(job.id)} == {1}
    wait_until(lambda: not association._open)  # nothing is kept of associations that ended


@pytest.mark.fault(
    "delivery",
    "the connection breaks in the middle of the PACS's answer",
    "sent again under the same SOP Instance UID: the PACS holds it once",
)
def test_a_connection_that_breaks_in_the_middle_of_the_answer(site: Site, store_scp: StoreScp) -> None:
    store_scp.start()

    def cut(connection: socket.socket) -> None:
        """Pass everything on, but of the second reply only five bytes."""
        with socket.create_connection(("127.0.0.1", store_scp.port)) as behind:

            def forward() -> None:
                while part := connection.recv(65536):
                    behind.sendall(part)

            forwarding = threading.Thread(target=_until_broken, args=(forward,))
            forwarding.start()
            connection.sendall(behind.recv(65536))
            connection.sendall(behind.recv(65536)[:5])
            connection.shutdown(socket.SHUT_RDWR)
            forwarding.join()

    with speaking(cut) as port:
        write_destinations(site.settings, node_toml(port))
        job = site.finished_job("node:PACS")
        relay = site.relay()
        relay.deliver_due()
    assert only_row(site.outbox, job).state == "pending"
    write_destinations(site.settings, store_scp.toml())
    site.deliver_until_completed(relay, job)
    (received,) = store_scp.received()
    assert (only_row(site.outbox, job).sop_instance_uid or "") in received.name


def _until_broken(work: Callable[[], None]) -> None:
    with suppress(OSError):
        work()


@pytest.mark.fault(
    "delivery",
    "the PACS refuses one of two objects for longer than a delivery is tried",
    "parked, not dropped; the job stays delivering with deliveries_parked 1, and one call sends that object alone",
)
def test_a_refused_object_is_parked_and_retried_alone(site: Site, pacs: Pacs) -> None:
    write_destinations(site.settings, node_toml(pacs.port))
    job = site.finished_job("node:PACS", objects=2)
    other = site.finished_job("node:NOT_LISTED")
    taken, refused = site.outbox.of_job(job.id)
    pacs.statuses = {refused.sop_instance_uid or "": 0xC000}
    relay = site.relay()
    for _ in range(25):
        relay.deliver_due()
        site.let_pass()
    assert site.outbox.of_job(job.id)[1].state == "pending"  # often, but not for long enough
    site.let_pass(site.settings.delivery_park_after_s)
    relay.deliver_due()
    with serving(site.settings) as gateway:
        shown = gateway.client.get(f"/segment/{job.id}").json()
        assert (shown["state"], shown["deliveries_parked"]) == ("delivering", 1)
        parked = shown["deliveries"][1]
        assert (parked["state"], parked["dimse_status"], parked["next_attempt_at"]) == ("parked", "0xC000", None)
        listed = {one["id"]: one["deliveries_parked"] for one in gateway.client.get("/segment").json()["jobs"]}
        assert listed == {job.id: 1, other.id: 0}
        path = f"/segment/{{}}/deliveries/{refused.id}/retry"
        site.let_pass()
        assert relay.deliver_due() == 1  # the other job's, in vain; the parked one is left alone
        pacs.statuses = {}
        assert gateway.client.post(path.format(other.id)).status_code == 404
        assert gateway.client.post(f"/segment/{job.id}/deliveries/{taken.id}/retry").status_code == 409
        assert gateway.client.post(path.format(job.id)).json()["deliveries"][1]["attempts"] == 0
        relay.deliver_due()
        assert gateway.client.get(f"/segment/{job.id}").json()["state"] == "completed"
    assert pacs.stored == Counter(str(row.sop_instance_uid) for row in (taken, refused))


@pytest.mark.fault(
    "delivery",
    "the archive commits to two of three objects and has lost the third (0112)",
    "committed_at for those two alone; the third is sent again and then committed",
)
def test_a_commitment_report_that_lists_failures(site: Site) -> None:
    archive = Archive()
    write_destinations(site.settings, table(archive.port))
    job = site.finished_job("node:PACS", objects=3)
    lost = site.outbox.of_job(job.id)[1].sop_instance_uid

    def but_one(request: Dataset) -> Dataset:
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        kept = [item for item in request.ReferencedSOPSequence if item.ReferencedSOPInstanceUID != lost]
        failed = [item for item in request.ReferencedSOPSequence if item.ReferencedSOPInstanceUID == lost]
        report.ReferencedSOPSequence = kept
        if failed and len(archive.requests) == 1:
            failed[0].FailureReason = 0x0112
            report.FailedSOPSequence = failed
        else:
            report.ReferencedSOPSequence = [*kept, *failed]
        return report

    archive.report = but_one
    relay = site.relay()
    relay.deliver_due()
    rows = site.outbox.of_job(job.id)
    assert [row.state for row in rows] == ["delivered", "pending", "delivered"]
    assert [row.committed_at is not None for row in rows] == [True, False, True]
    assert rows[1].dimse_status == 0x0112
    first_two = [rows[0].committed_at, rows[2].committed_at]
    site.deliver_until_completed(relay, job)
    archive.stop()
    rows = site.outbox.of_job(job.id)
    assert [rows[0].committed_at, rows[2].committed_at] == first_two
    assert rows[1].committed_at is not None
    assert rows[1].dimse_status == 0x0000


@pytest.mark.fault(
    "delivery",
    "a DICOMweb service, a webhook and an interface engine hang up in the middle",
    "each waits with its error and is tried again, none holds up another or is dropped",
)
def test_services_and_engines_that_hang_up(site: Site, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("whsec_QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo0NTY3")
    (tmp_path / "results").mkdir()

    def toml(port: int) -> str:
        return (
            f'[[dicomweb]]\nname = "archive"\nurl = "http://127.0.0.1:{port}/"\n'
            f'[[webhooks]]\nname = "ris"\nurl = "http://127.0.0.1:{port}/"\nallow_private = true\n'
            f'secret_file = "{tmp_path / "secret"}"\n[[hl7]]\nname = "engine"\nhost = "127.0.0.1"\nport = {port}\n'
            f'[[folders]]\nname = "research"\npath = "{tmp_path / "results"}"\n'
        )

    def hang_up(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 200 O")

    failing = ("dicomweb:archive", "webhook:ris", "hl7:engine")
    relay = site.relay()
    with speaking(hang_up) as port:
        write_destinations(site.settings, toml(port))
        job = site.finished_job(*failing, "folder:research")
        for _ in range(3):
            relay.deliver_due()
            site.let_pass()
    rows = {row.destination: row for row in site.outbox.of_job(job.id)}
    assert rows["folder:research"].state == "delivered"
    for name in failing:
        assert (rows[name].state, rows[name].attempts) == ("pending", 3)
        assert rows[name].last_error
    assert site.jobs.get(job.id).state == "delivering"


@pytest.mark.fault(
    "delivery",
    "SIGTERM while the PACS hangs: before it answers the association, or in the middle of one",
    "the relay ends within 10 s, aborts the association and tells the audit trail; what was in hand is due "
    "at once, the attempt not counted",
)
@pytest.mark.parametrize("where", ["before the association", "in the middle of one"])
def test_sigterm_while_the_pacs_hangs(site: Site, pacs: Pacs, tmp_path: Path, where: str) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    in_the_middle = where == "in the middle of one"
    write_destinations(site.settings, node_toml(pacs.port if in_the_middle else listening.getsockname()[1]))
    job = site.finished_job("node:PACS", objects=2)
    first, second = site.outbox.of_job(job.id)
    pacs.hung = {second.sop_instance_uid or ""}
    environment = os.environ | {
        "EMBOLENS_DATA_DIR": str(site.settings.data_dir),
        "EMBOLENS_DATABASE_URL": site.database.url,
        "EMBOLENS_REDIS_URL": site.settings.redis_url,
        "EMBOLENS_DESTINATIONS": str(site.settings.destinations),
    }
    command = [sys.executable, "-m", "cli.app", "serve", "--only", "relay"]
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY)
    try:
        if in_the_middle:
            wait_until(lambda: site.outbox.of_job(job.id)[0].state == "delivered", timeout_s=40)
        else:
            listening.settimeout(40)
            connection, _ = listening.accept()
            assert connection.recv(1)
        asked_at = time.monotonic()
        process.terminate()
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - asked_at < 10
    finally:
        process.kill()
        process.wait()
        listening.close()
    if in_the_middle:
        assert pacs.aborted.wait(5)
    (trail,) = (site.settings.data_dir / "audit").glob("relay@*/*.jsonl")
    assert "110121" in trail.read_text().splitlines()[-1]  # Application Stop, PS3.16 DCM
    rows = site.outbox.of_job(job.id)
    assert [row.state for row in rows] == ["delivered" if in_the_middle else "pending", "pending"]
    assert (rows[1].attempts, rows[1].last_error) == (0, None)
    assert rows[1].next_attempt_at <= utc_now()
    healed = Pacs()
    write_destinations(site.settings, node_toml(healed.port))
    site.relay().deliver_due()
    healed.stop()
    assert site.jobs.get(job.id).state == "completed"
    assert healed.stored[first.sop_instance_uid or ""] == (0 if in_the_middle else 1)
    assert healed.stored[second.sop_instance_uid or ""] == 1
