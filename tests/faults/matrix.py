"""docs/fault-matrix.md, made of the `fault` markers of the tests: `python -m tests.faults.matrix`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs/fault-matrix.md"
_MARKER = "pytest.mark.fault("
_INTRODUCTION = """\
# Fault matrix

Every row is a test that breaks the running system on purpose, and what the test then finds to hold. The systems under
test are the real processes (gateway, listener, worker, relay) with a real Redis, SQLite or PostgreSQL, and Orthanc or
dcmtk as the PACS. This file is made of the markers of these tests by `python -m tests.faults.matrix`; a test fails when
it is not up to date.

What the promises stand on:

* **A process that crashes** (`kill -9`, out of memory): the operating system keeps what was written. A file gets its
  final name by an atomic rename, a state changes in one transaction, and success is said only after both. This holds
  with the default settings.
* **A machine that crashes** (power, kernel): what the operating system had not written to the disk is gone. This is
  another fault than the first, and only rows that say so are about it; the others kill processes.
* **Redis** carries job ids and nothing else. The database says which jobs wait, and a sweep puts back into the queue
  what it has lost.
* **A worker** holds its job by a lease that it renews. The sweep measures its silence by what it has seen itself, so no
  two clocks need to agree; the database, in the transaction that ends a job, decides whose result counts.
* **Results** have UIDs that are derived from what they are made of. Sent a second time they are the same objects, and
  the PACS holds them once.
"""


@dataclass(frozen=True, order=True, slots=True)
class Fault:
    area: str
    broken: str
    promise: str
    test: str


class _Collected:
    """A pytest plugin that notes the markers of what is collected."""

    def __init__(self) -> None:
        self.faults: set[Fault] = set()

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        for item in items:
            for marker in item.iter_markers("fault"):
                area, broken, promise = marker.args
                self.faults.add(Fault(area, broken, promise, item.nodeid.split("[")[0]))


def marked_faults() -> list[Fault]:
    """Of all tests, sorted. Raises RuntimeError where a test file cannot be collected."""
    files = [path for path in (REPOSITORY / "tests").rglob("test_*.py") if _MARKER in path.read_text("utf-8")]
    collected, said = _Collected(), StringIO()
    with redirect_stdout(said):
        options = ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(REPOSITORY)]
        status = pytest.main([*options, *map(str, files)], plugins=[collected])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests cannot be collected:\n{said.getvalue()}")
    return sorted(collected.faults)


def matrix(faults: Sequence[Fault]) -> str:
    """The document."""
    lines = [_INTRODUCTION]
    for area, of_area in groupby(faults, key=lambda fault: fault.area):
        lines += [f"## {area[0].upper() + area[1:]}\n", "| What is broken | What holds | Test |", "|---|---|---|"]
        lines += [f"| {_cell(one.broken)} | {_cell(one.promise)} | {_link(one.test)} |" for one in of_area]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _link(test: str) -> str:
    file, name = test.split("::", 1)
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{file})"


if __name__ == "__main__":
    DOCUMENT.write_text(matrix(marked_faults()), "utf-8")
    print(f"{DOCUMENT.relative_to(REPOSITORY)} is written", file=sys.stderr)
