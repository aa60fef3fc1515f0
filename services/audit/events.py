"""What is written down: one function for every kind of event (PS3.15 A.5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from services.audit.codes import (
    APPLICATION,
    APPLICATION_ACTIVITY,
    APPLICATION_LAUNCHER,
    APPLICATION_START,
    APPLICATION_STOP,
    AUDIT_LOG_USED,
    BEGIN_TRANSFERRING,
    DESTINATION,
    DESTINATION_MEDIA,
    EXPORT,
    IMPORT,
    INSTANCES_TRANSFERRED,
    LOGIN,
    NODE_AUTHENTICATION,
    NODE_ID,
    PROCEDURE_RECORD,
    QUERY,
    RESTRICTED_FUNCTION,
    SECURITY_ALERT,
    SECURITY_CONFIGURATION,
    SOURCE,
    SOURCE_MEDIA,
    STUDY_DELETED,
    URI,
    URI_MEDIA,
    USER_AUTHENTICATION,
    AuditCode,
)
from services.audit.message import (
    Action,
    AuditMessage,
    EventOutcome,
    Participant,
    ParticipantObject,
    patient_object,
    study_object,
)
from services.audit.trail import AuditTrail

_DE_IDENTIFICATION = 7  # ParticipantObjectDataLifeCycle


class Peer(NamedTuple):
    """Whoever is at the other end: an AE title, the name of an API key, a user; and from where."""

    name: str
    address: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """A study that something was done to. `instances`: how many by SOP Class UID, where that is known."""

    study_instance_uid: str
    patient_id: str = ""
    instances: Mapping[str, int] = field(default_factory=dict)
    job_id: str | None = None

    def objects(self) -> tuple[ParticipantObject, ParticipantObject]:
        """The study, or the job where it is of no DICOM study; and the patient."""
        details = {} if self.job_id is None else {"Job": self.job_id}
        if not self.study_instance_uid and self.job_id is not None:
            study = ParticipantObject(f"urn:uuid:{self.job_id}", URI, type_code=2, role_code=3, details=details)
        else:
            study = replace(study_object(self.study_instance_uid, self.instances), details=details)
        return study, patient_object(self.patient_id)


def application_started(trail: AuditTrail, user: str) -> bool:
    """A process has begun to work; `user` is who it runs as."""
    return trail.write(_application(trail, user, APPLICATION_START))


def application_stopped(trail: AuditTrail, user: str) -> bool:
    return trail.write(_application(trail, user, APPLICATION_STOP))


def begin_receiving(trail: AuditTrail, peer: Peer, subject: Subject) -> bool:
    """The first instance of a study has come over an association."""
    return trail.write(
        AuditMessage(
            BEGIN_TRANSFERRING,
            Action.EXECUTE,
            (_node(peer, SOURCE, is_requestor=True), trail.us(DESTINATION)),
            subject.objects(),
        )
    )


def begin_sending(trail: AuditTrail, peer: Peer, subject: Subject) -> bool:
    """Instances of one study are about to be sent to a node."""
    return trail.write(
        AuditMessage(
            BEGIN_TRANSFERRING,
            Action.EXECUTE,
            (trail.us(SOURCE, is_requestor=True), _node(peer, DESTINATION, is_requestor=False)),
            subject.objects(),
        )
    )


def instances_received(trail: AuditTrail, peer: Peer, subject: Subject, *, we_asked: bool = False) -> bool:
    """Instances of one study lie here. `we_asked`: they were fetched."""
    return trail.write(
        AuditMessage(
            INSTANCES_TRANSFERRED,
            Action.CREATE,
            (_node(peer, SOURCE, is_requestor=not we_asked), trail.us(DESTINATION, is_requestor=we_asked)),
            subject.objects(),
        )
    )


def instances_sent(
    trail: AuditTrail, peer: Peer, subject: Subject, *, they_asked: bool = False, failed: str | None = None
) -> bool:
    """Instances of one study went to a node, or to a client that retrieved them; or could not."""
    return trail.write(
        AuditMessage(
            INSTANCES_TRANSFERRED,
            Action.READ,
            (trail.us(SOURCE, is_requestor=not they_asked), _node(peer, DESTINATION, is_requestor=they_asked)),
            subject.objects(),
            outcome=_outcome_of(failed),
            outcome_description=failed or "",
        )
    )


def imported(trail: AuditTrail, peer: Peer, subject: Subject) -> bool:
    """A study was uploaded."""
    media = Participant(peer.name, is_requestor=False, role=SOURCE_MEDIA, address=peer.address, media=URI_MEDIA)
    return trail.write(
        AuditMessage(
            IMPORT, Action.CREATE, (_node(peer, DESTINATION, is_requestor=True), trail.us(), media), subject.objects()
        )
    )


def exported(
    trail: AuditTrail,
    peer: Peer,
    subject: Subject,
    *,
    media: AuditCode = URI_MEDIA,
    anonymized: bool = False,
    failed: str | None = None,
) -> bool:
    """A result or a study left the system as a file, a message, or on a medium."""
    study, patient = subject.objects()
    if anonymized:
        study = replace(study, life_cycle=_DE_IDENTIFICATION, is_anonymized=True)
    target = Participant(peer.name, is_requestor=False, role=DESTINATION_MEDIA, address=peer.address, media=media)
    return trail.write(
        AuditMessage(
            EXPORT,
            Action.READ,
            (_node(peer, None, is_requestor=True), trail.us(SOURCE), target),
            (study, patient),
            outcome=_outcome_of(failed),
            outcome_description=failed or "",
        )
    )


def study_deleted(trail: AuditTrail, subject: Subject, peer: Peer | None = None) -> bool:
    """A study's files were deleted: by the retention rules, or by somebody."""
    who = () if peer is None else (_node(peer, None, is_requestor=True),)
    participants = (*who, trail.us(is_requestor=peer is None))
    return trail.write(AuditMessage(STUDY_DELETED, Action.DELETE, participants, subject.objects()))


def procedure_changed(trail: AuditTrail, peer: Peer, subject: Subject, what: str) -> bool:
    """A job of the study was cancelled, or asked for again."""
    return trail.write(
        AuditMessage(
            PROCEDURE_RECORD,
            Action.UPDATE,
            (_node(peer, None, is_requestor=True), trail.us()),
            subject.objects(),
            outcome_description=what,
        )
    )


def queried(trail: AuditTrail, peer: Peer, path: str, query: str) -> bool:
    """Somebody searched; the query is in the message."""
    searched = ParticipantObject(path, URI, type_code=2, role_code=24, query=query)
    return trail.write(
        AuditMessage(
            QUERY,
            Action.EXECUTE,
            (_node(peer, SOURCE, is_requestor=True), trail.us(DESTINATION)),
            (searched,),
        )
    )


def association_rejected(trail: AuditTrail, peer: Peer, why: str) -> bool:
    """A node may not connect."""
    node = ParticipantObject(
        peer.name, NODE_ID, type_code=2, role_code=13, details={"Alert Description": why}, name=peer.name
    )
    return trail.write(_alert(trail, peer, NODE_AUTHENTICATION, why, node))


def access_refused(trail: AuditTrail, peer: Peer, path: str, why: str) -> bool:
    """A caller who is known may not do this."""
    wanted = ParticipantObject(path, URI, type_code=2, role_code=13, details={"Alert Description": why}, name=path)
    return trail.write(_alert(trail, peer, RESTRICTED_FUNCTION, why, wanted))


def security_configured(trail: AuditTrail, user: str, what: str) -> bool:
    """Somebody has changed who may do what: an API key made, rotated or taken away."""
    key = ParticipantObject(
        trail.directory.parent.as_uri(), URI, type_code=2, role_code=13, details={"Alert Description": what}
    )
    return trail.write(
        AuditMessage(
            SECURITY_ALERT,
            Action.EXECUTE,
            (Participant(user, is_requestor=True), trail.us()),
            (key,),
            event_types=(SECURITY_CONFIGURATION,),
            outcome_description=what,
        )
    )


def authenticated(trail: AuditTrail, peer: Peer, *, failed: str | None = None) -> bool:
    """A caller has shown who he is, or could not."""
    return trail.write(
        AuditMessage(
            USER_AUTHENTICATION,
            Action.EXECUTE,
            (_node(peer, None, is_requestor=True), trail.us()),
            event_types=(LOGIN,),
            outcome=_outcome_of(failed),
            outcome_description=failed or "",
        )
    )


def audit_log_used(trail: AuditTrail, user: str, what: str) -> bool:
    """The audit trail was read or verified."""
    used = ParticipantObject(trail.directory.as_uri(), URI, type_code=2, role_code=13, name="Security Audit Log")
    return trail.write(
        AuditMessage(
            AUDIT_LOG_USED,
            Action.READ,
            (Participant(user, is_requestor=True), trail.us()),
            (used,),
            outcome_description=what,
        )
    )


def _application(trail: AuditTrail, user: str, which: AuditCode) -> AuditMessage:
    launcher = Participant(user, is_requestor=True, role=APPLICATION_LAUNCHER)
    return AuditMessage(APPLICATION_ACTIVITY, Action.EXECUTE, (trail.us(APPLICATION), launcher), event_types=(which,))


def _alert(trail: AuditTrail, peer: Peer, kind: AuditCode, why: str, subject: ParticipantObject) -> AuditMessage:
    return AuditMessage(
        SECURITY_ALERT,
        Action.EXECUTE,
        (trail.us(is_requestor=True), _node(peer, None, is_requestor=False)),
        (subject,),
        event_types=(kind,),
        outcome=EventOutcome.MINOR_FAILURE,
        outcome_description=why,
    )


def _node(peer: Peer, role: AuditCode | None, *, is_requestor: bool) -> Participant:
    return Participant(peer.name, is_requestor, role, peer.address)


def _outcome_of(failed: str | None) -> EventOutcome:
    return EventOutcome.SUCCESS if failed is None else EventOutcome.MINOR_FAILURE
