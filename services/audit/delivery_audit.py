"""What the relay writes down: which results went where, one message per job, destination and batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from urllib.parse import urlsplit

from imaging.errors import DeliveryError
from services.audit.events import Peer, Subject, begin_sending, exported, instances_sent
from services.audit.repeats import Repeats, with_count
from services.audit.subjects import subject_of_job
from services.audit.trail import AuditTrail
from services.delivery.destinations import Destination
from services.store.rows import OutboxRow
from services.store.study_store import StudyStore

_FAILURE_EVERY_S = 3600.0  # of a job to a destination: attempts go on for a day


class DeliveryAudit:
    """Of one relay."""

    def __init__(self, trail: AuditTrail, store: StudyStore) -> None:
        self._trail = trail
        self._store = store
        self._begun, self._failures = Repeats(_FAILURE_EVERY_S), Repeats(_FAILURE_EVERY_S)

    def attempt(self, destination: str, listed: Destination | None, rows: Sequence[OutboxRow]) -> AuditedAttempt:
        """Rows are about to be sent to one destination. What is written now stays where the process is killed."""
        peer = Peer(destination, _address(listed))
        for job_id, of_job in _by_job(row for row in rows if row.sop_class_uid is not None):
            if self._begun.left_out((destination, job_id)) is not None:
                begin_sending(self._trail, peer, self._subject(job_id, of_job))
        return AuditedAttempt(self, peer)

    def write(self, peer: Peer, rows: Sequence[OutboxRow], code: str | None) -> None:
        """These rows have arrived, or with a code, failed: then what was sent of them is not known."""
        for job_id, of_job in _by_job(rows):
            failed = None
            if code is not None:
                left_out = self._failures.left_out((peer.name, job_id))
                if left_out is None:
                    continue
                failed = with_count(code, left_out)
            subject = self._subject(job_id, of_job)
            if subject.instances:
                instances_sent(self._trail, peer, subject, failed=failed)
            if any(row.message_id is not None for row in of_job):
                exported(self._trail, peer, replace(subject, instances={}), failed=failed)

    def _subject(self, job_id: str, rows: Sequence[OutboxRow]) -> Subject:
        instances = Counter(row.sop_class_uid for row in rows if row.sop_class_uid is not None)
        return replace(subject_of_job(self._store, job_id), instances=dict(instances))


class AuditedAttempt:
    """One batch to one destination. Call `end` whatever happens."""

    def __init__(self, audit: DeliveryAudit, peer: Peer) -> None:
        self._audit = audit
        self._peer = peer
        self._arrived: list[OutboxRow] = []
        self._failed: list[OutboxRow] = []
        self._code = ""

    def ended(self, row: OutboxRow, error: DeliveryError | None) -> None:
        if error is None:
            self._arrived.append(row)
        else:
            self._failed.append(row)
            self._code = error.code

    def end(self) -> None:
        self._audit.write(self._peer, self._arrived, None)
        self._audit.write(self._peer, self._failed, self._code)


def _by_job(rows: Iterable[OutboxRow]) -> Iterator[tuple[str, list[OutboxRow]]]:
    for job_id, of_job in groupby(sorted(rows, key=lambda row: row.job_id), key=lambda row: row.job_id):
        yield job_id, list(of_job)


def _address(listed: Destination | None) -> str | None:
    """The host; of a folder there is none."""
    if listed is None:
        return None
    url = getattr(listed, "url", None)
    return urlsplit(str(url)).hostname if url is not None else getattr(listed, "host", None)
