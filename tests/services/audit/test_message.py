from __future__ import annotations

import getpass
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from services.audit import events
from services.audit.chain import day_files, read_signed
from services.audit.codes import DISK
from services.audit.events import Peer, Subject
from services.audit.message import AuditMessage
from services.audit.syslog_message import framed, syslog_message
from services.audit.trail import AuditTrail
from services.settings import Settings

SCHEMA = Path(__file__).with_name("audit_message.rng")
PEER = Peer("MODALITY_1", "10.0.0.7")
SUBJECT = Subject("1.2.3.4", "PAT\x01<&\"'ä", {"1.2.840.10008.5.1.4.1.1.2": 300})

# PS3.15 A.5.3: EventID, EventActionCode, EventTypeCode, roles of the participants
EVENTS: dict[str, tuple[Callable[[AuditTrail], object], str, str, list[str], list[str | None]]] = {
    "start": (lambda t: events.application_started(t, "root"), "110100", "E", ["110120"], ["110150", "110151"]),
    "stop": (lambda t: events.application_stopped(t, "root"), "110100", "E", ["110121"], ["110150", "110151"]),
    "begin": (lambda t: events.begin_receiving(t, PEER, SUBJECT), "110102", "E", [], ["110153", "110152"]),
    "received": (lambda t: events.instances_received(t, PEER, SUBJECT), "110104", "C", [], ["110153", "110152"]),
    "sent": (lambda t: events.instances_sent(t, PEER, SUBJECT), "110104", "R", [], ["110153", "110152"]),
    "not sent": (
        lambda t: events.instances_sent(t, PEER, SUBJECT, failed="A700"), "110104", "R", [], ["110153", "110152"],
    ),
    "import": (lambda t: events.imported(t, PEER, SUBJECT), "110107", "C", [], ["110152", None, "110155"]),
    "export": (lambda t: events.exported(t, PEER, SUBJECT), "110106", "R", [], [None, "110153", "110154"]),
    "anonymized": (
        lambda t: events.exported(t, PEER, SUBJECT, media=DISK, anonymized=True),
        "110106", "R", [], [None, "110153", "110154"],
    ),
    "deleted": (lambda t: events.study_deleted(t, SUBJECT), "110105", "D", [], [None]),
    "deleted by": (lambda t: events.study_deleted(t, SUBJECT, PEER), "110105", "D", [], [None, None]),
    "procedure": (lambda t: events.procedure_changed(t, PEER, SUBJECT, "cancel"), "110111", "U", [], [None, None]),
    "query": (
        lambda t: events.queried(t, PEER, "/dicom-web/studies", "PatientID=4711"),
        "110112", "E", [], ["110153", "110152"],
    ),
    "rejected": (
        lambda t: events.association_rejected(t, PEER, "address"), "110113", "E", ["110126"], [None, None],
    ),
    "refused": (
        lambda t: events.access_refused(t, PEER, "/segment", "scope"), "110113", "E", ["110132"], [None, None],
    ),
    "key made": (
        lambda t: events.security_configured(t, "root", "key made"), "110113", "E", ["110129"], [None, None],
    ),
    "login": (lambda t: events.authenticated(t, PEER, failed="key"), "110114", "E", ["110122"], [None, None]),
    "audit log": (lambda t: events.audit_log_used(t, "root", "verify"), "110101", "R", [], [None, None]),
}  # fmt: skip


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    return AuditTrail(Settings(data_dir=tmp_path, ae_title="EMBOLENS"), "gateway")


def written(trail: AuditTrail) -> list[AuditMessage]:
    lines = [
        line
        for chain in sorted(trail.directory.glob("*/"))
        for path in day_files(chain)
        for line in path.read_bytes().splitlines()
    ]
    return [AuditMessage.from_record(read_signed(line, None)["message"]) for line in lines]


def test_every_kind_of_event_is_valid_in_the_schema_of_the_standard(trail: AuditTrail, tmp_path: Path) -> None:
    files = []
    for name, (write, *_) in EVENTS.items():
        assert write(trail), name
    messages = written(trail)
    for name, message in zip(EVENTS, messages, strict=True):
        files.append(tmp_path / f"{name}.xml")
        files[-1].write_text(message.to_xml(), encoding="utf-8")
    checked = subprocess.run(
        ["xmllint", "--noout", "--relaxng", str(SCHEMA), *map(str, files)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_schema_refuses_what_is_no_audit_message(tmp_path: Path) -> None:
    file = tmp_path / "bad.xml"
    file.write_text("<AuditMessage><EventIdentification EventOutcomeIndicator='3'/></AuditMessage>")
    checked = subprocess.run(
        ["xmllint", "--noout", "--relaxng", str(SCHEMA), str(file)], capture_output=True, check=False
    )
    assert checked.returncode != 0


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_has_the_codes_and_roles_of_the_standard(name: str, trail: AuditTrail) -> None:
    write, event_id, action, event_types, roles = EVENTS[name]
    write(trail)
    root = ElementTree.fromstring(written(trail)[0].to_xml())
    event = root.find("EventIdentification")
    assert event is not None
    assert [one.get("csd-code") for one in event.findall("EventID")] == [event_id]
    assert event.get("EventActionCode") == action
    assert [one.get("csd-code") for one in event.findall("EventTypeCode")] == event_types
    found = [one.find("RoleIDCode") for one in root.findall("ActiveParticipant")]
    assert [None if one is None else one.get("csd-code") for one in found] == roles
    requestors = [one for one in root.findall("ActiveParticipant") if one.get("UserIsRequestor") == "true"]
    assert len(requestors) == 1


def test_a_study_and_its_patient_are_named_by_their_ids_alone(trail: AuditTrail) -> None:
    events.instances_received(trail, PEER, SUBJECT)
    root = ElementTree.fromstring(written(trail)[0].to_xml())
    study, patient = root.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3.4"
    assert (study.get("ParticipantObjectTypeCode"), study.get("ParticipantObjectTypeCodeRole")) == ("2", "3")
    assert study.find("ParticipantObjectDescription/SOPClass").attrib == {  # type: ignore[union-attr]
        "UID": "1.2.840.10008.5.1.4.1.1.2",
        "NumberOfInstances": "300",
    }
    assert patient.get("ParticipantObjectID") == "PAT\ufffd<&\"'ä"  # what XML cannot hold is replaced
    assert patient.findtext("ParticipantObjectName") == ""


def test_a_syslog_message_is_one_of_rfc_5424_and_its_frame_one_of_rfc_5425(trail: AuditTrail) -> None:
    events.application_started(trail, getpass.getuser())
    message = syslog_message(written(trail)[0])
    header, xml = message.split(b" - \xef\xbb\xbf", 1)
    priority_and_version, _, _, app, process, message_id = header.split(b" ")
    assert priority_and_version == b"<85>1"  # facility 10, severity 5
    assert (app, process, message_id) == (b"embolens", b"gateway", b"IHE+DICOM")
    assert xml.startswith(b"<AuditMessage>")
    assert framed(message) == str(len(message)).encode() + b" " + message
