"""What the listener writes into the audit trail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from services.audit.message import AuditMessage
from services.audit.written import written_messages
from services.ingest.intake_rules import AssociationRules, IntakeRules
from services.requestor import Requestor
from services.settings import Settings
from services.store.database import Database
from tests.services.ingest.peers import Receiving, association, ct_series, push, wait_until


def audited(settings: Settings, study: str = "") -> list[AuditMessage]:
    return list(written_messages(settings.data_dir / "audit", study))


def test_an_association_is_one_message_per_study_however_many_instances(receiving: Receiving) -> None:
    first, second = ct_series(5), ct_series(3, PatientID="PHI-4712")
    push(receiving.port, [*first, *second], calling_ae_title="CT_ROOM_1")
    wait_until(lambda: len(audited(receiving.settings)) == 4)
    for slices, count, patient in ((first, 5, "PHI-4711"), (second, 3, "PHI-4712")):
        begun, received = audited(receiving.settings, slices[0].StudyInstanceUID)
        assert (begun.event.code, received.event.code) == ("110102", "110104")
        assert received.objects[0].instances == {CTImageStorage: count}
        assert received.objects[1].object_id == patient
        source, destination = received.participants
        assert (source.user_id, source.address, source.is_requestor) == ("CT_ROOM_1", "127.0.0.1", True)
        assert destination.user_id.startswith("listener@")
        assert destination.alternative_user_id == "AETITLES=EMBOLENS"
    text = "".join(path.read_text() for path in (receiving.settings.data_dir / "audit").rglob("*.jsonl"))
    assert "Secret" not in text  # the patient's name is not needed


def test_what_was_held_already_is_audited_when_it_is_sent_again(receiving: Receiving) -> None:
    slices = ct_series(2)
    push(receiving.port, slices)
    push(receiving.port, slices, calling_ae_title="ANOTHER")
    wait_until(lambda: len(audited(receiving.settings)) == 4)
    assert audited(receiving.settings)[-1].participants[0].user_id == "ANOTHER"


@pytest.mark.fault("audit", "the listener stopped while an association is open", "its message is written first")
def test_an_open_association_is_written_down_when_the_listener_ends(receiving: Receiving) -> None:
    slices = ct_series(3)
    with association(receiving.port) as opened:
        for one in slices:
            opened.send_c_store(one)
        receiving.listener.stop()
    assert audited(receiving.settings)[-1].objects[0].instances == {CTImageStorage: 3}


def test_rejected_associations_are_alerts_the_same_ones_only_once_a_minute(
    settings: Settings, database: Database
) -> None:
    rules = IntakeRules(associations=AssociationRules(calling_ae_titles=("CT1",)))
    receiving = Receiving(settings, database, rules)
    try:
        ae = Requestor(ae_title="STRANGER")
        ae.add_requested_context(CTImageStorage)
        for _ in range(3):
            assert ae.associate("127.0.0.1", receiving.port, ae_title="EMBOLENS").is_rejected
        wait_until(lambda: audited(settings))
    finally:
        receiving.stop()
    (alert,) = audited(settings)
    assert (alert.event.code, [one.code for one in alert.event_types]) == ("110113", ["110126"])
    assert alert.outcome_description == "association rejected: calling AE title not recognized"
    assert (alert.participants[1].user_id, alert.participants[1].address) == ("STRANGER", "127.0.0.1")


@pytest.mark.fault(
    "audit",
    "the audit folder cannot be written while studies come in",
    "studies are taken in; critical lines in the log; the messages are written when the folder is back",
)
def test_without_an_audit_folder_studies_are_taken_in_and_the_messages_come_later(
    receiving: Receiving, caplog: pytest.LogCaptureFixture
) -> None:
    folder: Path = receiving.settings.data_dir / "audit"
    folder.write_text("no folder")  # also root cannot write below a file
    push(receiving.port, ct_series(2))
    wait_until(lambda: "2 messages wait in memory" in caplog.text)
    assert "the audit trail cannot be written" in caplog.text
    os.unlink(folder)
    push(receiving.port, ct_series(2))
    wait_until(lambda: len(audited(receiving.settings)) == 4)
