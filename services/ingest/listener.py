"""The listener process: the Storage SCP, what fetches studies for it and what works on worklists; until SIGTERM."""

from __future__ import annotations

import logging

from services.accounts.exposure import check_secrets
from services.delivery.storage_commitment import CommitmentReports
from services.ingest.intake_rules import IntakeRules
from services.ingest.receiver_pool import ReceiverPool
from services.ingest.store_scp import Listener
from services.process_log import log_to_stderr
from services.process_signals import stop_on_signal, wait_until_told
from services.retrieve.retriever import Retriever
from services.settings import Settings
from services.store.database import Database
from services.store.directory_lock import lock_directory
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.study_store import StudyStore
from services.task_queue import TaskQueue
from services.worklist.performers import Performers

log = logging.getLogger(__name__)


def run_listener(settings: Settings) -> None:
    """Receive studies until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: the intake rules are wrong, a password is weak, the port cannot be had, or another listener
            works in the data directory: two would complete each other's series.
    """
    check_secrets(settings, settings.dicom_host)
    rules = IntakeRules.load(settings.intake_rules)
    stopping = stop_on_signal()
    log_to_stderr()
    with ReceiverPool(settings) as receivers:  # before there is a thread, a lock or a connection
        lock = lock_directory(settings.data_dir, "listener", "listener")
        database = Database.of(settings)
        database.upgrade()
        queue = TaskQueue(settings.redis_url)
        store = StudyStore.of(settings)
        retrievals, reports = RetrievalStore(database), CommitmentReports(Outbox(database), settings)
        listener = Listener(settings, store, JobStore(database), queue, rules, retrievals, reports, receivers)
        retriever = Retriever(settings, listener, retrievals, rules)
        performers = Performers(settings, database, store, rules.tenants)
        listener.start()
        retriever.start()
        performers.start()
        log.info("ready: %s listens on %s:%d", settings.ae_title, settings.dicom_host, listener.port)
        wait_until_told(stopping)
        performers.stop()
        retriever.stop()
        listener.stop()
        queue.close()
        database.close()
        lock.close()
