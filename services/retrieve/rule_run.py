"""One run of a rule: which studies of a node are to be fetched."""

from __future__ import annotations

from imaging.errors import Cancelled
from services.ingest.intake_rules import IntakeRules
from services.retrieve.found import Archive
from services.retrieve.rules import StudyQuery
from services.retrieve.study_fetch import why_skipped
from services.store.retrievals import RetrievalStore
from services.store.rows import Priority, RetrievalRow


def request_studies(row: RetrievalRow, archive: Archive, retrievals: RetrievalStore, rules: IntakeRules) -> None:
    """Ask for every study that the rule fits and that is neither here nor asked for already.

    Broken off and run again it asks for no study twice.

    Raises:
        NodeUnavailable: the node does not answer.
        Cancelled: somebody asked for the run to stop.
    """
    query = StudyQuery.model_validate(row.rule)
    studies = archive.studies(modality=query.modality, study_dates=query.study_dates)
    for study in studies:
        if retrievals.is_cancel_requested(row.id):
            raise Cancelled(f"retrieval {row.id} was cancelled")
        if retrievals.is_known(study.study_instance_uid, row.node, tenant=row.tenant):
            continue
        series = archive.series(study.study_instance_uid, with_contrast=query.contrast)
        if any(why_skipped(one, study, rules, query) is None for one in series):
            retrievals.request_study(
                node=row.node,
                study_instance_uid=study.study_instance_uid,
                priority=Priority(row.priority),
                rule=row.rule,
                parent_id=row.id,
                tenant=row.tenant,
            )
    retrievals.record_studies(row.id, len(studies))
