"""A DICOM Audit Message (PS3.15 A.5) and its XML (PS3.15 A.5.1)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any
from xml.etree import ElementTree  # nosec B405

from pydantic import TypeAdapter

from services.audit.codes import PATIENT_NUMBER, STUDY_INSTANCE_UID, AuditCode

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 section 2.2
_APPLICATION_SERVER = "4"  # Audit Source Type Code


class Action(StrEnum):
    """EventActionCode."""

    CREATE = "C"
    READ = "R"
    UPDATE = "U"
    DELETE = "D"
    EXECUTE = "E"


class EventOutcome(IntEnum):
    """EventOutcomeIndicator."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


@dataclass(frozen=True, slots=True)
class Participant:
    """Who took part: a person, a process or a node.

    Attributes:
        user_id: an API key's or user's name, an AE title, a process.
        address: IP address or host name.
        media: MediaType of a source or destination that is no node.
    """

    user_id: str
    is_requestor: bool
    role: AuditCode | None = None
    address: str | None = None
    alternative_user_id: str | None = None
    media: AuditCode | None = None


@dataclass(frozen=True, slots=True)
class ParticipantObject:
    """What it was done to.

    Attributes:
        instances: number of instances by SOP Class UID.
        query: what was searched with.
        details: `type` to value.
    """

    object_id: str
    id_type: AuditCode
    type_code: int | None = None
    role_code: int | None = None
    life_cycle: int | None = None
    name: str = ""
    query: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    instances: Mapping[str, int] = field(default_factory=dict)
    is_anonymized: bool | None = None


def study_object(study_instance_uid: str, instances: Mapping[str, int] | None = None) -> ParticipantObject:
    """A study, as a report (PS3.15 A.5.3)."""
    return ParticipantObject(
        study_instance_uid, STUDY_INSTANCE_UID, type_code=2, role_code=3, instances=dict(instances or {})
    )


def patient_object(patient_id: str) -> ParticipantObject:
    """A patient by the Patient ID alone: the name is left empty, the ID is enough to find the patient."""
    return ParticipantObject(patient_id, PATIENT_NUMBER, type_code=1, role_code=1)


@dataclass(frozen=True, slots=True)
class AuditMessage:
    """One event. `source` is the AuditSourceID: where it was written."""

    event: AuditCode
    action: Action
    participants: tuple[Participant, ...]
    objects: tuple[ParticipantObject, ...] = ()
    event_types: tuple[AuditCode, ...] = ()
    outcome: EventOutcome = EventOutcome.SUCCESS
    outcome_description: str = ""
    source: str = ""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def study_instance_uids(self) -> list[str]:
        return [one.object_id for one in self.objects if one.id_type == STUDY_INSTANCE_UID]

    def to_record(self) -> dict[str, Any]:
        """As JSON values; what is empty is left out."""
        record: dict[str, Any] = _MESSAGE.dump_python(self, mode="json", exclude_defaults=True)
        return record | {"time": self.time.isoformat(timespec="milliseconds")}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> AuditMessage:
        """Raises ValueError (pydantic.ValidationError is one): no audit message."""
        return _MESSAGE.validate_python(record)

    def to_xml(self) -> str:
        """The message of PS3.15 A.5.1, on one line."""
        root = ElementTree.Element("AuditMessage")
        event = _add(
            root,
            "EventIdentification",
            EventActionCode=self.action.value,
            EventDateTime=self.time.isoformat(timespec="milliseconds"),
            EventOutcomeIndicator=str(int(self.outcome)),
        )
        _add_code(event, "EventID", self.event)
        for event_type in self.event_types:
            _add_code(event, "EventTypeCode", event_type)
        if self.outcome_description:
            _add(event, "EventOutcomeDescription").text = _text(self.outcome_description)
        for participant in self.participants:
            _add_participant(root, participant)
        source = _add(root, "AuditSourceIdentification", AuditSourceID=self.source)
        _add(source, "AuditSourceTypeCode", **{"csd-code": _APPLICATION_SERVER})
        for one in self.objects:
            _add_object(root, one)
        return ElementTree.tostring(root, encoding="unicode")


_MESSAGE = TypeAdapter(AuditMessage)


def _add_participant(root: ElementTree.Element, participant: Participant) -> None:
    # NetworkAccessPointTypeCode: 1 machine name, 2 IP address.
    point_type = None
    if participant.address is not None:
        point_type = "2" if re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", participant.address) else "1"
    element = _add(
        root,
        "ActiveParticipant",
        UserID=participant.user_id,
        AlternativeUserID=participant.alternative_user_id,
        UserIsRequestor="true" if participant.is_requestor else "false",
        NetworkAccessPointID=participant.address,
        NetworkAccessPointTypeCode=point_type,
    )
    if participant.role is not None:
        _add_code(element, "RoleIDCode", participant.role)
    if participant.media is not None:
        _add_code(_add(element, "MediaIdentifier"), "MediaType", participant.media)


def _add_object(root: ElementTree.Element, one: ParticipantObject) -> None:
    element = _add(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=one.object_id,
        ParticipantObjectTypeCode=None if one.type_code is None else str(one.type_code),
        ParticipantObjectTypeCodeRole=None if one.role_code is None else str(one.role_code),
        ParticipantObjectDataLifeCycle=None if one.life_cycle is None else str(one.life_cycle),
    )
    _add_code(element, "ParticipantObjectIDTypeCode", one.id_type)
    if one.query is not None:
        _add(element, "ParticipantObjectQuery").text = base64.b64encode(one.query.encode()).decode()
    else:
        _add(element, "ParticipantObjectName").text = _text(one.name)
    for kind, value in one.details.items():
        _add(element, "ParticipantObjectDetail", type=kind, value=base64.b64encode(value.encode()).decode())
    if one.instances or one.is_anonymized is not None:
        description = _add(element, "ParticipantObjectDescription")
        for sop_class_uid, count in one.instances.items():
            _add(description, "SOPClass", UID=sop_class_uid, NumberOfInstances=str(count))
        if one.is_anonymized is not None:
            _add(description, "Anonymized").text = "true" if one.is_anonymized else "false"


def _add_code(parent: ElementTree.Element, name: str, code: AuditCode) -> None:
    _add(parent, name, **{"csd-code": code.code, "codeSystemName": code.system, "originalText": code.meaning})


def _add(parent: ElementTree.Element, name: str, **attributes: str | None) -> ElementTree.Element:
    given = {key: _text(value) for key, value in attributes.items() if value is not None}
    return ElementTree.SubElement(parent, name, given)


def _text(value: str) -> str:
    return _NOT_IN_XML.sub("\ufffd", value)
