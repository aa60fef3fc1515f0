"""What the routes work with: the stores, the queue and the settings of one gateway process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Self

import anyio
from fastapi import Depends, Request

from api.asked_together import AskedTogether
from imaging.errors import ConfigurationError, StateConflict
from services.accounts.exposure import check_authentication, check_secrets, is_loopback
from services.accounts.key_store import FIRST_KEY_FILE, KeyStore
from services.accounts.principal import Principal
from services.accounts.rate_limit import RateLimit
from services.audit.trail import AuditTrail
from services.dicomweb.held_index import HeldIndex
from services.ingest.held_instances import HeldInstances
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.study_store import StudyStore
from services.store.waiting_line import WaitingLine
from services.task_queue import TaskQueue

if TYPE_CHECKING:
    from services.accounts.oidc import TokenChecker

log = logging.getLogger(__name__)


@dataclass
class Gateway:
    """The open resources of this process.

    `is_stopping` tells long answers (events, `?wait=`) that the server is about to end.
    `conversions` counts those that may run at once. Uploads work in threads of their own, `upload_threads` those that
    write what comes, `inspection_threads` those that unpack and judge it: other requests do not wait for them.
    `callers` are who shows these keys.
    """

    settings: Settings
    database: Database
    jobs: JobStore
    line: WaitingLine
    retrievals: RetrievalStore
    outbox: Outbox
    store: StudyStore
    held: HeldInstances
    index: HeldIndex
    queue: TaskQueue
    rules: IntakeRules
    keys: KeyStore
    tokens: TokenChecker | None
    is_stopping: Callable[[], bool] = lambda: False
    conversions: anyio.Semaphore = field(init=False)
    upload_threads: anyio.CapacityLimiter = field(init=False)
    inspection_threads: anyio.CapacityLimiter = field(init=False)
    request_rate: RateLimit = field(init=False)
    failed_logins: RateLimit = field(init=False)
    audit: AuditTrail = field(init=False)
    callers: AskedTogether[str, Principal] = field(init=False)
    _keys_in_use: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        limits = self.settings
        self.conversions = anyio.Semaphore(limits.convert_at_once)
        self.upload_threads, self.inspection_threads = anyio.CapacityLimiter(16), anyio.CapacityLimiter(4)
        self.request_rate = RateLimit(limits.requests_per_second, limits.requests_at_once)
        self.failed_logins = RateLimit(limits.failed_logins_per_minute / 60, max(1, limits.failed_logins_per_minute))
        self.audit = AuditTrail(limits, "gateway")
        self.callers = AskedTogether(self.keys.principals_of)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Migrates the database where needed. Redis is not asked: the gateway starts and takes studies without it.

        Raises:
            ConfigurationError: no broker is configured, the intake rules cannot be read, or this gateway would let in
                whom it must not.
        """
        if not settings.redis_url:
            raise ConfigurationError(
                "the gateway needs a broker", remedy="set EMBOLENS_REDIS_URL, or use `embolens serve`"
            )
        check_secrets(settings, settings.gateway_host)
        tokens = _token_checker(settings) if settings.oidc_issuer else None
        rules = IntakeRules.load(settings.intake_rules)
        database = Database.of(settings)
        database.upgrade()
        keys = KeyStore(database)
        only_here = is_loopback(settings.gateway_host) and settings.authentication and tokens is None
        if only_here and keys.make_first(settings.data_dir):
            log.info("the first API key, for everything, is in %s of the data directory", FIRST_KEY_FILE)
        check_authentication(settings, has_key=keys.has_usable())
        store, queue = StudyStore.of(settings), TaskQueue(settings.redis_url)
        jobs, retrievals = JobStore(database), RetrievalStore(database)
        held, index = HeldInstances(store, jobs), HeldIndex(database, store)
        line = WaitingLine(
            database,
            routine_longest_wait_s=settings.routine_longest_wait_s,
            queue_max_jobs=settings.queue_max_jobs,
        )
        return cls(
            settings=settings,
            database=database,
            jobs=jobs,
            line=line,
            retrievals=retrievals,
            outbox=Outbox(database),
            store=store,
            held=held,
            index=index,
            queue=queue,
            rules=rules,
            keys=keys,
            tokens=tokens,
        )

    def close(self) -> None:
        self.queue.close()
        self.database.close()

    def upload_max_bytes(self, principal: Principal) -> int:
        """The largest upload that is taken from this caller."""
        return min(self.settings.upload_max_bytes, principal.max_upload_bytes or self.settings.upload_max_bytes)

    @contextmanager
    def hold_idempotency_key(self, tenant: str, key: str | None) -> Iterator[None]:
        """Only one request of a tenant's key is received at a time. Across processes the database's constraint decides.

        Raises:
            StateConflict: an earlier request with this key has not ended yet (code ``idempotency_key_in_use``).
        """
        if key is None:
            yield
            return
        if (tenant, key) in self._keys_in_use:
            raise StateConflict(
                f"a request with Idempotency-Key {key!r} is still being received",
                code="idempotency_key_in_use",
                remedy="wait for it to end, then repeat",
            )
        self._keys_in_use.add((tenant, key))
        try:
            yield
        finally:
            self._keys_in_use.discard((tenant, key))


def _token_checker(settings: Settings) -> TokenChecker:
    from services.accounts.oidc import TokenChecker  # brings 10 MB of cryptography, for which few have a use

    return TokenChecker(settings)


def opened_gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def _opened_gateway(request: Request) -> Gateway:  # what is no coroutine costs a thread
    return opened_gateway(request)


OpenGateway = Annotated[Gateway, Depends(_opened_gateway)]
