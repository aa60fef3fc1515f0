"""`embolens export`: a job's or a study's images and results without what names the patient."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.deidentification.exporter import Exported
    from services.settings import Settings
    from services.store.database import Database
    from services.store.rows import JobRow
    from services.store.study_store import StudyStore


def export(
    what: Annotated[str, typer.Argument(metavar="JOB|STUDY", help="A job's id, or a Study Instance UID.")],
    target: Annotated[Path, typer.Argument(help="A folder or a .zip that is not there yet.")],
    images: Annotated[bool, typer.Option(help="The CT images too, not the results alone.")] = True,
    retain_uids: Annotated[bool, typer.Option("--retain-uids", help="UIDs stay as they are.")] = False,
    modified_dates: Annotated[
        bool, typer.Option("--modified-dates", help="Dates are moved, not removed: intervals stay.")
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(help="The secret of new UIDs and IDs, made if not there; with it exports fit together."),
    ] = None,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Also images that say there is text in their pixels.")
    ] = False,
) -> None:
    """Copy CT, SEG and SR, de-identified by the Basic Profile of DICOM (PS3.15 Annex E).

    Faces in a head CT and text in pixels are not removed: docs/export.md says what is done and what is not.
    """
    from services.deidentification.cleaning import CleaningOptions
    from services.deidentification.exporter import export_files
    from services.deidentification.pseudonyms import Pseudonyms
    from services.settings import settings
    from services.store.database import Database
    from services.store.study_store import StudyStore

    database = Database(settings().resolved_database_url)
    try:
        database.upgrade()
        files = _files(what, database, StudyStore(settings().data_dir), images=images)
    finally:
        database.close()
    exported = export_files(
        files,
        target,
        Pseudonyms(None if key_file is None else _secret(key_file)),
        CleaningOptions(retain_uids=retain_uids, modified_dates=modified_dates),
        allow_burned_in=allow_burned_in,
        before_it_is_there=lambda exported: _write_down(exported, settings()),
    )
    typer.echo(f"{exported.instances} objects of {len(exported.studies)} studies in {target}")
    if left_out := sum(exported.left_out.values()):
        typer.echo(f"{left_out} pictures and documents are left out: they name the patient in pixels or text")


def _files(what: str, database: Database, store: StudyStore, *, images: bool) -> list[Path]:
    """What was received and the results; of a series that was taken in several times, the newest job's.

    Raises:
        NotFound: there is no such job or study.
        Purged: images are asked for, and of a series they are gone.
    """
    from imaging.errors import InputError, NotFound
    from services.store.jobs import JobFilter, JobStore
    from services.store.study_store import is_uid, purged

    jobs = JobStore(database)
    if is_uid(what):
        wanted = _newest(jobs.page(JobFilter(study_instance_uid=what), limit=500))
        if not wanted:
            raise NotFound(f"no study {what}", remedy="a series that is still being received has nothing to export")
    else:
        wanted = [jobs.get(str(store.job_directory(what).name))]
    if any(job.input_kind != "dicom" for job in wanted):
        raise InputError("the job was given no DICOM images", code="export.not_dicom", remedy="only DICOM is exported")
    files = []
    for job in wanted:
        if images:
            if job.inputs_purged_at is not None:
                raise purged(f"the input of job {job.id}, series {job.series_instance_uid},", job.inputs_purged_at)
            files += store.read_inputs(job.id)
        files += sorted(store.result_directory(job.id).glob("*.dcm"))
    return files


def _newest(jobs: Sequence[JobRow]) -> list[JobRow]:
    """Of each series, as each tenant sent it: the newest job that took it in; else the newest whose files are purged.

    Args:
        jobs: the newest first.
    """
    from services.store.rows import JobState

    taken_in = [job for job in reversed(jobs) if job.inputs_digest is not None or job.inputs_purged_at is not None]
    # Of the purged ones, a cancelled one has no result, and may have taken nothing in.
    taken_in.sort(key=lambda job: 2 if job.inputs_digest is not None else job.state != JobState.CANCELLED.value)
    return list({(job.tenant, job.series_instance_uid): job for job in taken_in}.values())


def _secret(path: Path) -> bytes:
    from services.secret_file import read_secret

    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32) + "\n")
    return read_secret(path).encode()


def _write_down(exported: Exported, chosen: Settings) -> None:
    """Raises EmbolensError: what leaves the house unseen does not leave it."""
    from cli.process_user import process_user
    from imaging.errors import EmbolensError
    from services.audit.codes import DISK
    from services.audit.events import Peer, Subject
    from services.audit.events import exported as write_exported
    from services.audit.trail import AuditTrail

    trail = AuditTrail(chosen, "cli")
    for study, (patient_id, instances) in exported.studies.items():
        subject = Subject(study, patient_id, instances)
        if not write_exported(trail, Peer(process_user(), None), subject, media=DISK, anonymized=True):
            raise EmbolensError(
                "nothing is exported, since the audit trail cannot be written",
                code="audit.unwritable",
                remedy="see the log",
            )
