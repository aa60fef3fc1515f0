"""A few seconds of fuzzing with every run, each time with other damage; `make fuzz` does it for longer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzzing.fuzzer import KINDS, Fuzzer
from tests.fuzzing.seeds import write_seeds

SECONDS = 4.0


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seeds")
    write_seeds(directory)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_always_get_an_answer(seeds: Path, kind: str) -> None:
    fuzzer = Fuzzer(seeds, Path(".fuzzing/findings"))
    findings = list(fuzzer.fuzz(kind, str(int(time.time())), SECONDS))
    assert findings == [], "\n\n".join(f"{one.name}, kept in {one.files}:\n{one.what}" for one in findings)
    assert fuzzer.cases > 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("raises", "ZeroDivisionError"),
        ("crashes", "the process ended with -6"),
        ("allocates", "MemoryError"),
        ("hangs", "no answer after 1 s"),
    ],
)
def test_what_is_looked_for_is_seen_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, expected: str
) -> None:
    monkeypatch.setattr("tests.fuzzing.fuzzer.CASE_SECONDS", 1.0)
    seed = tmp_path / "seeds" / kind / "seed"
    seed.mkdir(parents=True)
    (seed / "file").write_bytes(b"whole")
    finding = next(Fuzzer(tmp_path / "seeds", tmp_path / "found").fuzz(kind, "1", 60.0))
    assert expected in finding.what
    assert finding.name == f"{kind}-1-0"
    assert list(finding.files.iterdir())
