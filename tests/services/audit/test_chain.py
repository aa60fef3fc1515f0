"""The chain of lines, and what the verifier sees of tampering."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.audit.chain import HEAD, ChainWriter, day_files
from services.audit.verifier import ChainReport, verify

KEY = b"a key that lies elsewhere"


def a_chain(directory: Path, lines: int = 6, key: bytes | None = None) -> Path:
    writer = ChainWriter(directory / "gateway@host", key)
    for number in range(lines):
        writer.append({"number": number})
    (file,) = day_files(directory / "gateway@host")
    return file


def report(directory: Path, key: bytes | None = None) -> ChainReport:
    (found,) = verify(directory, key)
    return found


def test_lines_of_two_writers_are_one_chain_that_only_the_owner_may_read(tmp_path: Path) -> None:
    file = a_chain(tmp_path)
    ChainWriter(file.parent).append({"number": 6})
    assert report(tmp_path) == ChainReport("gateway@host", lines=7)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["sequence"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_chain_goes_on_from_day_to_day_and_over_a_clock_that_was_set_back(tmp_path: Path) -> None:
    file = a_chain(tmp_path, lines=2)
    tomorrow = file.with_name("2999-01-01.jsonl")
    file.rename(file.with_name("2000-01-01.jsonl"))
    head = file.parent / HEAD
    head.write_text(head.read_text().replace(file.name, "2000-01-01.jsonl"))
    a_chain_writer = ChainWriter(file.parent)
    a_chain_writer.append({"number": 2})
    assert [path.name for path in day_files(file.parent)] == ["2000-01-01.jsonl", file.name]
    file.rename(tomorrow)
    head.write_text(head.read_text().replace(file.name, tomorrow.name))
    a_chain_writer.append({"number": 3})
    assert [path.name for path in day_files(file.parent)] == ["2000-01-01.jsonl", tomorrow.name]
    assert report(tmp_path) == ChainReport("gateway@host", lines=4)


def _alter(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"number": 2', b'"number": 9'))


def _alter_the_last(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"number": 5', b'"number": 9'))


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    return lambda file: (file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True)))), None)[1]


def _break_json(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'{"number": 2}', b'{"number": 2'))


TAMPERING: dict[str, tuple[Callable[[Path], None], str]] = {
    "altered": (_alter, "altered"),
    "the last one altered": (_alter_the_last, "altered"),
    "made unreadable": (_break_json, ":3: altered"),
    "removed": (_lines(lambda lines: lines[:2] + lines[3:]), "line 3 missing"),
    "two removed": (_lines(lambda lines: lines[:1] + lines[3:]), "lines 2 to 3 missing"),
    "the first removed": (_lines(lambda lines: lines[1:]), "line 1 missing"),
    "reordered": (_lines(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]), "comes after"),
    "repeated": (_lines(lambda lines: lines[:3] + lines[2:]), "line 3 comes after line 3"),
    "cut off at the end": (_lines(lambda lines: lines[:4]), "the last line is 4, line 6 was written"),
    "cut off in a line": (_lines(lambda lines: [*lines[:5], lines[5][:20]]), "the last line is 5"),
    "all gone": (lambda file: file.unlink(), "the last line is 0"),
    "head gone": (lambda file: (file.parent / HEAD).unlink(), "the head is missing"),
}


@pytest.mark.fault(
    "audit", "lines of the audit trail altered, removed, moved or cut off", "`embolens audit verify` names the place"
)
@pytest.mark.parametrize("name", TAMPERING)
@pytest.mark.parametrize("key", [None, KEY], ids=["without a key", "with a key"])
def test_tampering_is_found(name: str, key: bytes | None, tmp_path: Path) -> None:
    file = a_chain(tmp_path, key=key)
    assert not report(tmp_path, key).problems
    tamper, expected = TAMPERING[name]
    tamper(file)
    assert expected in "\n".join(report(tmp_path, key).problems)


def test_a_head_that_was_removed_is_found_also_when_the_process_has_gone_on(tmp_path: Path) -> None:
    file = a_chain(tmp_path)
    _lines(lambda lines: lines[:4])(file)
    (file.parent / HEAD).unlink()
    ChainWriter(file.parent).append({"number": 4})
    assert "lines may be gone before" in "\n".join(report(tmp_path).problems)


def test_rewriting_the_whole_chain_needs_the_key(tmp_path: Path) -> None:
    a_chain(tmp_path, key=KEY)
    shutil.rmtree(tmp_path / "gateway@host")
    a_chain(tmp_path, key=b"another")
    assert not report(tmp_path).problems  # whole in itself
    assert report(tmp_path, KEY).problems


def test_old_days_may_lie_elsewhere(tmp_path: Path) -> None:
    file = a_chain(tmp_path)
    _lines(lambda lines: lines[2:])(file)
    assert report(tmp_path).problems
    (archived,) = verify(tmp_path, archived=True)
    assert not archived.problems


_WRITES_ON = """
import sys
from pathlib import Path
from services.audit.chain import ChainWriter
writer = ChainWriter(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    writer.append({"number": number, "text": "x" * 2000})
    number += 1
"""


@pytest.mark.fault(
    "audit",
    "kill -9 of two processes that write one audit chain, ten rounds",
    "the chain verifies, and what was torn is known as torn",
)
def test_killed_in_the_middle_of_writing_the_chain_stays_whole(tmp_path: Path) -> None:
    chain = tmp_path / "gateway@host"
    for _ in range(10):
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITES_ON, str(chain)], stdout=subprocess.PIPE) for _ in range(2)
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.02)  # into the middle of it
        finally:
            for writer in writers:
                os.kill(writer.pid, signal.SIGKILL)
                writer.communicate()
    ChainWriter(chain).append({"number": -1})
    found = report(tmp_path)
    assert not found.problems
    assert found.lines > 10


@pytest.mark.fault("audit", "a process killed in the middle of a line", "the torn line is noted, no alarm")
@pytest.mark.parametrize("key", [None, KEY], ids=["without a key", "with a key"])
def test_a_torn_line_is_no_tampering(key: bytes | None, tmp_path: Path) -> None:
    file = a_chain(tmp_path, key=key)
    with file.open("ab") as torn:
        torn.write(b'{"sequence": 7, "previ')
    assert report(tmp_path, key).problems == []
    assert report(tmp_path, key).notices == [f"{file.name} ends with a torn line"]
    ChainWriter(file.parent, key).append({"number": 6})
    found = report(tmp_path, key)
    assert (found.lines, found.problems) == (7, [])
    assert "as a crash leaves" in found.notices[0]
    file.write_bytes(file.read_bytes().replace(b'{"sequence": 7, "previ\n', b""))
    assert "the torn line before it is gone" in "\n".join(report(tmp_path, key).problems)


@pytest.mark.fault("audit", "a process killed between a line and the head", "the next line follows from it")
def test_a_line_that_the_head_does_not_know_is_gone_on_from(tmp_path: Path) -> None:
    file = a_chain(tmp_path)
    head = (file.parent / HEAD).read_bytes()
    writer = ChainWriter(file.parent)
    writer.append({"number": 6})
    (file.parent / HEAD).write_bytes(head)
    assert report(tmp_path).notices == ["the head is behind the last line, as a crash leaves it"]
    writer.append({"number": 7})
    assert report(tmp_path) == ChainReport("gateway@host", lines=8)


_RUNS_OUT_OF_ROOM = """
import resource, sys
from pathlib import Path
from services.audit.chain import ChainWriter, day_files
chain = Path(sys.argv[1])
writer = ChainWriter(chain)
writer.append({"number": 0})
size = day_files(chain)[0].stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))  # a line is begun, not finished
for _ in range(2):
    try:
        writer.append({"number": 1, "text": "x" * 2000})
    except OSError:
        print("no room")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.append({"number": 1})
"""


@pytest.mark.fault("audit", "no room for the whole of a line", "nothing of it stays, and the chain goes on")
def test_a_line_without_room_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RUNS_OUT_OF_ROOM, str(tmp_path / "gateway@host")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "no room\nno room\n"
    assert report(tmp_path) == ChainReport("gateway@host", lines=2)
