"""Whether the lines of the audit trail are those that were written: none altered, removed, moved or added.

What it cannot see: a chain that was removed as a whole, and lines taken from the end together with an older head. Both
need write access to the folder; a syslog server that has the messages too shows them.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from services.audit.chain import LOCK, BadLine, Head, day_files, digest_of, read_head, read_signed


@dataclass
class ChainReport:
    """What was found in one chain.

    Attributes:
        problems: each says where and what; none where the chain is whole.
        notices: what a crash explains.
    """

    chain: str
    lines: int = 0
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def verify(directory: Path, key: bytes | None = None, *, archived: bool = False) -> list[ChainReport]:
    """Look at every chain in the audit folder.

    Args:
        key: with it every line has to be signed with it.
        archived: the oldest files of a chain may have been moved elsewhere.
    """
    chains = sorted(path for path in directory.glob("*") if path.is_dir())
    return [_Verifier(chain, key, archived).report() for chain in chains]


class _Verifier:
    def __init__(self, chain: Path, key: bytes | None, archived: bool) -> None:
        self._chain = chain
        self._key = key
        self._archived = archived
        self._found = ChainReport(chain.name)
        self._last = Head()
        self._torn: tuple[str, str] | None = None  # digest of a line that is none, and where it is

    def report(self) -> ChainReport:
        with _locked(self._chain):  # for a moment: what is added from now on is not looked at
            sizes = {path: path.stat().st_size for path in day_files(self._chain)}
            try:
                head, altered = read_head(self._chain, self._key), ""
            except BadLine as error:
                head, altered = None, str(error)
        for path, size in sizes.items():
            self._look_through(path, size)
        self._settle_torn(None)
        if altered:
            self._found.problems.append(f"the head was altered ({altered})")
        else:
            self._compare_with(head)
        return self._found

    def _look_through(self, path: Path, size: int) -> None:
        with path.open("rb") as file:
            number = 0
            while file.tell() < size:
                number, line = number + 1, file.readline()
                if line.endswith(b"\n"):
                    self._look_at(line[:-1], f"{path.name}:{number}", path.name)
                else:
                    self._found.notices.append(f"{path.name} ends with a torn line")

    def _look_at(self, line: bytes, where: str, file: str) -> None:
        try:
            record = read_signed(line, self._key)
            sequence, previous = int(record["sequence"]), str(record["previous"])
        except (BadLine, KeyError, TypeError, ValueError) as error:
            self._settle_torn(None)
            reason = str(error) if isinstance(error, BadLine) else "no line of a chain"
            self._torn = (digest_of(line), f"{where}: altered ({reason})")
            return
        self._settle_torn(record.get("after_torn"), where)
        if "head_was_lost" in record:
            self._found.problems.append(f"{where}: the head was missing when it was written; lines may be gone before")
        expected = self._last.sequence + 1
        if sequence > expected:
            which = f"lines {expected} to {sequence - 1}" if sequence - 1 > expected else f"line {expected}"
            is_start = expected == 1 and self._archived
            (self._found.notices if is_start else self._found.problems).append(f"{where}: {which} missing before it")
        elif sequence < expected:
            self._found.problems.append(f"{where}: line {sequence} comes after line {self._last.sequence}")
        elif previous != self._last.digest:
            self._found.problems.append(f"{where}: does not follow from the line before, which was altered")
        self._found.lines += 1
        self._last = Head(sequence, digest_of(line), file)

    def _settle_torn(self, noted: object, where: str = "") -> None:
        """A line that is none is a torn one if the line after it says so with its digest."""
        torn, self._torn = self._torn, None
        if torn is not None and torn[0] != noted:
            self._found.problems.append(torn[1])
        elif torn is not None:
            self._found.notices.append(f"{where}: a torn line before it, as a crash leaves")
        elif noted is not None:
            self._found.problems.append(f"{where}: the torn line before it is gone")

    def _compare_with(self, head: Head | None) -> None:
        if head is None:
            if self._found.lines:
                self._found.problems.append("the head is missing; lines may be gone from the end")
        elif head.sequence > self._last.sequence:
            self._found.problems.append(
                f"cut off: the last line is {self._last.sequence}, line {head.sequence} was written"
            )
        elif head.sequence == self._last.sequence and head.digest != self._last.digest:
            self._found.problems.append(f"line {head.sequence}, the last one, was altered")
        elif head.sequence < self._last.sequence:
            self._found.notices.append("the head is behind the last line, as a crash leaves it")


@contextmanager
def _locked(chain: Path) -> Iterator[None]:
    """While nobody adds a line. A copy of a chain may be without its lock."""
    try:
        lock = (chain / LOCK).open("rb")
    except FileNotFoundError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
