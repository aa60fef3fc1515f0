"""What an origin server is told of a workitem in progress and at its end (PS3.3 C.30.1 and C.30.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydicom.dataset import Dataset

from services.ingest.completeness import INCOMPLETE
from services.retrieve.study_fetch import NOTHING_TO_SEGMENT
from services.worklist.input_standing import Outcome, Standing
from services.worklist.output_references import Output
from services.worklist.workitem import CANCELED, COMPLETED
from services.worklist.worklist_table import Code

# Reasons for the discontinuation of a procedure, CID 9300
EQUIPMENT_FAILURE = Code(value="110501", scheme="DCM", meaning="Equipment failure")
UNSPECIFIED = Code(value="110513", scheme="DCM", meaning="Discontinued for unspecified reason")
INCORRECTLY_FORMATTED = Code(value="110521", scheme="DCM", meaning="Objects incorrectly formatted")
NOT_SUPPORTED = Code(value="110522", scheme="DCM", meaning="Object Types not supported")
OBJECT_SET_INCOMPLETE = Code(value="110523", scheme="DCM", meaning="Object Set incomplete")

_MOST_CHARACTERS = 1024  # VR ST; Reason For Cancellation (LT) would take more
_INCOMPLETE_CODES = (INCOMPLETE, "geometry.missing_slices")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a workitem ends: `COMPLETED`, or `CANCELED` for a reason."""

    state: str
    text: str
    reason: Code | None = None


def ending_of(standings: Sequence[Standing], cancel_reason: str | None) -> Ending:
    """COMPLETED where an analysis was made and nothing else went wrong.

    Where nothing could be said of any input, the goal of the workitem was not met: it is CANCELED, and its output is
    the report that says so (PS3.17 GGG.3.1). An empty answer never looks like a finished analysis.
    """
    if not standings:
        return Ending(CANCELED, "the workitem names no CT series", NOT_SUPPORTED)
    for outcome in (Outcome.CANCELLED, Outcome.FAILED, Outcome.INCOMPLETE):
        for one in standings:
            if one.outcome is outcome:
                return _canceled(one, cancel_reason)
    analysed = [one for one in standings if one.outcome is Outcome.ANALYSED]
    if analysed:
        return Ending(COMPLETED, ", ".join(one.text for one in analysed))
    return _canceled(standings[0], cancel_reason)


def _canceled(standing: Standing, cancel_reason: str | None) -> Ending:
    match standing.outcome:
        case Outcome.CANCELLED if cancel_reason is not None:
            return Ending(CANCELED, f"cancelled as requested: {cancel_reason}", UNSPECIFIED)
        case Outcome.CANCELLED:
            return Ending(CANCELED, f"cancelled: {standing.text}", UNSPECIFIED)
        case Outcome.FAILED:
            return Ending(CANCELED, f"failed: {standing.text}", EQUIPMENT_FAILURE)
        case Outcome.INCOMPLETE:
            return Ending(CANCELED, f"inputs incomplete: {standing.text}", OBJECT_SET_INCOMPLETE)
        case _:
            return Ending(CANCELED, f"not analysable: {standing.text}", _why_not_analysable(standing.code))


def _why_not_analysable(code: str) -> Code:
    if code in _INCOMPLETE_CODES:
        return OBJECT_SET_INCOMPLETE
    if code.startswith("input."):
        return INCORRECTLY_FORMATTED
    return NOT_SUPPORTED if code in (NOTHING_TO_SEGMENT, "intake.modality") else UNSPECIFIED


def progress_report(percent: int, text: str) -> Dataset:
    changes = Dataset()
    changes.ProcedureStepProgressInformationSequence = [_progress(percent, text)]
    return changes


def final_report(
    ending: Ending,
    *,
    percent: int,
    station: Code,
    workitem_code: Code,
    started_at: datetime,
    ended_at: datetime,
    outputs: Iterable[Output],
) -> Dataset:
    """All that PS3.4 Table CC.2.5-3 wants before the state may become final, whichever of the two it is."""
    progress = _progress(percent, ending.text)
    if ending.reason is not None:
        progress.ProcedureStepCancellationDateTime = _date_time(ended_at)
        progress.ReasonForCancellation = ending.text[:_MOST_CHARACTERS]
        progress.ProcedureStepDiscontinuationReasonCodeSequence = [_coded(ending.reason)]
    performed = Dataset()
    performed.PerformedStationNameCodeSequence = [_coded(station)]
    performed.PerformedProcedureStepStartDateTime = _date_time(started_at)
    performed.PerformedProcedureStepEndDateTime = _date_time(ended_at)
    performed.PerformedWorkitemCodeSequence = [_coded(workitem_code)]
    performed.PerformedProcedureStepDescription = ending.text[:64]
    performed.OutputInformationSequence = [_referenced(one) for one in outputs]
    changes = Dataset()
    changes.ProcedureStepProgressInformationSequence = [progress]
    changes.UnifiedProcedureStepPerformedProcedureSequence = [performed]
    return changes


def _progress(percent: int, text: str) -> Dataset:
    item = Dataset()
    item.ProcedureStepProgress = percent
    item.ProcedureStepProgressDescription = text[:_MOST_CHARACTERS]
    return item


def _referenced(output: Output) -> Dataset:
    """Referenced Instances and Access Macro (PS3.3 Table 10-3b)."""
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID = output.study_instance_uid
    item.SeriesInstanceUID = output.series_instance_uid
    item.ReferencedSOPSequence = [
        _item(ReferencedSOPClassUID=sop_class_uid, ReferencedSOPInstanceUID=sop_instance_uid)
        for sop_class_uid, sop_instance_uid in output.objects
    ]
    if output.ae_titles:
        item.DICOMRetrievalSequence = [_item(RetrieveAETitle=ae_title) for ae_title in output.ae_titles]
    if output.urls:
        item.WADORSRetrievalSequence = [_item(RetrieveURL=url) for url in output.urls]
    return item


def _item(**attributes: str) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _coded(code: Code) -> Dataset:
    return _item(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning)


def _date_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f%z")
