"""What the routes work with: the stores, the queue and the settings of one gateway process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Self

import anyio
from fastapi import Depends, Request

from imaging.errors import ConfigurationError, StateConflict
from services.dicomweb.held_index import HeldIndex
from services.ingest.held_instances import HeldInstances
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue


@dataclass
class Gateway:
    """The open resources of this process.

    `is_stopping` tells long answers (events, `?wait=`) that the server is about to end.
    `conversions` counts those that may run at once. Uploads work in threads of their own, `upload_threads` those that
    write what comes, `inspection_threads` those that unpack and judge it: other requests do not wait for them.
    """

    settings: Settings
    database: Database
    jobs: JobStore
    retrievals: RetrievalStore
    outbox: Outbox
    store: StudyStore
    held: HeldInstances
    index: HeldIndex
    queue: TaskQueue
    rules: IntakeRules
    is_stopping: Callable[[], bool] = lambda: False
    conversions: anyio.Semaphore = field(init=False)
    upload_threads: anyio.CapacityLimiter = field(init=False)
    inspection_threads: anyio.CapacityLimiter = field(init=False)
    _keys_in_use: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.conversions = anyio.Semaphore(self.settings.convert_at_once)
        self.upload_threads, self.inspection_threads = anyio.CapacityLimiter(16), anyio.CapacityLimiter(4)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Migrates the database where needed. Redis is not asked: the gateway starts and takes studies without it.

        Raises:
            ConfigurationError: no broker is configured, or the intake rules cannot be read.
        """
        if not settings.redis_url:
            raise ConfigurationError(
                "the gateway needs a broker", remedy="set EMBOLENS_REDIS_URL, or use `embolens serve`"
            )
        rules = IntakeRules.load(settings.intake_rules)
        database = Database(settings.resolved_database_url)
        database.upgrade()
        store, queue = StudyStore(settings.data_dir), TaskQueue(settings.redis_url)
        jobs, retrievals = JobStore(database), RetrievalStore(database)
        held, index = HeldInstances(store, jobs), HeldIndex(database, store)
        return cls(settings, database, jobs, retrievals, Outbox(database), store, held, index, queue, rules)

    def close(self) -> None:
        self.queue.close()
        self.database.close()

    @contextmanager
    def hold_idempotency_key(self, key: str | None) -> Iterator[None]:
        """Only one request of a key is received at a time. Across processes the database's constraint decides.

        Raises:
            StateConflict: an earlier request with this key has not ended yet (code ``idempotency_key_in_use``).
        """
        if key is None:
            yield
            return
        if key in self._keys_in_use:
            raise StateConflict(
                f"a request with Idempotency-Key {key!r} is still being received",
                code="idempotency_key_in_use",
                remedy="wait for it to end, then repeat",
            )
        self._keys_in_use.add(key)
        try:
            yield
        finally:
            self._keys_in_use.discard(key)


def opened_gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


OpenGateway = Annotated[Gateway, Depends(opened_gateway)]
