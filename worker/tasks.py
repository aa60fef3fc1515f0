"""The one task: a job id comes, the pipeline runs the job that is next in line. The networks are loaded once."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from celery.signals import task_failure, worker_process_init, worker_shutting_down

from imaging.errors import EmbolensError, OutOfMemory, WorkerEnding
from services.parent_death import die_with_parent
from services.process_log import where_raised
from services.process_start import without_collections
from services.settings import Settings
from services.task_queue import SEGMENT_TASK, TaskQueue, make_celery
from worker.bounded_memory import bound_memory
from worker.lost_process import give_back
from worker.pipeline import Pipeline
from worker.segmenter import Segmenter

log = logging.getLogger(__name__)

LoadSegmenter = Callable[[Settings], Segmenter]
_LOADING_TIMEOUT_S = 300.0
CANNOT_WORK = signal.SIGUSR2  # from a process of the pool to the worker


def make_worker(settings: Settings, load_segmenter: LoadSegmenter) -> Celery:
    """The Celery application of a worker. Each process of its pool loads the networks when it starts.

    Where that fails (a wrong model package, unreadable destinations, no such device) the whole worker ends: an operator
    must act, and the jobs wait in the queue meanwhile. Told to end, it finishes the job in hand; after
    `worker_drain_s` it hands it back to the queue.
    """
    app = make_celery(settings.redis_url)
    app.conf.update(
        worker_proc_alive_timeout=_LOADING_TIMEOUT_S,
        worker_redirect_stdouts=False,
        worker_lost_wait=1.0,  # for the answer of a process that is gone
        task_soft_time_limit=settings.job_timeout_s,  # raises in the job
        task_time_limit=settings.job_timeout_s * 1.25 + 1,  # kills its process, where the job does not hear
    )

    is_ending = mmap.mmap(-1, 1)  # one byte that the worker shares with the processes of its pool

    @cache
    def pipeline() -> Pipeline:
        tell_relay = TaskQueue(settings.redis_url).ring
        return Pipeline.connect(settings, load_segmenter(settings), lambda: is_ending[0] != 0, tell_relay)

    @app.task(name=SEGMENT_TASK)
    def segment(job_id: str) -> None:
        try:
            pipeline().run_next()  # the id is for those who look into the queue
        except WorkerEnding as error:
            raise Reject(error.message, requeue=True) from error
        except MemoryError:  # celery would end the worker with it
            raise OutOfMemory("no memory was left to record that the job failed") from None

    def end_in_time(**_: Any) -> None:
        timer = threading.Timer(settings.worker_drain_s, is_ending.__setitem__, (0, 1))
        timer.daemon = True
        timer.start()

    parent_pid = os.getpid()

    def begin_process(**_: Any) -> None:
        die_with_parent(parent_pid, signal.SIGKILL)
        try:
            with without_collections():
                pipeline()
            bound_memory(settings.worker_memory_bytes)
        except EmbolensError as error:
            log.critical("this worker cannot work: %s [%s]", error, error.code)
            os.kill(parent_pid, CANNOT_WORK)
        except Exception as error:  # noqa: BLE001  outermost: celery would log it and hand out jobs all the same
            trace = where_raised(error)
            log.critical("this worker cannot work: unexpected %s [internal]\n%s", type(error).__name__, trace)
            os.kill(parent_pid, CANNOT_WORK)

    def attempt_is_lost(exception: BaseException, **_: Any) -> None:
        give_back(parent_pid, exception, settings)

    worker_process_init.connect(begin_process, weak=False)
    task_failure.connect(attempt_is_lost, weak=False)
    worker_shutting_down.connect(end_in_time, weak=False)
    return app


def load_cascade(settings: Settings) -> Segmenter:
    """The networks of the configured model package. Raises ConfigurationError when the package is damaged."""
    from models.cascade import Cascade  # torch must not be there before the pool has forked
    from models.compiled_network import InferenceBackend

    cascade = Cascade.load(
        settings.resolved_package_dir,
        device=settings.worker_device,
        threads=settings.worker_threads,
        backend=InferenceBackend(settings.inference_backend),
    )
    log.info("model package %s %s on %s", cascade.package.name, cascade.package.version, cascade.device)
    return cascade
