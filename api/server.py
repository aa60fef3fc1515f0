"""The gateway process."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable

import uvicorn

from api.app import create_app
from api.bounded_protocol import BoundedProtocol
from services.process_log import log_to_stderr
from services.settings import Settings, settings

log = logging.getLogger(__name__)

_GRACE_S = 10
_BACKLOG = 2048
# A thread that computes gives way to the one that serves all connections; Python's own is 5 ms. Beside a thread that
# inspects headers an echo's p99 fell from 9 to 0.6 ms, on a busier machine from 26 to 13, at no cost that was seen.
_SWITCH_S = 0.001
# Objects, and younger collections, between collections. An answer makes hundreds of objects and hardly a cycle: with
# Python's own 700, 10 and 10 the p99 of 200 clients was 45 ms, with these 35.
_COLLECTED_AFTER = (20_000, 20, 50)


def run_gateway(chosen: Settings, *, on_listening: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let open requests end and return.

    Args:
        on_listening: called with the base URL once the port is bound; with `gateway_port` 0 the only way to learn it.

    Raises:
        ConfigurationError: no broker is configured.
        OSError: the port is taken.
    """
    listening = _bind(chosen.gateway_host, chosen.gateway_port)
    port = listening.getsockname()[1]
    host = f"[{chosen.gateway_host}]" if ":" in chosen.gateway_host else chosen.gateway_host
    url = f"http://{host}:{port}"
    app = create_app(chosen, is_stopping=lambda: server.should_exit)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # query strings carry study UIDs
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
        )
    )
    for signal_number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it is done: to us
        signal.signal(signal_number, lambda *_: None)
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()  # a full collection would look at 160,000 objects that stay: 0.1 s, for which all answers would wait
    gc.set_threshold(*_COLLECTED_AFTER)
    log.info("the gateway listens on %s", url)
    if on_listening is not None:
        on_listening(url)
    server.run(sockets=[listening])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio looks at the protocol: without it TCP_NODELAY stays off, and every other answer waits 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(_BACKLOG)
    return listening


if __name__ == "__main__":
    log_to_stderr()
    run_gateway(settings())
