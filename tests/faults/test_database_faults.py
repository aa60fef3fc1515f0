"""A database that is locked, or ends in the middle of everything."""

from __future__ import annotations

import signal
import sqlite3
import time

import pytest

from tests.end_to_end.hospital import wait_for
from tests.faults.conftest import MakeStudies, StartSystem
from tests.faults.invariants import check
from tests.faults.pacs import CountingPacs
from tests.faults.studies import Senders, push, upload
from tests.faults.system import System
from tests.services.store.postgresql import PostgreSql

STUDIES = 6
pytestmark = pytest.mark.timeout(240)


@pytest.mark.fault(
    "database",
    "SQLite locked by another process for more than 30 s while a job runs and studies come in",
    "after 30 s of waiting the listener answers A700 and the gateway 503 with Retry-After; what is running goes on "
    "without a second attempt; sent again, every study ends in one result",
)
def test_a_locked_database_is_answered_and_waited_for(
    system: System, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    studies = make_studies(STUDIES)
    system.put_down("worker-1")
    system.start("worker-1", STAGE_S="5")
    upload(studies[0], system.http)
    assert studies[0].job_id is not None
    system.wait_for_state(studies[0].job_id, "running")
    senders = Senders()
    holder = sqlite3.connect(system.data_dir / "embolens.sqlite", isolation_level=None)

    holder.execute("BEGIN EXCLUSIVE")
    for number, study in enumerate(studies[1:]):
        if number % 2:
            senders.begin(push, study, system.dicom_port)
        else:
            senders.begin(upload, study, system.http)
    try:
        assert system.http.get("/health/ready").status_code == 200  # who only reads goes on
        wait_for("everybody has been refused once", lambda: all(study.statuses for study in studies[1:]), 60)
    finally:
        holder.close()

    system.wait_for_state(studies[0].job_id, "delivering", "completed")
    system.put_down("worker-1")
    system.start("worker-1")
    senders.finish()
    check(system, pacs, studies)
    assert system.job(studies[0].job_id)["attempts"] == 1
    for number, study in enumerate(studies[1:]):
        assert set(study.statuses) == ({0xA700} if number % 2 else {503}), study.statuses


@pytest.mark.fault(
    "database",
    "PostgreSQL ended at once (-m immediate) and started again, three times, while studies come in and are worked on",
    "every acknowledged instance is kept, every study ends in one result; nothing stands still for 60 s",
)
def test_postgresql_restarted_in_the_middle_loses_nothing(
    start_system: StartSystem, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    with PostgreSql() as server:
        system = start_system(workers=2, stage_s=0.3, database_url=server.url)
        studies = make_studies(STUDIES)
        senders = Senders()
        for number, study in enumerate(studies):
            if number % 2:
                senders.begin(push, study, system.dicom_port, slice_pause_s=0.1, after_s=number)
            else:
                senders.begin(upload, study, system.http, after_s=number)
        for pause_s in (2.5, 3.0, 3.5):
            time.sleep(pause_s)
            server.stop(signal.SIGQUIT)
            time.sleep(1.0)
            server.start()

        senders.finish()
        check(system, pacs, studies)
        system.database.close()
