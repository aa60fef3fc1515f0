"""What becomes of a delivery that failed: tried again, parked, never dropped."""

from __future__ import annotations

import logging

from imaging.errors import DeliveryError
from services.settings import Settings
from services.store.jobs import utc_now
from services.store.outbox import Answer, Outbox
from services.store.rows import DeliveryState, OutboxRow

log = logging.getLogger(__name__)

# A row may be old because nobody sent it (the relay was down): only one that was tried this often is parked.
_ATTEMPTS_BEFORE_PARKING = 20
UNKNOWN_DESTINATION = "delivery.unknown_destination"


def try_later(
    outbox: Outbox,
    row: OutboxRow,
    error: DeliveryError,
    settings: Settings,
    *,
    state: DeliveryState = DeliveryState.PENDING,
    answer: Answer | None = None,
) -> None:
    """With a wait that doubles; parked when it has failed too often for too long. Never dropped."""
    if park_if_hopeless(outbox, row, error, settings, answer):
        return
    wait_s = backoff_s(row.attempts, settings)
    log.warning("job %s: delivery to %s failed, again in %g s: %s", row.job_id, row.destination, wait_s, error.message)
    outbox.postpone(row, error.message, wait_s=wait_s, state=state, answer=answer)


def park_if_hopeless(
    outbox: Outbox, row: OutboxRow, error: DeliveryError, settings: Settings, answer: Answer | None = None
) -> bool:
    """Park what was tried too often for too long; never what waits for its destination to be listed."""
    age_s = (utc_now() - row.created_at).total_seconds()
    tried_enough = row.attempts >= _ATTEMPTS_BEFORE_PARKING and age_s >= settings.delivery_park_after_s
    if not tried_enough or error.code == UNKNOWN_DESTINATION:
        return False
    log.error("job %s: delivery to %s is parked: %s", row.job_id, row.destination, error.message)
    outbox.park(row, error.message, answer)
    return True


def backoff_s(attempts: int, settings: Settings) -> float:
    """Seconds to wait after so many failed attempts: the first backoff, doubled every time, up to the longest.

    Without jitter: what failed together is due together, and so shares the next association.
    """
    doubled = settings.delivery_first_backoff_s * 2.0 ** min(attempts - 1, 32)
    return min(doubled, settings.delivery_max_backoff_s)
