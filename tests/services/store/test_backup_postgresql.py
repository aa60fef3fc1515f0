"""The backup that docs/operations.md describes for PostgreSQL, with its own tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sqlalchemy import create_engine, text

from services.store.backup import back_up
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import JobState
from services.store.study_store import StudyStore
from tests.services.ingest.peers import ct_series


def test_a_dump_and_the_files_copied_after_it_are_a_site(postgresql_url: str, tmp_path: Path) -> None:
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    server = postgresql_url.partition("?host=")[2]
    admin = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE live"))
        connection.execute(text("CREATE DATABASE restored"))
    live = Database(postgresql_url.replace("/postgres?", "/live?"))
    live.upgrade()
    store, jobs = StudyStore(tmp_path / "data"), JobStore(live)
    one = ct_series(1)[0]
    study, series = str(one.StudyInstanceUID), str(one.SeriesInstanceUID)
    job = jobs.open_receiving(study_instance_uid=study, series_instance_uid=series, calling_ae_title="CT1")
    path = store.instance_path(study, series, one.SOPInstanceUID)
    with store.arriving_file(path) as file:
        one.save_as(file, enforce_file_format=True)
    digest = store.write_inputs(job.id, [path])
    jobs.complete_intake(job.id, inputs_digest=digest, instance_count=1, completion_reason="test")

    dump = tmp_path / "embolens.dump"
    connecting = ["--host", server, "--username", "embolens"]
    subprocess.run([tools / "pg_dump", *connecting, "--format=custom", f"--file={dump}", "live"], check=True)
    made = back_up(live, store, tmp_path / "backup")
    jobs.cancel(job.id)
    subprocess.run([tools / "pg_restore", *connecting, "--dbname=restored", dump], check=True)

    assert not made.has_database
    restored = Database(postgresql_url.replace("/postgres?", "/restored?"))
    restored.upgrade()
    again, files = JobStore(restored).get(job.id), StudyStore(tmp_path / "backup")
    assert again.state == JobState.QUEUED
    assert files.inputs_digest(files.read_inputs(job.id)) == again.inputs_digest
    live.close()
    restored.close()
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE live"))
        connection.execute(text("DROP DATABASE restored"))
    admin.dispose()
