"""The error tree of the whole product, drawn in one place.

EmbolensError
├── InputError                what was handed in cannot be taken (HTTP 4xx, exit code 3)
│   └── InputTooLarge         over a limit of size, count or ratio (HTTP 413)
├── NotAnalysable             well-formed, but no statement about emboli can be made of it (coded reasons)
├── ConfigurationError        settings, model package or rules are wrong; an operator must act
├── NotAuthenticated          nobody has said who asks, or not so that it can be believed (HTTP 401)
├── NotPermitted              who asks may not do this (HTTP 403)
├── TooManyRequests           who asks does so too often (HTTP 429)
├── IssuerUnavailable         a token cannot be checked, since its issuer does not answer (HTTP 503)
├── NotFound                  no such job, file or node
│   └── Purged                was here, and was taken away by retention (HTTP 410)
├── StateConflict             the job's state does not allow what was asked for
├── OutOfMemory               there is not enough memory, of the machine or of its GPU; another time there may be
├── Cancelled                 somebody asked for the work to stop
│   └── WorkerEnding          the process is to end before the work does; another one is to take it over
├── StorageFull               the disk cannot take the object (DIMSE A700, HTTP 507)
├── QueueUnavailable          the broker does not answer
├── QueueFull                 too many studies wait; the sender should come again later (HTTP 503, Retry-After)
├── NodeUnavailable           a node to fetch from does not answer, or did not send all of it; it is asked again
├── NothingToRetrieve         a node answered, and has nothing that could be fetched (never "nothing found")
├── WorklistUnavailable       a worklist's origin server does not answer, or not to us; it is asked again
├── WorklistRefused           an origin server does not do what it is asked for, or answers unreadably
└── DeliveryError             a destination did not take an object; it will be tried again
    └── DeliveryRefused       a destination refused an object for good: trying again cannot help

Every error carries a stable `code` (what a program reads), a message with the offending value, and a remedy.
Each edge translates the tree once: problem documents (api), DIMSE status (listener), exit codes (cli).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EmbolensError(Exception):
    """Root of the tree.

    Args:
        message: what is wrong, with the offending value.
        code: stable dotted identifier, e.g. ``input.empty_archive``.
        remedy: what the reader can do about it.
    """

    default_code = "internal"

    def __init__(self, message: str, *, code: str | None = None, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class InputError(EmbolensError):
    default_code = "input.invalid"


class InputTooLarge(InputError):
    default_code = "input.too_large"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a series cannot be analysed, or what a reader must know about how it was.

    `code` is stable and dotted (``geometry.missing_slices``); `text` is for people and carries the measured value.
    """

    code: str
    text: str

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "text": self.text}


class NotAnalysable(EmbolensError):
    """The input is well-formed, yet nothing may be said about emboli in it: never reported as "nothing found"."""

    default_code = "not_analysable"

    def __init__(self, reasons: Sequence[Reason]) -> None:
        if not reasons:
            raise ValueError("NotAnalysable needs at least one Reason")
        super().__init__("; ".join(reason.text for reason in reasons), code=reasons[0].code)
        self.reasons = tuple(reasons)


class ConfigurationError(EmbolensError):
    default_code = "configuration"


class NotAuthenticated(EmbolensError):
    default_code = "not_authenticated"


class NotPermitted(EmbolensError):
    default_code = "not_permitted"


class TooManyRequests(EmbolensError):
    """Raised with the seconds after which the next request is taken."""

    default_code = "too_many_requests"

    def __init__(self, message: str, *, retry_after_s: float, code: str | None = None, remedy: str = "") -> None:
        super().__init__(message, code=code, remedy=remedy)
        self.retry_after_s = retry_after_s


class IssuerUnavailable(EmbolensError):
    default_code = "issuer_unavailable"


class NotFound(EmbolensError):
    default_code = "not_found"


PURGED = "purged"


class Purged(NotFound):
    default_code = PURGED


class StateConflict(EmbolensError):
    default_code = "state_conflict"


class OutOfMemory(EmbolensError):
    default_code = "out_of_memory"


class Cancelled(EmbolensError):
    default_code = "cancelled"


class WorkerEnding(Cancelled):
    default_code = "worker_ending"


class StorageFull(EmbolensError):
    default_code = "storage_full"


class QueueUnavailable(EmbolensError):
    default_code = "queue_unavailable"


class QueueFull(EmbolensError):
    default_code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message, remedy=f"come again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class NodeUnavailable(EmbolensError):
    default_code = "retrieve.node_unavailable"


class NothingToRetrieve(EmbolensError):
    default_code = "retrieve.nothing_to_retrieve"


class WorklistUnavailable(EmbolensError):
    default_code = "worklist.unavailable"


class WorklistRefused(EmbolensError):
    default_code = "worklist.refused"


class DeliveryError(EmbolensError):
    default_code = "delivery.failed"


class DeliveryRefused(DeliveryError):
    default_code = "delivery.refused"
