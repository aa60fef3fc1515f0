"""A child does not outlive its parent."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]

PARENT = """
import os, subprocess, sys, time
child = "import signal, sys, time; from services.parent_death import die_with_parent; "
child += "die_with_parent(int(sys.argv[1]), signal.SIGTERM); print('bound', flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""


def test_a_bound_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))

    parent.kill()
    parent.wait()

    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child goes on"
        time.sleep(0.02)
    parent.stdout.close()


def test_a_child_that_comes_too_late_ends_itself() -> None:
    late = "import signal; from services.parent_death import die_with_parent; die_with_parent(1 << 22, signal.SIGTERM)"
    ended = subprocess.run(
        [sys.executable, "-c", f"{late}; print('alive')"], cwd=REPOSITORY, capture_output=True, check=False
    )

    assert ended.returncode < 0
    assert b"alive" not in ended.stdout
