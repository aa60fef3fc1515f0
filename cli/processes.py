"""The four processes of Embolens by name, and how each is run in the foreground."""

from __future__ import annotations

from enum import StrEnum

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
    match process:
        case Process.LISTENER:
            from services.ingest.listener import run_listener

            run_listener(chosen)
        case Process.GATEWAY:
            from api.server import run_gateway

            run_gateway(chosen)
        case Process.WORKER:
            from worker.app import run_worker

            run_worker(chosen)
        case Process.RELAY:
            from services.delivery.relay import run_relay

            run_relay(chosen)
