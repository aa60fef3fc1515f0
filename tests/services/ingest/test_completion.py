"""When a series is complete, and what becomes of late, repeated and interrupted ones."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from services.ingest.arriving_series import ArrivingSeriesRegister, Calling
from services.ingest.completeness import Completeness
from services.ingest.completion import CompletionWatcher, completion_reason, until_next_look_s
from services.ingest.intake_rules import IntakeRules
from services.ingest.listener import run_listener
from services.ingest.series_selection import SelectionRule
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.retrievals import RetrievalStore
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from tests.services.ingest.peers import ListenerProcess, Receiving, association, ct_series, jobs_of, push, wait_until


def reason(**changed: object) -> str | None:
    usual: dict[str, object] = {
        "instance_count": 10, "announced_instances": None, "open_associations": 0, "being_stored": 0,
        "quiet_for_s": 25.0, "series_quiet_s": 20.0,
    }  # fmt: skip
    return completion_reason(**(usual | changed))  # type: ignore[arg-type]


def test_a_series_is_complete_when_its_associations_are_over_and_it_is_quiet() -> None:
    assert reason() == "associations released, quiet for 20 s"
    assert reason(quiet_for_s=19.9) is None
    assert reason(open_associations=1, quiet_for_s=1000.0) is None
    assert reason(being_stored=1) is None


def test_the_announced_number_completes_it_at_once() -> None:
    at_once = {"open_associations": 2, "quiet_for_s": 0.0}
    assert reason(announced_instances=10, **at_once) == "announced 10 instances received"
    assert reason(announced_instances=11, **at_once) is None
    assert reason(announced_instances=10, being_stored=1, **at_once) is None


def test_an_announcement_that_was_too_low_does_not_complete_every_further_slice() -> None:
    assert reason(announced_instances=9, open_associations=1) is None
    assert reason(announced_instances=9) == "associations released, quiet for 20 s"


def test_the_announced_number_completes_a_series_whose_association_stays_open(receiving: Receiving) -> None:
    slices = ct_series(6, NumberOfSeriesRelatedInstances=6)
    with association(receiving.port) as opened:
        for one in slices[:5]:
            opened.send_c_store(one)
        assert [job.state for job in receiving.jobs_of(slices[0])] == ["receiving"]
        opened.send_c_store(slices[5])
        (job,) = receiving.wait_for_state(slices[0], "queued")
    assert job.completion_reason == "announced 6 instances received"


def test_late_slices_open_a_job_that_supersedes_the_first(receiving: Receiving) -> None:
    slices = ct_series(8)
    push(receiving.port, slices[:5])
    receiving.wait_for_state(slices[0], "queued")
    push(receiving.port, slices[5:])
    first, second = receiving.wait_for_state(slices[0], "cancelled", "queued")
    assert second.supersedes == first.id
    assert first.error_code == "superseded"
    assert (first.instance_count, second.instance_count) == (5, 8)
    assert first.inputs_digest != second.inputs_digest


def test_late_slices_after_an_announced_number_come_together_again(receiving: Receiving) -> None:
    slices = ct_series(8, NumberOfSeriesRelatedInstances=5)
    push(receiving.port, slices)
    jobs = receiving.wait_for_state(slices[0], "cancelled", "queued")
    assert jobs[-1].instance_count == 8


def test_a_series_that_the_rules_turn_away_is_kept_and_says_why(receiving: Receiving) -> None:
    (one,) = ct_series(1)
    push(receiving.port, [one])
    (job,) = receiving.wait_for_state(one, "not_analysable")
    assert [entry["code"] for entry in job.reasons] == ["intake.too_few_slices"]
    assert len(receiving.store.read_inputs(job.id)) == 1
    assert job.id not in receiving.queue.waiting()


@pytest.fixture
def choosy(settings: Settings, database: Database) -> Iterator[Receiving]:
    """A listener that prefers series of which a contrast agent is named."""
    preference = SelectionRule(attribute="contrast_agent", matches=".", points=2, because="contrast agent named")
    running = Receiving(settings, database, IntakeRules(min_slices=2, selection=(preference,)))
    yield running
    running.stop()


def test_beside_a_likelier_angiogram_of_the_study_a_series_is_set_aside(choosy: Receiving) -> None:
    angiogram = ct_series(3, ContrastBolusAgent="IOHEXOL")
    study = angiogram[0].StudyInstanceUID
    native, again = (ct_series(3, StudyInstanceUID=study, **more) for more in ({}, {"ContrastBolusAgent": "IODIXANOL"}))
    push(choosy.port, angiogram)
    choosy.wait_for_state(angiogram[0], "queued")
    push(choosy.port, native)
    (job,) = choosy.wait_for_state(native[0], "not_analysable")
    (entry,) = job.reasons
    assert entry["code"] == "intake.better_series"
    assert f"series {angiogram[0].SeriesInstanceUID} of this study is segmented: 2 points" in entry["text"]
    push(choosy.port, again)
    choosy.wait_for_state(again[0], "queued")
    push(choosy.port, elsewhere := ct_series(3))
    choosy.wait_for_state(elsewhere[0], "queued")


def test_a_likelier_angiogram_that_comes_later_is_segmented_too(choosy: Receiving) -> None:
    native = ct_series(3)
    angiogram = ct_series(3, StudyInstanceUID=native[0].StudyInstanceUID, ContrastBolusAgent="IOHEXOL")
    push(choosy.port, native)
    choosy.wait_for_state(native[0], "queued")
    push(choosy.port, angiogram)
    choosy.wait_for_state(angiogram[0], "queued")
    assert [job.state for job in choosy.jobs_of(native[0])] == ["queued"], "what is segmented already stays"


def test_slices_missing_when_a_series_was_set_aside_can_still_come(receiving: Receiving) -> None:
    slices = ct_series(4)
    push(receiving.port, slices[:1])
    receiving.wait_for_state(slices[0], "not_analysable")
    push(receiving.port, slices)
    first, second = receiving.wait_for_state(slices[0], "not_analysable", "queued")
    assert second.supersedes == first.id
    assert second.instance_count == 4


def test_a_job_cancelled_while_receiving_stays_cancelled_for_this_push(receiving: Receiving) -> None:
    slices = ct_series(6)
    with association(receiving.port) as opened:
        for one in slices[:3]:
            opened.send_c_store(one)
        receiving.jobs.cancel(receiving.jobs_of(slices[0])[0].id)
        for one in slices[3:]:
            assert opened.send_c_store(one).Status == 0x0000
    threading.Event().wait(1.0)
    assert [job.state for job in receiving.jobs_of(slices[0])] == ["cancelled"]


def test_a_series_cancelled_while_receiving_can_be_pushed_again(receiving: Receiving) -> None:
    slices = ct_series(4)
    with association(receiving.port) as opened:
        for one in slices:
            opened.send_c_store(one)
        receiving.jobs.cancel(receiving.jobs_of(slices[0])[0].id)
    threading.Event().wait(1.0)
    push(receiving.port, slices)
    receiving.wait_for_state(slices[0], "cancelled", "queued")


def test_late_slices_whose_job_was_cancelled_open_another_when_they_are_pushed_again(receiving: Receiving) -> None:
    slices = ct_series(6)
    push(receiving.port, slices[:3])
    receiving.wait_for_state(slices[0], "queued")
    with association(receiving.port) as opened:
        for one in slices[3:]:
            opened.send_c_store(one)
        receiving.jobs.cancel(receiving.jobs_of(slices[0])[-1].id)
    threading.Event().wait(1.0)
    push(receiving.port, slices)
    jobs = receiving.wait_for_state(slices[0], "cancelled", "cancelled", "queued")
    assert jobs[-1].instance_count == 6


def test_a_series_that_was_set_aside_can_be_analysed_all_the_same(receiving: Receiving) -> None:
    (one,) = ct_series(1)
    push(receiving.port, [one])
    (job,) = receiving.wait_for_state(one, "not_analysable")
    assert receiving.jobs.retry(job.id).state == "queued"


def test_files_whose_database_was_lost_become_a_job_when_they_are_pushed_again(receiving: Receiving) -> None:
    slices = ct_series(4)
    for one in slices:
        path = receiving.store.instance_path(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        path.parent.mkdir(parents=True, exist_ok=True)
        one.save_as(path, enforce_file_format=True)
    push(receiving.port, slices)
    (job,) = receiving.wait_for_state(slices[0], "queued")
    assert job.instance_count == 4


def test_a_disk_that_does_not_list_a_directory_for_a_moment_stops_nothing(
    receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise OSError(errno.EMFILE, "Too many open files")

    slices = ct_series(3)
    with monkeypatch.context() as broken:
        broken.setattr(ArrivingSeriesRegister, "follow", fail)
        push(receiving.port, slices)
        assert failed.wait(10)
    receiving.wait_for_state(slices[0], "queued")


def test_a_series_that_our_disk_does_not_give_back_is_not_turned_away(receiving: Receiving) -> None:
    slices = ct_series(3)
    with association(receiving.port) as opened:
        for one in slices:
            opened.send_c_store(one)
        one = slices[1]
        path = receiving.store.instance_path(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        content = path.read_bytes()
        path.unlink()
        path.mkdir()  # reading it gives EISDIR, as a disk in trouble gives EIO
    threading.Event().wait(1.0)
    assert [job.state for job in receiving.jobs_of(one)] == ["receiving"]
    path.rmdir()
    path.write_bytes(content)
    receiving.wait_for_state(one, "queued")


@pytest.mark.parametrize(
    ("quiet_for_s", "wait_s"),
    [((), 0.25), ((0.1, 0.9), 0.1), ((1.0, 1.5), 0.25), ((19.95, 0.85), 0.05)],
    ids=["nothing comes", "nearly quiet", "quiet, and not sent whole", "the long time of one"],
)
def test_the_next_look_is_when_a_quiet_time_ends_and_no_later_than_a_tick(
    quiet_for_s: tuple[float, ...], wait_s: float
) -> None:
    assert until_next_look_s(quiet_for_s, (20.0, 1.0), 0.25) == pytest.approx(wait_s)


class TestWatcher:
    """A watcher on its own, looked at step by step."""

    @pytest.fixture
    def store(self, settings: Settings) -> StudyStore:
        return StudyStore(settings.data_dir)

    @pytest.fixture
    def parts(
        self, settings: Settings, database: Database
    ) -> Iterator[tuple[ArrivingSeriesRegister, JobStore, CompletionWatcher]]:
        store, jobs, queue = StudyStore(settings.data_dir), JobStore(database), TaskQueue(settings.redis_url)
        register = ArrivingSeriesRegister(store, jobs)
        completeness = Completeness(settings, store, RetrievalStore(database))
        watcher = CompletionWatcher(register, store, jobs, queue, IntakeRules(), completeness, series_quiet_s=0.0)
        yield register, jobs, watcher
        queue.close()

    def test_a_job_of_which_no_file_came_is_dropped_quietly(self, parts) -> None:  # type: ignore[no-untyped-def]
        register, jobs, watcher = parts
        over = threading.Thread()
        with pytest.raises(OSError, match="disk"), register.storing("1.2", "1.2.3", "1.2.3.4", Calling("A", "", over)):
            raise OSError("disk on fire")
        (series,) = register.all()
        watcher.look_at(series)
        job = jobs.get(series.job_id)
        assert (job.state, job.completion_reason) == ("cancelled", "nothing new was received")
        assert not register.all()

    def test_a_series_is_not_completed_while_one_of_its_files_is_being_written(self, parts) -> None:  # type: ignore[no-untyped-def]
        register, jobs, watcher = parts
        with register.storing("1.2", "1.2.3", "1.2.3.4", Calling("A", "", threading.Thread())) as series:
            watcher.look_at(series)
            assert jobs.get(series.job_id).state == "receiving"

    def test_an_instance_that_comes_after_completion_opens_another_job(self, parts) -> None:  # type: ignore[no-untyped-def]
        register, _, watcher = parts
        calling = Calling("A", "", threading.Thread())
        with register.storing("1.2", "1.2.3", "1.2.3.4", calling) as first:
            pass
        watcher.look_at(first)
        with register.storing("1.2", "1.2.3", "1.2.3.5", calling) as second:
            assert second.job_id != first.job_id

    def test_a_series_whose_job_another_process_completed_gets_a_new_one(self, parts, store) -> None:  # type: ignore[no-untyped-def]
        register, jobs, watcher = parts
        path = store.instance_path("1.2", "1.2.3", "1.2.3.4")
        calling = Calling("A", "", threading.Thread())
        with register.storing("1.2", "1.2.3", "1.2.3.4", calling) as series, store.arriving_file(path) as file:
            file.write(b"x")
        first = series.job_id
        jobs.complete_intake(first, inputs_digest="d", instance_count=0, completion_reason="by another listener")
        watcher.look_at(series)
        assert register.all() == [series]
        assert series.job_id != first
        watcher.look_at(series)
        assert jobs.get(series.job_id).reasons[0]["code"] == "input.not_dicom"
        assert not register.all()

    def test_a_job_without_files_is_not_dropped_when_another_process_has_just_stored_one(self, parts) -> None:  # type: ignore[no-untyped-def]
        register, jobs, watcher = parts
        series = {"study_instance_uid": "1.2", "series_instance_uid": "1.2.3"}
        register.follow(jobs.open_receiving(**series))
        jobs.open_receiving(**series, arrivals=1)
        (arriving,) = register.all()
        watcher.look_at(arriving)
        assert jobs.get(arriving.job_id).state == "receiving"
        register.follow(jobs.get(arriving.job_id))
        watcher.look_at(arriving)
        assert jobs.get(arriving.job_id).state == "cancelled", "the file went away again"

    def test_jobs_found_receiving_at_the_start_are_taken_up(self, parts) -> None:  # type: ignore[no-untyped-def]
        _, jobs, watcher = parts
        job = jobs.open_receiving(study_instance_uid="1.2", series_instance_uid="1.2.3", calling_ae_title="A")
        watcher.start()
        wait_until(lambda: jobs.get(job.id).state == "cancelled")
        watcher.stop()


@pytest.mark.parametrize("after", [1, 17])
def test_a_listener_killed_in_the_middle_of_an_association_loses_nothing(
    settings: Settings, tmp_path: Path, after: int
) -> None:
    """As a PACS does: what was not acknowledged is sent again, and the series ends in exactly one job."""
    slices = ct_series(30, size=128)
    acknowledged = []
    listener = ListenerProcess(settings, tmp_path)
    with association(listener.port) as opened:
        for one in slices:
            if len(acknowledged) == after:
                threading.Timer(0.005, listener.end, args=(signal.SIGKILL,)).start()
            status = opened.send_c_store(one)
            if "Status" not in status:
                break
            acknowledged.append(one)
    assert after <= len(acknowledged) < len(slices)
    listener.process.wait(timeout=10)

    store = StudyStore(settings.data_dir)
    for one in acknowledged:
        path = store.instance_path(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        assert path.stat().st_size > len(one.PixelData)

    listener = ListenerProcess(settings, tmp_path)
    push(listener.port, slices[len(acknowledged) :])
    database = Database(settings.resolved_database_url)
    jobs = JobStore(database)
    wait_until(lambda: [job.state for job in jobs_of(jobs, slices[0])] == ["queued"])
    (job,) = jobs_of(jobs, slices[0])
    assert job.instance_count == len(slices)
    assert listener.end(signal.SIGTERM) == 0
    database.close()


def test_a_second_listener_on_the_same_data_is_refused(settings: Settings, tmp_path: Path) -> None:
    listener = ListenerProcess(settings, tmp_path)
    with pytest.raises(ConfigurationError, match="another listener works in"):
        run_listener(settings)
    listener.end(signal.SIGTERM)


def test_a_series_received_before_a_crash_is_completed_after_it(settings: Settings, tmp_path: Path) -> None:
    slices = ct_series(10)
    listener = ListenerProcess(settings, tmp_path)
    push(listener.port, slices)
    listener.end(signal.SIGKILL)
    listener = ListenerProcess(settings, tmp_path)
    database = Database(settings.resolved_database_url)
    jobs = JobStore(database)
    wait_until(lambda: [job.state for job in jobs_of(jobs, slices[0])] == ["queued"])
    assert jobs_of(jobs, slices[0])[0].instance_count == 10
    listener.end(signal.SIGTERM)
    database.close()
