"""Fuzzing of everything that reads what strangers send: `make fuzz FUZZ_SECONDS=600`, or one case again:

python -m tests.fuzzing.fuzzer --seconds 600 --seed 1
python -m tests.fuzzing.fuzzer --replay .fuzzing/findings/dicom-1-4711

Every case is named by kind, seed and number, and is the same each time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzzing.batch import FOUND_SOMETHING, trouble_with
from tests.fuzzing.seeds import write_seeds

KINDS = ("dicom", "volume", "seg", "upload", "multipart")
CASE_SECONDS = 20.0  # longer is a hang: no case here holds a megabyte
STARTING_SECONDS = 100.0  # loading every decoder
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that was not answered.

    Attributes:
        name: kind, seed and number of the case.
        what: the traceback, or how the process ended.
        files: the folder where its damaged files are kept.
    """

    name: str
    what: str
    files: Path


@dataclass
class Fuzzer:
    """Runs batches in processes of their own and keeps what they find; `cases` counts those that were tried."""

    seeds: Path
    findings: Path
    cases: int = 0

    def fuzz(self, kind: str, seed: str, seconds: float) -> Iterator[Finding]:
        ends = time.monotonic() + seconds
        first = 0
        with tempfile.TemporaryDirectory() as directory:
            work = Path(directory)
            while (left := ends - time.monotonic()) > 0:
                what = self._run_batch(work, kind, seed, first, left)
                last = int((work / "case").read_text())
                self.cases += last - first
                first = last + 1
                if what is None:
                    return
                yield self._kept(work, f"{kind}-{seed}-{last}", what)

    def _run_batch(self, work: Path, kind: str, seed: str, first: int, seconds: float) -> str | None:
        """What was found, or None when the time is over."""
        (work / "case").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.fuzzing.batch", self.seeds, work, kind, seed, first, seconds]
        with (work / "errors").open("w") as errors:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=_ROOT,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                stdout=errors,
                stderr=errors,
            )
            hangs = self._wait(process, work)
        if not (work / "case").exists():
            raise RuntimeError(f"fuzzing did not begin: {(work / 'errors').read_text()[-4000:]}")
        if hangs:
            return f"no answer after {CASE_SECONDS:g} s\n{(work / 'errors').read_text()[-4000:]}"
        if process.returncode == FOUND_SOMETHING:
            return (work / "finding").read_text()
        if process.returncode:
            return f"the process ended with {process.returncode}\n{(work / 'errors').read_text()[-4000:]}"
        return None

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], work: Path) -> bool:
        """Whether it had to be killed, because a case took too long."""
        case, since, longest = "", time.monotonic(), STARTING_SECONDS
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                return False
            if (work / "case").exists() and (now := (work / "case").read_text()) != case:
                case, since, longest = now, time.monotonic(), CASE_SECONDS
            elif time.monotonic() - since > longest:
                process.send_signal(signal.SIGABRT)  # faulthandler then says where it hangs
                process.wait(10)
                return True

    def _kept(self, work: Path, name: str, what: str) -> Finding:
        kept = self.findings / name
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(work / "input", kept)
        return Finding(name, what, kept)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0, help="of all kinds together")
    parser.add_argument("--seed", default=str(int(time.time())), help="default: the time, and printed")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--findings", type=Path, default=Path(".fuzzing/findings"))
    parser.add_argument("--replay", type=Path, help="a folder that a finding was kept in")
    asked = parser.parse_args()
    if asked.replay:
        kind = asked.replay.name.split("-")[0]
        print(trouble_with(kind, sorted(asked.replay.iterdir())) or "answered")
        return 0
    kinds = asked.kind or KINDS
    found = 0
    with tempfile.TemporaryDirectory() as directory:
        seeds = Path(directory)
        write_seeds(seeds)
        for kind in kinds:
            fuzzer = Fuzzer(seeds, asked.findings)
            for finding in fuzzer.fuzz(kind, asked.seed, asked.seconds / len(kinds)):
                found += 1
                print(f"{finding.name}: {finding.files}\n{finding.what}\n", flush=True)
            print(f"{kind}: {fuzzer.cases} cases with seed {asked.seed}", flush=True)
    print(f"{found} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
