"""What retention takes away, what it never takes, and what is said of it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.event import listen

from imaging.errors import Purged, Reason, StateConflict
from services.audit.written import written_messages
from services.delivery.retention import Decision, Retention
from services.dicomweb.held_index import HeldIndex
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import Delivery, JobStore, utc_now
from services.store.outbox import Outbox
from services.store.purge import Purge, What
from services.store.retrievals import RetrievalStore
from services.store.rows import JobRow, Priority
from services.store.study_store import StudyStore
from services.store.worklist_items import InputSeries, WorklistItems
from tests.services.ingest.peers import ct_series

FINDINGS = {"outcome": "no_embolus", "reasons": []}
STUDY, SERIES = "1.2", "1.2.3"
TO_PACS = Delivery("node:PACS", "x", "1.2", "1.2.3.9")


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    return StudyStore(tmp_path / "data")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "destinations.toml").write_text(
        '[[nodes]]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'
        '[[nodes]]\nae_title = "KEEPER"\nhost = "127.0.0.1"\nport = 104\ncommitment = true\n'
    )
    return Settings(
        data_dir=tmp_path / "data",
        destinations=tmp_path / "destinations.toml",
        retention_input_days=30,
        retention_result_days=60,
    )


class Site:
    """Jobs with files, and a retention."""

    def __init__(self, settings: Settings, database: Database, store: StudyStore) -> None:
        self.settings, self.database, self.store = settings, database, store
        self.jobs, self.outbox = JobStore(database), Outbox(database)
        self.retention = Retention(settings, database, store)

    def received(self, *, study: str = STUDY, series: str = SERIES, files: int = 2) -> str:
        """A job that is receiving."""
        job = self.jobs.open_receiving(study_instance_uid=study, series_instance_uid=series, calling_ae_title="PACS")
        slices = ct_series(files)
        for number, one in enumerate(slices):
            one.StudyInstanceUID, one.SeriesInstanceUID = study, series
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
            with self.store.arriving_file(self.store.instance_path(study, series, one.SOPInstanceUID)) as file:
                one.save_as(file, enforce_file_format=True)
        return job.id

    def queued(self, **of_series: object) -> str:
        job_id = self.received(**of_series)  # type: ignore[arg-type]
        job = self.jobs.get(job_id)
        files = sorted(self.directory(job).glob("*.dcm"))
        digest = self.store.write_inputs(job_id, files)
        self.jobs.complete_intake(job_id, inputs_digest=digest, instance_count=len(files), completion_reason="test")
        return job_id

    def delivering(self, *deliveries: Delivery, **of_series: object) -> str:
        job_id = self.queued(**of_series)
        self.jobs.claim(job_id, "w", lease_s=60)
        (filled := self.store.arriving_directory()).joinpath("findings.json").write_bytes(bytes(5000))
        self.store.replace_directory(filled, self.store.result_directory(job_id))
        self.jobs.finish(job_id, "w", findings=FINDINGS, stage_seconds={}, deliveries=deliveries)
        return job_id

    def completed(self, *deliveries: Delivery, days_ago: float = 31, **of_series: object) -> str:
        job_id = self.delivering(*(deliveries or (TO_PACS,)), **of_series)
        for row in self.outbox.of_job(job_id):
            self.outbox.delivered(row)
        self.ended(job_id, days_ago)
        return job_id

    def ended(self, job_id: str, days_ago: float) -> None:
        with self.database.write() as session:
            ago = utc_now() - timedelta(days=days_ago)
            session.execute(update(JobRow).where(JobRow.id == job_id).values(finished_at=ago))

    def directory(self, job: JobRow) -> Path:
        assert job.study_instance_uid is not None
        assert job.series_instance_uid is not None
        return self.store.series_directory(job.study_instance_uid, job.series_instance_uid)

    def decision(self, job_id: str, what: What = What.INPUTS) -> Decision:
        return next(d for d in self.retention.plan() if d.one.what is what and job_id in [j.id for j in d.one.jobs])


@pytest.fixture
def site(settings: Settings, database: Database, store: StudyStore) -> Site:
    return Site(settings, database, store)


def test_delivered_inputs_go_by_age_and_their_row_says_so(site: Site) -> None:
    old, young = site.completed(days_ago=31), site.completed(days_ago=29, study="1.5", series="1.5.3")
    index = HeldIndex(site.database, site.store)
    index.update(most_jobs=10)
    assert len(index.instances(STUDY)) == 2
    gone = site.retention.purge_now()
    assert [(one.one.what, one.one.name) for one in gone] == [(What.INPUTS, f"series {SERIES}")]
    assert not (site.store.data_dir / "received" / STUDY).exists()
    assert site.directory(site.jobs.get(young)).is_dir()
    job = site.jobs.get(old)
    assert (job.state, job.findings) == ("completed", FINDINGS)
    assert job.inputs_purged_at is not None
    assert job.results_purged_at is None
    assert site.store.result_file(old, "findings.json").is_file()
    index.update(most_jobs=10)
    with pytest.raises(Purged):
        index.instances(STUDY, SERIES)
    assert len(index.instances("1.5")) == 2
    assert not list((site.store.data_dir / "arriving").iterdir())
    assert not site.retention.purge_now()


def test_results_go_later_and_findings_stay(site: Site) -> None:
    job_id = site.completed(days_ago=61)
    assert {one.one.what for one in site.retention.purge_now()} == {What.INPUTS, What.RESULTS}
    job = site.jobs.get(job_id)
    assert job.results_purged_at is not None
    assert job.findings == FINDINGS
    assert not site.store.result_directory(job_id).exists()


def test_nothing_is_purged_that_nobody_configured(site: Site, settings: Settings) -> None:
    site.completed(days_ago=10_000)
    unset = {"retention_input_days": 0.0, "retention_result_days": 0.0}
    retention = Retention(settings.model_copy(update=unset), site.database, site.store)
    assert not retention.purge_now()
    assert {decision.because for decision in retention.plan(whole=True)} == {"kept for ever"}


def pending(site: Site) -> str:
    job_id = site.completed()
    with site.database.write() as session:  # as a notification does that is behind the others
        row = site.outbox.of_job(job_id)[0]
        row.state = "pending"
        session.merge(row)
    return job_id


def parked(site: Site) -> str:
    job_id = site.delivering(TO_PACS)
    site.outbox.park(site.outbox.of_job(job_id)[0], "refused")
    return job_id


def not_committed(site: Site) -> str:
    return site.completed(Delivery("node:KEEPER", "x", "1.2", "1.2.3.9"))


def sibling_receiving(site: Site) -> str:
    job_id = site.completed()
    site.received(series="1.2.4")
    return job_id


def late_slices_arriving(site: Site) -> str:
    job_id = site.completed()
    site.received(files=3)
    return job_id


def fetched(site: Site) -> str:
    RetrievalStore(site.database).request_study(
        node="PACS", study_instance_uid=STUDY, series_instance_uid=SERIES, priority=Priority.ROUTINE
    )
    return site.completed()


def asked_for_by_a_worklist(site: Site) -> str:
    WorklistItems(site.database).remember(
        "ris", "1.9", priority=Priority.ROUTINE, workitem_code={}, inputs=[InputSeries(STUDY, SERIES)]
    )
    return site.completed()


def just_ended(site: Site) -> str:
    return site.completed(days_ago=0)


def refused_yesterday(site: Site) -> str:
    job_id = site.queued()
    site.jobs.claim(job_id, "w", lease_s=60)
    site.jobs.finish_not_analysable(job_id, "w", FINDINGS | {"outcome": "not_analysable"})
    site.ended(job_id, 1)
    return job_id


def failed_yesterday(site: Site) -> str:
    job_id = site.queued()
    site.jobs.claim(job_id, "w", lease_s=60)
    site.jobs.fail(job_id, "w", code="internal", message="", max_attempts=1)
    site.ended(job_id, 1)
    return job_id


def set_aside_yesterday(site: Site) -> str:
    job_id = site.received()
    site.jobs.set_aside(job_id, [Reason("a", "b")], instance_count=2, completion_reason="test", inputs_digest="d")
    site.ended(job_id, 1)
    return job_id


KEPT: list[tuple[Callable[[Site], str], str]] = [
    (pending, "a delivery to node:PACS is pending"),
    (parked, ""),
    (not_committed, "node:KEEPER has not committed to keeping it"),
    (sibling_receiving, "of the same study is receiving"),
    (late_slices_arriving, ""),
    (fetched, "fetches the study"),
    (asked_for_by_a_worklist, "workitem 1.9 asks for the study"),
    (just_ended, "less than an hour ago"),
    (refused_yesterday, "kept for 30 days"),
    (failed_yesterday, "kept for 30 days"),
    (set_aside_yesterday, "kept for 30 days"),
]


@pytest.mark.parametrize(("make", "why"), KEPT, ids=[make.__name__ for make, _ in KEPT])
def test_what_somebody_still_needs_stays(make: Callable[[Site], str], why: str, site: Site, settings: Settings) -> None:
    """By age, and however full the disk is."""
    job_id = make(site)
    full = settings.model_copy(update={"purge_at_percent": 0.0001, "purge_to_percent": 0.0})
    site.retention = Retention(full, site.database, site.store)
    if why:
        assert why in site.decision(job_id).because
    assert not site.retention.purge_now()
    assert not Purge(site.database, site.store).candidates(What.INPUTS) or why
    assert len(list(site.directory(site.jobs.get(job_id)).glob("*.dcm"))) >= 2
    assert site.jobs.get(job_id).inputs_purged_at is None


def test_a_failed_job_goes_by_age_and_cannot_be_tried_again(site: Site) -> None:
    job_id = failed_yesterday(site)
    site.ended(job_id, 31)
    assert site.jobs.can_retry(site.jobs.get(job_id))
    assert len(site.retention.purge_now()) == 1
    assert not site.jobs.can_retry(site.jobs.get(job_id))
    with pytest.raises(StateConflict, match="were purged on") as refused:
        site.jobs.retry(job_id)
    assert refused.value.code == "purged"


def test_what_is_being_read_stays_until_it_is_read(site: Site) -> None:
    job = site.jobs.get(site.completed())
    with site.store.reading([site.store.relative(site.directory(job))]):
        assert not site.retention.purge_now()
    assert len(site.retention.purge_now()) == 1
    with pytest.raises(Purged), site.store.reading([site.store.relative(site.directory(job))]):
        pass


def test_all_jobs_of_a_series_lose_its_files_together(site: Site) -> None:
    first, second = site.completed(days_ago=50), site.completed(days_ago=31, files=3)
    assert len(site.retention.purge_now()) == 1
    assert all(site.jobs.get(job_id).inputs_purged_at for job_id in (first, second))
    assert not site.jobs.that_took_in(STUDY, SERIES)


def test_a_job_that_is_tried_again_between_plan_and_purge_keeps_its_inputs(site: Site) -> None:
    job_id = failed_yesterday(site)
    site.ended(job_id, 31)
    (going,) = [decision for decision in site.retention.plan() if decision.goes]
    site.jobs.retry(job_id)
    assert not Purge(site.database, site.store).purge(going.one)
    assert len(list(going.one.directory.glob("*.dcm"))) == 2


@pytest.mark.parametrize("is_readable", [True, False])
def test_the_audit_trail_names_the_study_of_a_series_that_no_job_took_in(site: Site, is_readable: bool) -> None:
    job_id = site.received()
    if not is_readable:
        for path in site.directory(site.jobs.get(job_id)).iterdir():
            path.write_bytes(b"torn")
    site.jobs.cancel(job_id)
    site.ended(job_id, 31)
    assert len(site.retention.purge_now()) == 1
    (deleted,) = written_messages(site.settings.data_dir / "audit", STUDY)
    assert [one.object_id for one in deleted.objects] == [STUDY, "PHI-4711" if is_readable else ""]


def test_looking_for_candidates_is_one_query(site: Site) -> None:
    for number in range(3):
        site.completed(study=f"1.{number}", series=f"1.{number}.1")
    asked: list[str] = []
    with site.database.read() as session:
        listen(session.get_bind(), "before_cursor_execute", lambda *about: asked.append(about[2]))
    assert len(Purge(site.database, site.store).candidates(What.INPUTS)) == 3
    assert len([query for query in asked if query.startswith("SELECT")]) == 1


def test_watermarks_that_make_no_sense_are_refused(site: Site, settings: Settings) -> None:
    wrong = settings.model_copy(update={"purge_at_percent": 70.0, "purge_to_percent": 80.0})
    with pytest.raises(Exception, match="EMBOLENS_PURGE_TO_PERCENT"):
        Retention(wrong, site.database, site.store)
