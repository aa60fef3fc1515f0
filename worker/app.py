"""The worker process: takes job ids from the queues, `stat` before `routine`, one at a time."""

from __future__ import annotations

import os
import signal
import threading

from imaging.errors import ConfigurationError
from services.process_log import log_to_stderr
from services.settings import Settings, settings
from services.store.database import Database
from services.task_queue import QUEUES
from worker.node_name import node_name
from worker.tasks import CANNOT_WORK, LoadSegmenter, load_cascade, make_worker


def run_worker(chosen: Settings, load_segmenter: LoadSegmenter = load_cascade) -> None:
    """Work until SIGTERM or SIGINT; the job in hand is finished first.

    Raises:
        ConfigurationError: no broker is configured; the networks or the destinations cannot be loaded.
    """
    if not chosen.redis_url:
        raise ConfigurationError("a worker needs a broker", remedy="set EMBOLENS_REDIS_URL, or run `embolens serve`")
    database = Database.of(chosen)
    database.upgrade()
    database.close()  # the pool's process opens its own
    cannot_work = threading.Event()

    def end_without_work(*_: object) -> None:
        cannot_work.set()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(CANNOT_WORK, end_without_work)
    # fmt: off
    make_worker(chosen, load_segmenter).worker_main([
        "worker", "--pool", "prefork", "--concurrency", "1", "--prefetch-multiplier", "1",
        "--queues", ",".join(QUEUES), "--hostname", node_name(os.getpid()), "--loglevel", "INFO",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ])
    # fmt: on
    if cannot_work.is_set():
        raise ConfigurationError("the worker ended: it has nothing to work with", remedy="see what it logged before")


if __name__ == "__main__":
    log_to_stderr()
    run_worker(settings())
