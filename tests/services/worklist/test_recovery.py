"""Whatever is interrupted, a claimed workitem is claimed once, stays ours, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from services.settings import Settings
from services.store.database import Database
from services.store.rows import WorkitemState
from services.store.worklist_items import WorklistItems
from tests.services.ingest.peers import ct_series, wait_until
from tests.services.worklist.conftest import WORKLIST, Site, destinations_toml, wait_for_state
from tests.services.worklist.origin_server import Held, OriginServer, Refused, input_of, workitem

MakeAngiogram = Callable[..., list[Dataset]]
REPOSITORY = Path(__file__).resolve().parents[3]


def test_of_two_performers_one_gets_the_workitem(site: Site, origin: OriginServer) -> None:
    def other_is_faster(held: Held) -> None:
        origin.before_claim = lambda held: None
        held.transaction_uid = "1.2.3"
        held.history.append("IN PROGRESS")
        held.dataset.ProcedureStepState = "IN PROGRESS"

    origin.before_claim = other_is_faster
    held = origin.add(workitem(input_of(ct_series(2))))
    wait_until(lambda: origin.count("DELETE"))
    wait_until(lambda: site.item(held) is None)
    assert held.transaction_uid == "1.2.3"
    assert held.history == ["SCHEDULED", "IN PROGRESS"]
    assert not held.progress
    assert not held.subscribers


def test_answers_that_are_lost_lose_nothing(site: Site, origin: OriginServer, angiogram: MakeAngiogram) -> None:
    slices = angiogram()
    site.analyse(site.push_and_wait(slices))
    site.deliver()
    origin.lose_answers = 2  # that it is claimed, and that it is completed
    held = origin.add(workitem(input_of(slices)))
    wait_for_state(held, "IN PROGRESS", "COMPLETED")
    wait_until(lambda: site.item(held).state == WorkitemState.COMPLETED)  # type: ignore[union-attr]
    assert origin.lose_answers == 0


def test_an_origin_server_that_is_away_is_waited_for(settings: Settings, database: Database, tmp_path: Path) -> None:
    origin = OriginServer()
    slices = ct_series(3)
    with origin.serving():
        settings.destinations.write_text(destinations_toml(origin, tmp_path))
        site = Site(settings, database)
        job = site.push_and_wait(slices)
        held = origin.add(workitem(input_of(slices)))
        wait_until(lambda: held.state == "IN PROGRESS" and origin.channels.get("EMBOLENS"))
    try:
        site.jobs.cancel(job.id)
        asked = origin.add(workitem(input_of(ct_series(2))))
        with origin.serving(origin.port):
            wait_for_state(held, "IN PROGRESS", "CANCELED")
            wait_for_state(asked, "IN PROGRESS", "CANCELED")
            # and its events are heard again
            other = ct_series(3)
            site.push_and_wait(other)
            held = origin.add(workitem(input_of(other)))
            wait_until(lambda: held.state == "IN PROGRESS" and origin.channels.get("EMBOLENS"))
            origin.request_cancel(held.dataset.SOPInstanceUID)
            wait_for_state(held, "IN PROGRESS", "CANCELED")
            site.stop()
    finally:
        site.performers.stop()


def test_a_server_that_takes_no_completion_gets_a_cancellation(
    settings: Settings, database: Database, origin: OriginServer, angiogram: MakeAngiogram, tmp_path: Path
) -> None:
    def no_completion(state: str) -> None:
        if state == "COMPLETED":
            raise Refused(409, "C304 we want more than the Standard does")

    origin.demands = no_completion
    settings.destinations.write_text(
        destinations_toml(origin, tmp_path, worklist=WORKLIST.replace("poll_s = 0.1", "poll_s = 0.02"))
    )
    site = Site(settings, database)
    try:
        slices = angiogram()
        site.analyse(site.push_and_wait(slices))
        site.deliver()
        held = origin.add(workitem(input_of(slices)))
        wait_for_state(held, "IN PROGRESS", "CANCELED")
        assert "we want more than the Standard does" in held.information.ReasonForCancellation
    finally:
        site.stop()


def test_a_second_start_goes_on_where_the_first_stopped(site: Site, origin: OriginServer) -> None:
    slices = ct_series(3)
    site.push_and_wait(slices)
    held = origin.add(workitem(input_of(slices)))
    wait_until(lambda: held.state == "IN PROGRESS")
    site.performers.stop()
    wait_until(lambda: not origin.channels["EMBOLENS"])
    transaction_uid = held.transaction_uid
    site.start_performers()
    wait_until(lambda: origin.channels["EMBOLENS"])
    origin.request_cancel(held.dataset.SOPInstanceUID)
    wait_for_state(held, "IN PROGRESS", "CANCELED")
    assert held.transaction_uid == transaction_uid


@contextmanager
def listening(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The listener as it is run, which works on the worklist too."""
    environment = os.environ | {
        f"EMBOLENS_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_none=True).items()
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.app", "serve", "--only", "listener"],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_killed_while_it_claims_the_next_process_knows_the_workitem_for_its_own(
    settings: Settings, origin: OriginServer, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'killed.sqlite'}"})
    killed: list[str] = []
    with listening(settings) as first:

        def kill_it(held: Held) -> None:
            """The claim is under way; it will be granted, and nobody is left to hear of it."""
            first.send_signal(signal.SIGKILL)
            first.wait()
            killed.append(str(held.dataset.SOPInstanceUID))

        origin.before_claim = kill_it
        held = origin.add(workitem(input_of(ct_series(2))))
        wait_until(lambda: killed, timeout_s=30)
    wait_until(lambda: held.state == "IN PROGRESS")
    database = Database(settings.resolved_database_url)
    item = WorklistItems(database).get("ai", killed[0])
    assert item is not None
    assert (item.state, item.transaction_uid) == (WorkitemState.CLAIMING, held.transaction_uid)
    with listening(settings):
        wait_until(lambda: held.state == "CANCELED", timeout_s=30)  # its images are nowhere
    assert held.history == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    assert held.transaction_uid == item.transaction_uid
    database.close()


@pytest.mark.parametrize("named", ["", "elsewhere.example:1"])
def test_credentials_go_to_the_configured_server_alone(
    settings: Settings, database: Database, origin: OriginServer, tmp_path: Path, named: str
) -> None:
    origin.token, origin.names_events_at = "opensesame", named
    (tmp_path / "token").write_text("opensesame")
    toml = destinations_toml(origin, tmp_path).replace(
        'name = "manager"', f'name = "manager"\ntoken_file = "{tmp_path / "token"}"'
    )
    settings.destinations.write_text(toml)
    site = Site(settings, database)
    try:
        slices = ct_series(2)
        site.push_and_wait(slices)
        held = origin.add(workitem(input_of(slices)))
        wait_until(lambda: held.state == "IN PROGRESS" and origin.channels.get("EMBOLENS"))
    finally:
        site.stop()
