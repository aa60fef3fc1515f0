"""What the listener writes down: who sent which study, one message per association and study; and who was rejected."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pynetdicom import evt
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE

from services.audit.events import Peer, Subject, association_rejected, begin_receiving, instances_received
from services.audit.repeats import Repeats, with_count
from services.audit.subjects import subject_in
from services.audit.trail import AuditTrail

_REJECTED_PERMANENTLY = 0x01  # PS3.8 9.3.4; transient is congestion, no alert
_REASONS = {0x03: "calling AE title not recognized", 0x07: "called AE title not recognized"}
_ALERT_EVERY_S = 60.0


@dataclass
class _Received:
    """What one association has brought of one study."""

    peer: Peer
    patient_id: str
    we_asked: bool
    instances: Counter[str] = field(default_factory=Counter)


class AssociationAudit:
    """Of one listener."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._received: dict[tuple[threading.Thread, str], _Received] = {}
        self._lock = threading.Lock()
        self._rejected = Repeats(_ALERT_EVERY_S)

    def handlers(self) -> list[evt.EventHandlerType]:
        """For the associations that others open."""
        return [(evt.EVT_ACSE_SENT, self._look_for_rejection), (evt.EVT_CONN_CLOSE, self._connection_closed)]

    def took_in(
        self, association: threading.Thread, peer: Peer, study_instance_uid: str, sop_class_uid: str, path: Path
    ) -> None:
        """An instance lies under `path`. Of the first one of a study a message says that the transfer has begun."""
        key = (association, study_instance_uid)
        with self._lock:
            if (known := self._received.get(key)) is not None:
                known.instances[sop_class_uid] += 1
                return
            # A connection may close while its last instance is being stored.
            ended = [one for one in self._received if not one[0].is_alive()]
        self._write(ended)
        subject = subject_in(path) or Subject(study_instance_uid)
        received = _Received(peer, subject.patient_id, we_asked=not getattr(association, "is_acceptor", False))
        received.instances[sop_class_uid] += 1
        with self._lock:
            self._received[key] = received
        begin_receiving(self._trail, peer, Subject(study_instance_uid, received.patient_id))

    def fetched(self, study_instance_uid: str) -> None:
        """A retrieval of ours has ended."""
        with self._lock:
            keys = [key for key, one in self._received.items() if one.we_asked and key[1] == study_instance_uid]
        self._write(keys)

    def end_all(self) -> None:
        """The listener ends."""
        with self._lock:
            keys = list(self._received)
        self._write(keys)

    def _connection_closed(self, event: Event) -> None:
        with self._lock:
            keys = [key for key in self._received if key[0] is event.assoc]
        self._write(keys)

    def _write(self, keys: list[tuple[threading.Thread, str]]) -> None:
        for key in keys:
            with self._lock:
                received = self._received.pop(key, None)
            if received is not None:
                subject = Subject(key[1], received.patient_id, dict(received.instances))
                instances_received(self._trail, received.peer, subject, we_asked=received.we_asked)

    def _look_for_rejection(self, event: Event) -> None:
        primitive: object = getattr(event, "primitive", None)
        if not isinstance(primitive, A_ASSOCIATE) or primitive.result != _REJECTED_PERMANENTLY:
            return
        requestor = event.assoc.requestor
        asked = requestor.primitive  # `requestor.ae_title` is known only of those who were let in
        peer = Peer("" if asked is None else asked.calling_ae_title.strip(), requestor.address)
        left_out = self._rejected.left_out(peer)
        if left_out is not None:
            why = f"association rejected: {_REASONS.get(primitive.diagnostic or 0, 'not an allowed node')}"
            association_rejected(self._trail, peer, with_count(why, left_out))
