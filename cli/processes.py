"""The four processes of Embolens by name, and how each is run in the foreground."""

from __future__ import annotations

import logging
import os
from enum import StrEnum

from cli.process_user import process_user
from services.audit.events import application_started, application_stopped
from services.audit.trail import AuditTrail
from services.process_start import without_collections
from services.settings import Settings


class Process(StrEnum):
    """In the order in which they are drained: nothing new comes in, work is finished, results are sent."""

    LISTENER = "listener"
    GATEWAY = "gateway"
    WORKER = "worker"
    RELAY = "relay"


def run_process(process: Process, chosen: Settings) -> None:
    """Run one process in the foreground until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: it cannot run with these settings.
    """
    trail, user = AuditTrail(chosen, process.value), process_user()
    application_started(trail, user)
    all_ended = True
    try:
        all_ended = _run(process, chosen)
    finally:
        application_stopped(trail, user)
    if not all_ended:
        logging.shutdown()
        os._exit(0)


def _run(process: Process, chosen: Settings) -> bool:
    """False where threads are left for which the interpreter would wait."""
    match process:
        case Process.LISTENER:
            with without_collections():
                from services.ingest.listener import run_listener

            run_listener(chosen)
        case Process.GATEWAY:
            with without_collections():
                from api.server import run_gateway

            run_gateway(chosen)
        case Process.WORKER:
            with without_collections():
                from worker.app import run_worker

            run_worker(chosen)
        case Process.RELAY:
            with without_collections():
                from services.delivery.relay import run_relay

            return run_relay(chosen)
    return True
