"""A workitem whose images lie in the archive: fetched, analysed, sent back to it, and completed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydicom.dataset import Dataset

from services.embedded_redis import free_port
from services.settings import Settings
from services.store.database import Database
from tests.services.ingest.peers import ct_series, jobs_of, wait_until
from tests.services.retrieve.conftest import Archive, archive, node_toml
from tests.services.worklist.conftest import Site, destinations_toml, wait_for_state
from tests.services.worklist.origin_server import OriginServer, input_of, workitem

__all__ = ["archive"]  # a fixture


def test_images_are_fetched_from_whom_the_workitem_names_and_the_result_is_where_it_says(
    archive: Archive,
    settings: Settings,
    database: Database,
    origin: OriginServer,
    angiogram: Callable[..., list[Dataset]],
    tmp_path: Path,
) -> None:
    settings = settings.model_copy(update={"dicom_port": free_port(), "gateway_url": ""})
    toml = destinations_toml(origin, tmp_path, nodes=node_toml(archive.port))
    settings.destinations.write_text(toml.replace('to = ["folder:results"]', 'to = ["origin"]'))
    slices = angiogram(name="archived")
    other_series = ct_series(2, StudyInstanceUID=slices[0].StudyInstanceUID)
    archive.add(*slices, *other_series)
    site = Site(settings, database)
    try:
        held = origin.add(workitem(input_of(slices, ae_title="ORTHANC"), ScheduledProcedureStepPriority="HIGH"))
        (job,) = site.wait_for_state(slices[0], "queued")
        assert (job.priority, job.instance_count) == ("stat", len(slices))
        assert not jobs_of(site.jobs, other_series[0]), "only the series that is named is fetched"
        assert any(text == "fetching the images" for _, text in held.progress)
        site.analyse(job)
        site.deliver()
        wait_for_state(held, "IN PROGRESS", "COMPLETED")
        (seg,) = archive.orthanc.instances(modality="SEG")
        outputs = {
            one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID: one
            for one in held.performed.OutputInformationSequence
        }
        assert len(outputs) == 2, "SEG and SR: what was sent nowhere is not promised"
        uid = seg["MainDicomTags"]["SOPInstanceUID"]
        assert outputs[uid].DICOMRetrievalSequence[0].RetrieveAETitle == "ORTHANC"
        assert "WADORSRetrievalSequence" not in outputs[uid]

        unknown = origin.add(workitem(input_of(ct_series(2), ae_title="ORTHANC")))
        elsewhere = origin.add(workitem(input_of(ct_series(2), ae_title="NOBODY")))
        for one in (unknown, elsewhere):
            wait_for_state(one, "IN PROGRESS", "CANCELED")
            code = one.information.ProcedureStepDiscontinuationReasonCodeSequence[0]
            assert code.CodeMeaning == "Object Set incomplete"
        assert "ORTHANC has no study" in unknown.information.ReasonForCancellation
    finally:
        site.stop()


def test_a_cancelled_workitem_stops_its_retrieval(
    archive: Archive,
    settings: Settings,
    database: Database,
    origin: OriginServer,
    tmp_path: Path,
) -> None:
    settings = settings.model_copy(update={"retrieve_first_backoff_s": 60.0, "dicom_port": free_port()})
    silent = node_toml(free_port(), ae_title="SILENT")
    settings.destinations.write_text(destinations_toml(origin, tmp_path, nodes=silent))
    site = Site(settings, database)
    try:
        held = origin.add(workitem(input_of(ct_series(2), ae_title="SILENT")))
        wait_until(lambda: held.state == "IN PROGRESS" and origin.channels.get("EMBOLENS"))
        wait_until(lambda: site.retrievals.page(limit=1))
        origin.request_cancel(held.dataset.SOPInstanceUID)
        wait_for_state(held, "IN PROGRESS", "CANCELED")
        (retrieval,) = site.retrievals.page(limit=2)
        assert retrieval.cancel_requested
        assert held.information.ReasonForCancellation == "cancelled as requested: no reason given"
    finally:
        site.stop()
