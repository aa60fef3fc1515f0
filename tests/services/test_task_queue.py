"""What may come out of the queue: job ids, and nothing that would be run; and the bell beside it."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import ContentDisallowed
from kombu.serialization import loads, prepare_accept_content

from imaging.errors import QueueUnavailable
from services.task_queue import TaskQueue, make_celery


class _Runs:
    """Unpickled, it makes a file."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._witness),)


def test_a_pickle_in_the_queue_is_not_read(tmp_path: Path) -> None:
    """Whoever can write into Redis must not run code in a worker."""
    accepted = prepare_accept_content(make_celery("redis://127.0.0.1:1/0").conf.accept_content)
    body = pickle.dumps([[_Runs(tmp_path / "it was run")], {}, {}])
    with pytest.raises(ContentDisallowed):
        loads(body, "application/x-python-serialize", "binary", accept=accepted)
    assert not (tmp_path / "it was run").exists()
    assert loads(json.dumps(["job"]).encode(), "application/json", "utf-8", accept=accepted) == ["job"]


def test_a_ring_is_heard_once_by_one_who_waits_or_comes_later(redis_url: str) -> None:
    relay, worker = TaskQueue(redis_url), TaskQueue(redis_url)
    for _ in range(10):
        worker.ring()
    began = time.monotonic()
    relay.wait_for_bell(30.0)
    assert time.monotonic() - began < 15
    began = time.monotonic()
    relay.wait_for_bell(0.2)
    assert time.monotonic() - began >= 0.15, "ten rings were one look"
    worker.close()
    relay.close()


def test_without_redis_ringing_does_no_harm_and_waiting_says_so() -> None:
    queue = TaskQueue("redis://127.0.0.1:1/0")
    queue.ring()
    with pytest.raises(QueueUnavailable):
        queue.wait_for_bell(0.2)
    queue.close()
