from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import update
from typer.testing import CliRunner

from cli.app import app
from imaging.errors import EmbolensError, Purged
from services.audit.codes import EXPORT
from services.audit.written import written_messages
from services.dicom.result_files import write_results
from services.dicom.series_reader import read_series
from services.settings import Settings, settings
from services.store.database import Database
from services.store.jobs import JobStore, utc_now
from services.store.rows import JobRow, Priority
from services.store.study_store import StudyStore
from tests.services.dicom.made_series import IDENTITY, made_result, written_series


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("EMBOLENS_DATA_DIR", str(tmp_path / "data"))
    settings.cache_clear()
    yield settings()
    settings.cache_clear()


@pytest.fixture
def job_id(chosen: Settings) -> str:
    """An uploaded series with a result."""
    job_id = str(uuid.uuid4())
    store, database = StudyStore(chosen.data_dir), Database(chosen.resolved_database_url)
    database.upgrade()
    files = written_series(store.upload_directory(job_id))
    header = dcmread(files[0])
    JobStore(database).submit(
        job_id,
        input_kind="dicom",
        inputs_digest=store.write_inputs(job_id, files),
        instance_count=len(files),
        priority=Priority.ROUTINE,
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=header.SeriesInstanceUID,
        idempotency_key=None,
        request_digest=None,
        warnings=(),
    )
    source = read_series(files)
    write_results(source, made_result(source.volume), store.result_directory(job_id), IDENTITY)
    database.close()
    return job_id


def test_a_job_is_exported_and_written_down(job_id: str, chosen: Settings, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", job_id, str(tmp_path / "out.zip")])
    assert result.exit_code == 0, result.output
    assert "8 objects of 1 studies" in result.output
    (message,) = written_messages(chosen.data_dir / "audit")
    assert message.event == EXPORT
    assert message.objects[0].is_anonymized
    assert message.objects[1].object_id == "PHANTOM-1"
    assert sum(message.objects[0].instances.values()) == 8


def test_with_a_key_two_exports_of_a_study_fit_together(job_id: str, chosen: Settings, tmp_path: Path) -> None:
    study = dcmread(next(StudyStore(chosen.data_dir).upload_directory(job_id).glob("*.dcm"))).StudyInstanceUID
    key = tmp_path / "key"
    for name, what in (("one", job_id), ("two", str(study))):
        arguments = ["export", what, str(tmp_path / name), "--key-file", str(key)]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert key.stat().st_mode & 0o077 == 0
    one, two = ({path.name for path in (tmp_path / name).rglob("*.dcm")} for name in ("one", "two"))
    assert one == two
    results_alone = CliRunner().invoke(app, ["export", job_id, str(tmp_path / "three"), "--no-images"])
    assert "2 objects" in results_alone.output


class TestAReceivedSeries:
    @pytest.fixture
    def jobs(self, chosen: Settings) -> Iterator[JobStore]:
        database = Database(chosen.resolved_database_url)
        database.upgrade()
        yield JobStore(database)
        database.close()

    @pytest.fixture
    def received(self, chosen: Settings, jobs: JobStore, tmp_path: Path) -> JobRow:
        return self.receive(written_series(tmp_path / "series"), StudyStore(chosen.data_dir), jobs)

    def receive(self, files: list[Path], store: StudyStore, jobs: JobStore, tenant: str = "default") -> JobRow:
        header = dcmread(files[0], stop_before_pixels=True)
        series = {"study_instance_uid": header.StudyInstanceUID, "series_instance_uid": header.SeriesInstanceUID}
        directory = store.series_directory(*series.values(), tenant=tenant)
        directory.mkdir(parents=True)
        copies = [Path(shutil.copy(path, directory)) for path in files]
        job = jobs.open_receiving(**series, calling_ae_title="CT", tenant=tenant)
        digest = store.write_inputs(job.id, copies)
        jobs.complete_intake(job.id, inputs_digest=digest, instance_count=len(copies), completion_reason="test")
        return job

    def test_a_job_that_took_nothing_in_hides_no_other(self, received: JobRow, jobs: JobStore, tmp_path: Path) -> None:
        study, series = str(received.study_instance_uid), str(received.series_instance_uid)
        again = jobs.open_receiving(study_instance_uid=study, series_instance_uid=series, calling_ae_title="CT")
        arguments = ["export", study, str(tmp_path / "while")]
        assert "6 objects" in CliRunner().invoke(app, arguments).output
        jobs.cancel(again.id)
        assert "6 objects" in CliRunner().invoke(app, [*arguments[:2], str(tmp_path / "after")]).output

    def test_what_two_tenants_hold_is_exported_once(
        self, received: JobRow, chosen: Settings, jobs: JobStore, tmp_path: Path
    ) -> None:
        files = sorted((tmp_path / "series").iterdir())
        self.receive(files, StudyStore(chosen.data_dir), jobs, tenant="cardiology")
        result = CliRunner().invoke(app, ["export", str(received.study_instance_uid), str(tmp_path / "out")])
        assert "6 objects" in result.output
        assert len(list((tmp_path / "out").rglob("*.dcm"))) == 6

    def test_what_is_purged_is_said_to_be(self, received: JobRow, chosen: Settings, tmp_path: Path) -> None:
        database = Database(chosen.resolved_database_url)
        with database.write() as session:
            session.execute(update(JobRow).values(inputs_purged_at=utc_now(), inputs_digest=None))
        database.close()
        for what in (received.id, str(received.study_instance_uid)):
            result = CliRunner().invoke(app, ["export", what, str(tmp_path / "out")])
            assert isinstance(result.exception, Purged)
            assert str(received.series_instance_uid) in str(result.exception)


@pytest.mark.fault("privacy", "the audit trail cannot be written during an export", "nothing is exported")
def test_nothing_leaves_without_an_audit_trail(job_id: str, chosen: Settings, tmp_path: Path) -> None:
    (chosen.data_dir / "audit").write_text("no folder")
    result = CliRunner().invoke(app, ["export", job_id, str(tmp_path / "out")])
    assert isinstance(result.exception, EmbolensError)
    assert result.exception.code == "audit.unwritable"
    assert not (tmp_path / "out").exists()
