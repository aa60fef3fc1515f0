"""`embolens serve`: all processes on one machine, or one of them in the foreground for a container."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer

PARENT_PID = "EMBOLENS_PARENT_PID"


def serve(
    only: Annotated[
        str, typer.Option(help="Comma-separated processes: gateway, listener, worker, relay.", show_default="all")
    ] = "",
) -> None:
    """Receive, segment and send back studies until SIGTERM or Ctrl-C.

    One process alone (--only worker) runs in the foreground and needs EMBOLENS_REDIS_URL. Several are supervised: an
    embedded Redis is started where none is configured, a crashed process is started again, and at the end they drain.
    """
    from services.process_start import without_collections

    with without_collections():
        from cli.processes import Process, run_process
        from services.process_log import log_to_stderr
        from services.settings import settings

    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = sorted(set(names) - set(Process))
    if unknown:
        raise typer.BadParameter(f"unknown process {', '.join(unknown)}; known: {', '.join(Process)}")
    wanted = [process for process in Process if process in names or not names]
    log_to_stderr()
    if len(wanted) == 1:
        _follow_parent()
        _require_broker(settings().redis_url)
        run_process(wanted[0], settings())
        return
    from cli.supervisor import Supervisor
    from services.accounts.key_store import FIRST_KEY_FILE
    from services.process_signals import stop_on_signal

    stop = stop_on_signal()
    with Supervisor(settings(), wanted) as supervisor:
        supervisor.wait_until_ready(stop)
        if not stop.is_set():
            typer.echo(f"embolens is ready: {supervisor.page_url}  (Ctrl-C ends it)")
            if (first := settings().data_dir / FIRST_KEY_FILE).exists():
                typer.echo(f"the first API key is in {first}; `embolens keys create` makes others")
        supervisor.watch(stop)


def _require_broker(redis_url: str) -> None:
    from imaging.errors import ConfigurationError

    if not redis_url:
        raise ConfigurationError(
            "one process alone has no embedded Redis", remedy="set EMBOLENS_REDIS_URL, or run `embolens serve`"
        )


def _follow_parent() -> None:
    parent = os.environ.get(PARENT_PID)
    if parent:
        from services.parent_death import die_with_parent

        # Not SIGTERM: a worker whose embedded Redis died with the supervisor may wait for it without end. What is cut
        # short comes back by its lease.
        die_with_parent(int(parent), signal.SIGKILL)
