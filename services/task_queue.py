"""The queue of job ids: Celery on Redis, `stat` before `routine`. Its loss costs time, never a study.

Beside it a bell for the relays: rung when something is to be delivered, so that they need not look all the time.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property
from typing import TYPE_CHECKING

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from imaging.errors import QueueUnavailable
from services.store.rows import Priority

if TYPE_CHECKING:  # who only asks, as a gateway at its start, does without
    from celery import Celery

log = logging.getLogger(__name__)

SEGMENT_TASK = "embolens.segment"
QUEUES = (Priority.STAT.value, Priority.ROUTINE.value)  # in the order in which a worker looks at them

_BELL = "embolens.outbox"

# Leases in the database give a lost job back within seconds, so redelivery by the broker only has to happen some day;
# far above the longest job, since a task that outlasts it is handed out again.
_VISIBILITY_TIMEOUT_S = 24 * 3600


def make_celery(redis_url: str) -> Celery:
    """The Celery application, configured the same for those who enqueue and those who work."""
    from celery import Celery
    from kombu import Queue

    app = Celery("embolens", broker=redis_url)
    app.conf.update(
        task_queues=[Queue(name) for name in QUEUES],
        task_default_queue=Priority.ROUTINE.value,
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # true makes a study that kills its worker an endless loop
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "queue_order_strategy": "priority",
            "visibility_timeout": _VISIBILITY_TIMEOUT_S,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
        },
    )
    return app


class TaskQueue:
    """Enqueues job ids and can tell which are waiting."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._redis = Redis.from_url(redis_url, socket_timeout=10, socket_connect_timeout=5)
        # Whoever hears no bell looks by itself: nobody waits long for it, or tries again.
        self._bell = Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))

    @cached_property
    def _celery(self) -> Celery:
        return make_celery(self._url)

    def enqueue(self, job_id: str, priority: Priority) -> bool:
        """Call after the job's transaction. False when the broker does not answer: the sweep will do it again."""
        from kombu.exceptions import OperationalError

        try:
            self._redis.ping()  # kombu would try for six seconds while an uploader waits for the answer
            self._celery.send_task(SEGMENT_TASK, args=[job_id], queue=priority.value, task_id=job_id, retry=False)
        except (OperationalError, RedisError, OSError):
            log.warning("the queue does not answer; job %s waits for the sweep", job_id)
            return False
        return True

    def waiting(self) -> set[str]:
        """Ids of the jobs whose message lies in a queue, unclaimed.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        try:
            messages = [message for name in QUEUES for message in self._redis.lrange(name, 0, -1)]
        except (RedisError, OSError) as error:
            raise QueueUnavailable(f"Redis does not answer: {error}") from error
        return {json.loads(message)["headers"]["id"] for message in messages}

    def ring(self) -> None:
        """Something is in the outbox. Call after the transaction; unheard, a relay looks by itself before long."""
        try:
            with self._bell.pipeline(transaction=False) as commands:
                commands.lpush(_BELL, 1).ltrim(_BELL, 0, 0).execute()  # ten results at once are one look
        except (RedisError, OSError):
            log.debug("the bell cannot be rung; a relay looks by itself")

    def wait_for_bell(self, timeout_s: float) -> None:
        """Until somebody rings, or has rung unheard, or so long has passed.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        try:
            self._bell.brpop([_BELL], timeout_s)
        except (RedisError, OSError) as error:
            raise QueueUnavailable(f"Redis does not answer: {error}") from error

    def ping(self) -> None:
        """Raises QueueUnavailable when Redis does not answer."""
        try:
            self._redis.ping()
        except (RedisError, OSError) as error:
            raise QueueUnavailable(f"Redis does not answer: {error}") from error

    def close(self) -> None:
        if "_celery" in vars(self):
            self._celery.close()
        self._redis.close()
        self._bell.close()
