"""`python -m benchmarks [NAME ...]`: measure all or some, and write docs/performance.md anew.

A benchmark is a module of this package with a function `measure(rounds) -> Page`.
"""

from __future__ import annotations

import argparse
import importlib
from datetime import UTC, datetime

from benchmarks import BENCHMARKS, machine
from benchmarks.report import keep, write_report
from benchmarks.side_by_side import ROUNDS, console


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure, and write docs/performance.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are: {', '.join(BENCHMARKS)}")
    for name in arguments.names or BENCHMARKS:
        console.rule(name)
        page = importlib.import_module(f"benchmarks.{name}").measure(arguments.rounds)
        keep(
            page.model_copy(
                update={
                    "name": name,
                    "machine": machine.description(),
                    "measured_on": f"{datetime.now(UTC):%Y-%m-%d}",
                }
            )
        )
        write_report()


if __name__ == "__main__":
    main()
