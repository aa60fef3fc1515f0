"""`make soak`: mixed load with random faults for SOAK_SECONDS, then what must hold, and docs/soak.md.

Not a `test_` file: only `make soak` runs it.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import select

from services.store.rows import FINAL_STATES, JobRow
from tests.faults.invariants import check, wait_until_settled
from tests.faults.pacs import CountingPacs
from tests.faults.soak_report import Fault, Sample, SoakRecord, write_report
from tests.faults.studies import Senders, Study, make_study, push, store_over_http, upload
from tests.faults.system import REDIS, System

SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
SEED = int(os.environ.get("SOAK_SEED", "20260101"))
_WAYS: dict[str, float] = {"C-STORE": 0.4, "POST /segment": 0.35, "STOW-RS": 0.25}
_STUDY_EVERY_S = 6.0
_FAULT_EVERY_S = 12.0
_CANCELLED_SHARE, _RETRIED_SHARE = 0.15, 0.5  # of the uploads; of those that were cancelled
_SAMPLE_EVERY_S = 2.0
_READ = ("/segment", "/segment?state=completed", "/dicom-web/studies?limit=20", "/health/ready", "/health/live", "/")


@dataclass
class Soak:
    """What goes on at once: senders, readers, faults, and somebody who takes notes."""

    system: System
    clock: Path
    directory: Path
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    began: float = field(default_factory=time.monotonic)
    ending: threading.Event = field(default_factory=threading.Event)
    studies: dict[str, list[Study]] = field(default_factory=lambda: {way: [] for way in _WAYS})
    cancelled: list[Study] = field(default_factory=list)
    record: SoakRecord = field(default_factory=lambda: SoakRecord(SEED))

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began

    def send(self) -> None:
        """One study after the other; each sender has its own thread and goes on until it is acknowledged."""
        senders = Senders()
        number = 0
        while not self.ending.wait(self.chance.expovariate(1 / _STUDY_EVERY_S)):
            number += 1
            study = make_study(self.directory / "studies", SEED + number)
            (way,) = self.chance.choices(list(_WAYS), list(_WAYS.values()))
            if way == "C-STORE":
                senders.begin(push, study, self.system.dicom_port, slice_pause_s=0.05, give_up_s=300)
            elif way == "STOW-RS":
                senders.begin(store_over_http, study, self.system.http, give_up_s=300)
            elif self.chance.random() < _CANCELLED_SHARE:
                pause_s, retried = self.chance.uniform(0, 4), self.chance.random() < _RETRIED_SHARE
                senders.begin(self._upload_and_cancel, study, pause_s, retried)
                continue
            else:
                senders.begin(upload, study, self.system.http, give_up_s=300)
            self.studies[way].append(study)
        senders.finish(timeout_s=400)

    def _upload_and_cancel(self, study: Study, pause_s: float, retried: bool) -> None:
        upload(study, self.system.http, give_up_s=300)
        time.sleep(pause_s)
        self._insist("DELETE", f"/segment/{study.job_id}", (200, 202, 409))  # 409: it is over already
        self.cancelled.append(study)
        if retried:
            self.system.wait_for_state(str(study.job_id), timeout_s=300)
            self._insist("POST", f"/segment/{study.job_id}/retry", (202, 409))

    def _insist(self, method: str, path: str, answers: tuple[int, ...]) -> None:
        deadline = time.monotonic() + 300
        while True:
            try:
                status = self.system.http.request(method, path).status_code
            except httpx.TransportError:
                status = 0
            if status in answers:
                return
            assert status in (0, 503), (method, path, status)
            assert time.monotonic() < deadline, (method, path, status)
            time.sleep(0.5)

    def read(self) -> None:
        """What people and programs look at meanwhile; a 5xx other than 503 is an error of ours."""
        while not self.ending.wait(0.5):
            path = random.choice(_READ)
            try:
                status = self.system.http.get(path).status_code
            except httpx.TransportError:
                self.record.reads["no connection"] += 1
                continue
            self.record.reads[str(status)] += 1
            assert status in (200, 204, 503), (path, status)

    def take_notes(self) -> None:
        """How many jobs there are and how many have ended, and when each was first seen to have."""
        final = {state.value for state in FINAL_STATES}
        while not self.ending.wait(_SAMPLE_EVERY_S):
            self.note(final)

    def note(self, final: set[str]) -> None:
        with self.system.database.read() as session:
            jobs = session.execute(select(JobRow.id, JobRow.state)).tuples().all()
        ended = [job_id for job_id, state in jobs if state in final]
        self.record.samples.append(Sample(self.now_s, len(jobs), len(ended)))
        for job_id, _ in jobs:
            self.record.first_seen_s.setdefault(job_id, self.now_s)
        for job_id in ended:
            self.record.ended_s.setdefault(job_id, self.now_s)
        for part in self.system.parts:
            try:
                memory = sum(process.memory_info().rss for process in self.system.processes_of(part))
            except psutil.NoSuchProcess:
                continue
            self.record.peak_bytes[part] = max(memory, self.record.peak_bytes.get(part, 0))

    def break_things(self) -> None:
        """One fault after the other, until the end."""
        processes = [part for part in self.system.parts if part != REDIS]
        faults: list[tuple[str, Callable[[], object]]] = [
            *((f"kill -9 {part}", lambda part=part: self.system.kill(part)) for part in self.system.parts),
            *((f"SIGTERM {part}", lambda part=part: self._restart(part)) for part in processes),
            ("worker hung for 10 s", lambda: self._hang("worker-1", 10)),
            ("relay hung for 10 s", lambda: self._hang("relay", 10)),
            ("FLUSHALL", self.system.empty_redis),
            ("Redis replaced", self.system.replace_redis),
            ("database locked for 10 s", lambda: self._lock_database(10)),
            ("database locked for 30 s", lambda: self._lock_database(30)),
            ("clock set by an hour", self._set_clock),
        ]
        while not self.ending.wait(self.chance.uniform(0.5, 1.5) * _FAULT_EVERY_S):
            name, break_it = self.chance.choice(faults)
            self.record.faults.append(Fault(self.now_s, name))
            break_it()
        self.clock.write_text("0")

    def _restart(self, part: str) -> None:
        self.system.put_down(part, signal.SIGTERM)
        self.system.start(part)

    def _hang(self, part: str, seconds: float) -> None:
        self.system.send_signal(part, signal.SIGSTOP)
        time.sleep(seconds)
        self.system.send_signal(part, signal.SIGCONT)

    def _lock_database(self, seconds: float) -> None:
        holder = sqlite3.connect(self.system.data_dir / "embolens.sqlite", isolation_level=None, timeout=60)
        holder.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        holder.execute("ROLLBACK")
        holder.close()

    def _set_clock(self) -> None:
        """An hour back, or forward to the right time again."""
        self.clock.write_text("0" if self.clock.read_text() == "-3600" else "-3600")


@pytest.mark.timeout(0)
def test_soak(tmp_path: Path, pacs: CountingPacs, clock: Path) -> None:
    settings = {"EMBOLENS_SERIES_QUIET_S": "20", "EMBOLENS_MAX_ATTEMPTS": "20", "EMBOLENS_WORKER_DRAIN_S": "5"}
    wrapper = ["tests/faults/shifted_clock.py", str(clock)]
    with System(tmp_path, pacs.orthanc, workers=2, stage_s=0.3, wrapper=wrapper, **settings) as system:
        soak = Soak(system, clock, tmp_path)
        running = Senders()
        for work in (soak.send, soak.read, soak.take_notes, soak.break_things):
            running.begin(work)
        time.sleep(SECONDS)
        soak.ending.set()
        running.finish(timeout_s=600)

        quiet_since = time.monotonic()
        wanted = [study for of_way in soak.studies.values() for study in of_way]
        wait_until_settled(system, [*wanted, *soak.cancelled])
        soak.record.settled_after_s = time.monotonic() - quiet_since
        soak.note({state.value for state in FINAL_STATES})
        outcome = check(system, pacs, wanted)
        _check_cancelled(system, pacs, soak)
        soak.record.duration_s = soak.now_s
        soak.record.studies = {way: len(studies) for way, studies in soak.studies.items()}
        soak.record.instances = sum(len(study.files) for study in wanted)
        soak.record.refusals = Counter(
            (way, f"{status:04X}" if way == "C-STORE" else str(status))
            for way, studies in soak.studies.items()
            for study in studies
            for status in study.statuses
        )
        soak.record.attempts, soak.record.receptions = outcome.attempts, outcome.receptions
        write_report(soak.record)


def _check_cancelled(system: System, pacs: CountingPacs, soak: Soak) -> None:
    """A job that was cancelled in time has no result in the PACS, the others have one."""
    for study in soak.cancelled:
        (job,) = system.jobs(study_instance_uid=study.study_instance_uid)
        soak.record.cancelled[job["state"]] += 1
        assert job["state"] in ("cancelled", "completed"), job
        expected = ["SEG", "SR"] if job["state"] == "completed" else []
        assert sorted(pacs.modalities(study.study_instance_uid)) == expected
