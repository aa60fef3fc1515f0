"""What a retrieval leaves in the audit trail."""

from __future__ import annotations

import pytest
from pydicom.uid import CTImageStorage

from services.audit.codes import BEGIN_TRANSFERRING, INSTANCES_TRANSFERRED
from services.audit.written import written_messages
from services.settings import Settings
from tests.services.ingest.peers import ct_series, wait_until
from tests.services.retrieve.conftest import Archive, Fetching, node_toml


@pytest.mark.parametrize(("how", "we_asked"), [("c-get", True), ("c-move", False)])
def test_a_study_that_is_fetched_is_one_transfer_from_the_node(
    fetching: Fetching, archive: Archive, settings: Settings, how: str, we_asked: bool
) -> None:
    """With C-MOVE the node opens the association in which the images come."""
    settings.destinations.write_text(node_toml(archive.port, how))
    slices = ct_series(6)
    archive.add(*slices)
    fetching.wait_for_end(fetching.fetch(slices[0]), "completed")
    wait_until(lambda: len(list(written_messages(settings.data_dir / "audit"))) >= 2)
    begun, received = written_messages(settings.data_dir / "audit", str(slices[0].StudyInstanceUID))
    assert (begun.event, received.event) == (BEGIN_TRANSFERRING, INSTANCES_TRANSFERRED)
    assert received.objects[0].instances == {CTImageStorage: 6}
    assert received.objects[1].object_id == "PHI-4711"
    source, us = received.participants
    assert source.user_id == "ORTHANC"
    assert (source.is_requestor, us.is_requestor) == (not we_asked, we_asked)
