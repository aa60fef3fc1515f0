"""kill -9 of every process of the system, over and over, while studies come in."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.faults.conftest import MakeStudies, StartSystem
from tests.faults.invariants import check
from tests.faults.pacs import CountingPacs
from tests.faults.studies import Senders, push, upload

ROUNDS = 50
STUDIES = 20


@pytest.mark.timeout(400)
@pytest.mark.fault(
    "processes",
    f"kill -9 of gateway, listener, worker, relay and Redis at random moments, {ROUNDS} rounds, "
    f"while {STUDIES} studies flow in by C-STORE and REST",
    "every acknowledged instance is on disk byte for byte, every study ends in one SEG and one SR in the PACS, no job "
    "is stuck or lost; after the last kill nothing stands still for 60 s",
)
def test_whatever_is_killed_every_study_ends_in_one_result(
    start_system: StartSystem, make_studies: MakeStudies, pacs: CountingPacs
) -> None:
    seed = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(10**6)))
    print(f"FAULT_SEED={seed}")
    chance = random.Random(seed)
    # Chance may hit one job more often than the three times after which a study counts as what kills its workers.
    system = start_system(workers=2, EMBOLENS_MAX_ATTEMPTS="20", EMBOLENS_SERIES_QUIET_S="6")
    studies = make_studies(STUDIES)
    senders = Senders()
    for number, study in enumerate(studies):
        after_s = chance.uniform(0, 65)
        if number % 2:
            senders.begin(push, study, system.dicom_port, slice_pause_s=0.05, after_s=after_s)
        else:
            senders.begin(upload, study, system.http, after_s=after_s)

    victims = [system.parts[number % len(system.parts)] for number in range(ROUNDS)]
    chance.shuffle(victims)
    for victim in victims:
        time.sleep(chance.uniform(0.5, 2.5))
        system.kill(victim)

    last_kill = time.monotonic()
    senders.finish()
    outcome = check(system, pacs, studies)
    print(f"{outcome}; {time.monotonic() - last_kill:.0f} s after the last kill")
