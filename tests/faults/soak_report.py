"""docs/soak.md and its picture, made of what was noted during a soak."""

from __future__ import annotations

import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from services.version import VERSION

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs/soak.md"
PICTURE = REPOSITORY / "docs/images/soak.svg"
_WIDTH, _HEIGHT, _LEFT, _TOP, _ROW = 960, 260, 190, 20, 16
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    name: str


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    jobs: int
    ended: int


@dataclass
class SoakRecord:
    """Times are seconds since the beginning; those by job id are when it was first seen so, to about 2 s."""

    seed: int
    duration_s: float = 0.0
    settled_after_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    first_seen_s: dict[str, float] = field(default_factory=dict)
    ended_s: dict[str, float] = field(default_factory=dict)
    studies: dict[str, int] = field(default_factory=dict)
    instances: int = 0
    cancelled: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    receptions: int = 0


def write_report(record: SoakRecord) -> None:
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(record), "utf-8")
    DOCUMENT.write_text(report(record), "utf-8")


def report(record: SoakRecord) -> str:
    """Markdown."""
    wanted = sum(record.studies.values())
    took_s = [record.ended_s[job_id] - seen_s for job_id, seen_s in record.first_seen_s.items()]
    pause_s = record.duration_s / max(len(record.faults), 1)
    machine = f"{psutil.cpu_count()} CPU cores, {psutil.virtual_memory().total / 1024**3:.0f} GiB, {platform.system()}"
    return f"""\
# Soak

Made by `make soak` (`SOAK_SECONDS`, `SOAK_SEED`) on {datetime.now(UTC):%Y-%m-%d} with version {VERSION} on {machine}.
{record.duration_s / 60:.0f} minutes of load and faults, seed {record.seed}.

The system is gateway, listener, relay, two workers, Redis and SQLite, with Orthanc as the PACS. Small CT series of 24
slices come in all the time, a light segmenter takes about a second for each, and somebody reads lists and pages. Every
{pause_s:.0f} s on the average something is broken. A process that ends is started again at once. The clock is set back
by an hour and forward again. In the end everything is compared with what was sent.

![Jobs over time, and what was broken](images/soak.svg)

| | |
|---|---|
| studies | {wanted}: {_listed(record.studies)} |
| instances acknowledged, and on disk byte for byte | {record.instances} |
| studies with exactly one SEG and one SR in the PACS | {wanted} of {wanted} |
| uploads that were cancelled, some of them retried | {sum(record.cancelled.values())}: {_listed(record.cancelled)} |
| attempts per job | {record.attempts / max(wanted, 1):.2f} |
| receptions in the PACS of its {2 * wanted} result objects (sent again: the same objects) | {record.receptions} |
| from the first instance to the end of the job, median / 95 % / longest | {_seconds(took_s)} |
| everything done after the last sender was | {record.settled_after_s:.0f} s |
| refusals while something was broken, all made good | {_refusals(record)} |
| answers to reads | {_listed(record.reads)} |
| most memory of a part, its processes together | {_memory(record)} |

## What was broken

| fault | times |
|---|---|
{_fault_rows(record.faults)}
"""


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"


def _seconds(values: Sequence[float]) -> str:
    in_order = sorted(values)
    return f"{statistics.median(in_order):.0f} / {in_order[int(0.95 * (len(in_order) - 1))]:.0f} / {in_order[-1]:.0f} s"


def _refusals(record: SoakRecord) -> str:
    return _listed({f"x {status} ({way})": count for (way, status), count in record.refusals.items()})


def _memory(record: SoakRecord) -> str:
    return ", ".join(f"{part} {size / _MIB:.0f} MiB" for part, size in sorted(record.peak_bytes.items()))


def _fault_rows(faults: Sequence[Fault]) -> str:
    counts = Counter(fault.name for fault in faults)
    return "\n".join(f"| {name} | {count} |" for name, count in sorted(counts.items()))


def picture(record: SoakRecord) -> str:
    """SVG: jobs that came in and jobs that ended over time; below, a row of marks for each kind of fault."""
    longest_s = max(record.duration_s, 1.0)
    most = max((sample.jobs for sample in record.samples), default=1) or 1
    names = sorted({fault.name for fault in record.faults})
    below = _TOP + _HEIGHT

    def x(at_s: float) -> float:
        return _LEFT + at_s / longest_s * _WIDTH

    def y(jobs: int) -> float:
        return below - jobs / most * _HEIGHT

    def line(values: Sequence[tuple[float, int]], colour: str) -> str:
        points = " ".join(f"{x(at_s):.1f},{y(jobs):.1f}" for at_s, jobs in values)
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'

    def text(at_x: float, at_y: float, words: str, anchor: str = "start", colour: str = "#444") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    minutes = range(0, int(longest_s // 60) + 1, max(1, int(longest_s / 600)))
    height = below + 30 + _ROW * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" font-size="11" '
        'font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{_LEFT},{_TOP} V{below} H{_LEFT + _WIDTH}" fill="none" stroke="#444"/>',
        text(_LEFT - 6, _TOP + 8, f"{most} jobs", "end"),
        line([(sample.at_s, sample.jobs) for sample in record.samples], "#1f77b4"),
        line([(sample.at_s, sample.ended) for sample in record.samples], "#2ca02c"),
        text(_LEFT + 10, _TOP + 12, "came in", colour="#1f77b4"),
        text(_LEFT + 10, _TOP + 26, "ended", colour="#2ca02c"),
        *(text(x(60 * minute), below + 14, f"{minute} min", "middle") for minute in minutes),
    ]
    for row, name in enumerate(names):
        at_y = below + 30 + _ROW * row
        parts.append(text(_LEFT - 6, at_y + 4, name, "end"))
        parts.append(f'<path d="M{_LEFT},{at_y} H{_LEFT + _WIDTH}" stroke="#eee"/>')
        parts += [
            f'<circle cx="{x(fault.at_s):.1f}" cy="{at_y}" r="3.5" fill="#d62728"/>'
            for fault in record.faults
            if fault.name == name
        ]
    return "\n".join([*parts, "</svg>", ""])
