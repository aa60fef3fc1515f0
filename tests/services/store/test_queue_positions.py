"""Positions in the queue, alone and for all at once."""

from __future__ import annotations

import uuid

from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import Priority


def test_positions_of_all_are_the_positions_of_each(database: Database):
    jobs = JobStore(database)
    submitted = [
        jobs.submit(str(uuid.uuid4()), input_kind="nifti", inputs_digest="", instance_count=1, priority=priority)[0]
        for priority in (Priority.ROUTINE, Priority.STAT, Priority.ROUTINE, Priority.STAT)
    ]
    running = submitted.pop(0)
    jobs.claim(running.id, "w", lease_s=60)

    positions = jobs.queue_positions()
    assert positions == {job.id: jobs.queue_position(job) for job in submitted}
    assert sorted(positions.values()) == [0, 1, 2]
    assert positions[submitted[1].id] == 2  # routine, behind both stat
