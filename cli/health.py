"""`embolens health NAME`: is this machine's process well? What a container's health check runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from services.settings import Settings

_PATIENCE_S = 5.0


def health(process: Annotated[str, typer.Argument(help="gateway, listener, worker or relay.")]) -> None:
    """Ask this machine's process whether it does its work: exit 0 when it answers, 1 when it does not."""
    from cli.processes import Process
    from services.settings import settings

    checks = {
        Process.GATEWAY: _gateway_is_ready,
        Process.LISTENER: _listener_echoes,
        Process.WORKER: _worker_answers,
        Process.RELAY: _relay_sweeps,
    }
    if process not in checks:
        raise typer.BadParameter(f"unknown process {process}; known: {', '.join(Process)}")
    well = checks[Process(process)](settings())
    typer.echo(f"{process}: {'well' if well else 'no answer'}")
    if not well:
        raise typer.Exit(1)


def _gateway_is_ready(settings: Settings) -> bool:
    from cli.gateway_client import GatewayClient
    from cli.supervisor import reachable

    return GatewayClient(f"http://{reachable(settings.gateway_host)}:{settings.gateway_port}/").is_ready()


def _listener_echoes(settings: Settings) -> bool:
    """C-ECHO, PS3.4 Annex A."""
    import ssl

    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    from cli.supervisor import reachable
    from services.requestor import Requestor
    from services.transport_security import sender_context

    requestor = Requestor(settings.ae_title)  # which the listener lets in from its own machine
    requestor.connection_timeout = requestor.acse_timeout = requestor.dimse_timeout = _PATIENCE_S
    requestor.add_requested_context(Verification)
    host = reachable(settings.dicom_host)
    tls_args = None
    if settings.tls_certificate is not None:
        context = sender_context(settings)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is this machine that answers
        tls_args = (context, host)
    association = requestor.associate(host, settings.dicom_port, ae_title=settings.ae_title, tls_args=tls_args)
    if not association.is_established:
        return False
    status = association.send_c_echo().get("Status")
    association.release()
    return bool(status == 0x0000)


def _worker_answers(settings: Settings) -> bool:
    """Over Redis, from the process that hands out the work; it answers while a study is being segmented too."""
    from kombu.exceptions import OperationalError

    from services.task_queue import make_celery
    from worker.node_name import every_node_name

    celery = make_celery(settings.redis_url)
    this_machine: dict[str, Any] = {"pattern": every_node_name(), "matcher": "glob"}
    try:
        return bool(celery.control.broadcast("ping", reply=True, limit=1, timeout=_PATIENCE_S, **this_machine))
    except OperationalError:
        return False


def _relay_sweeps(settings: Settings) -> bool:
    """By the file that it touches after every sweep."""
    import time

    from services.delivery.relay import ALIVE_FILE

    try:
        last_sweep = (settings.data_dir / ALIVE_FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    return time.time() - last_sweep < 3 * settings.sweep_s + _PATIENCE_S
