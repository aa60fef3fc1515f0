"""Lines that hang together: each carries its number and the SHA-256 of the line before.

    audit/<chain>/2027-03-01.jsonl   the lines of a day (UTC)
    audit/<chain>/head.json          the last line's number and digest, and how long its file is
    audit/<chain>/lock               held while a line is added

A chain belongs to one kind of process on one host; several processes of the kind take turns. Nothing is kept in memory
between two lines, so a process may die at any point:

* before the line is whole: its beginning stays as a line of its own, and the next line says so (`after_torn`);
* between the line and the head: the next writer finds a whole line behind the head's length, and goes on from it.

With a key each line and the head carry an HMAC-SHA-256, so that rewriting them needs the key.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

HEAD, LOCK = "head.json", "lock"
_NOTHING_BEFORE = hashlib.sha256(b"").hexdigest()
_HMAC = ', "hmac": "'
_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends. `size` is that of `file` with the last line in it."""

    sequence: int = 0
    digest: str = _NOTHING_BEFORE
    file: str = ""
    size: int = 0

    def encoded(self, key: bytes | None) -> bytes:
        return signed({"sequence": self.sequence, "digest": self.digest, "file": self.file, "size": self.size}, key)


class BadLine(ValueError):
    """Not a line of a chain, or not signed with the key."""


def signed(record: Mapping[str, Any], key: bytes | None) -> bytes:
    """One line without its end."""
    text = json.dumps(record, ensure_ascii=False, separators=(", ", ": "))
    if key is None:
        return text.encode()
    digest = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return f'{text[:-1]}{_HMAC}{digest}"}}'.encode()


def read_signed(line: bytes, key: bytes | None) -> dict[str, Any]:
    """The record. Without a key an HMAC is not looked at.

    Raises:
        BadLine: it is no JSON object, or with a key, it was not signed with it.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadLine("not JSON") from error
    if not isinstance(record, dict):
        raise BadLine("not a JSON object")
    given = record.pop("hmac", None)
    if key is not None:
        text = line.rsplit(_HMAC.encode(), 1)[0] + b"}"
        if given is None or not hmac.compare_digest(given, hmac.new(key, text, hashlib.sha256).hexdigest()):
            raise BadLine("not signed with this key")
    return record


def digest_of(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def day_files(chain: Path) -> list[Path]:
    """In the order in which they were written."""
    return sorted(chain.glob("*.jsonl"))


def read_head(chain: Path, key: bytes | None) -> Head | None:
    """None where there is no head. Raises BadLine where it cannot be read, or was not signed with the key."""
    try:
        encoded = (chain / HEAD).read_bytes()
    except FileNotFoundError:
        return None
    record = read_signed(encoded, key)
    try:
        return Head(**record)
    except TypeError as error:
        raise BadLine("not a head") from error


class ChainWriter:
    """Adds lines to one chain."""

    def __init__(self, chain: Path, key: bytes | None = None) -> None:
        self._chain = chain
        self._key = key

    def append(self, message: Mapping[str, Any]) -> None:
        """Add a line, for every other process to see when this returns; not forced onto the disk.

        Raises:
            OSError: it could not be written; nothing of it counts.
        """
        self._chain.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        with _opened(self._chain / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed
            head, noted = self._found_head()
            # A clock that was set back starts no earlier file: their names are their order.
            name = max(f"{datetime.now(UTC):%Y-%m-%d}.jsonl", head.file)
            record = {"sequence": head.sequence + 1, "previous": head.digest, **noted, "message": dict(message)}
            line = signed(record, self._key)
            with _opened(self._chain / name) as file:
                begin = file.seek(0, os.SEEK_END)
                try:
                    _write_whole(file, line + b"\n")
                except OSError:  # the disk is full: what of it was written is taken back
                    os.ftruncate(file.fileno(), begin)
                    raise
            with suppress(OSError):  # the line is there, and the next writer goes on from it
                self._write_head(Head(head.sequence + 1, digest_of(line), name, begin + len(line) + 1))

    def _found_head(self) -> tuple[Head, dict[str, Any]]:
        """Where the chain ends, and what the next line has to say of how it was found."""
        try:
            head = read_head(self._chain, self._key)
        except BadLine:
            head = None
        files = day_files(self._chain)
        if head is None:
            # It is written by a rename and so never missing by accident.
            return (_rebuilt_head(files), {"head_was_lost": True}) if files else (Head(), {})
        noted: dict[str, Any] = {}
        for path in files:
            if path.name >= head.file:
                head = self._caught_up(path, head, noted)
        return head, noted

    def _caught_up(self, path: Path, head: Head, noted: dict[str, Any]) -> Head:
        """The head after what lies behind it in this file; a torn line is brought to an end."""
        with _opened(path) as file:
            begin = head.size if path.name == head.file else 0
            if file.seek(0, os.SEEK_END) < begin:  # it was cut off
                begin = 0
            file.seek(begin)
            behind = file.read()
            for line in behind.split(b"\n")[:-1]:
                with suppress(BadLine):  # of what is none, the verifier tells
                    if read_signed(line, self._key).get("previous") == head.digest:
                        head = Head(head.sequence + 1, digest_of(line), path.name, head.size)
            if torn := behind.rpartition(b"\n")[2]:
                file.write(b"\n")
                noted["after_torn"] = digest_of(torn)
        return head

    def _write_head(self, head: Head) -> None:
        new = self._chain / f"{HEAD}.new"
        with _opened(new) as file:
            file.truncate(0)
            _write_whole(file, head.encoded(self._key))
        os.replace(new, self._chain / HEAD)


def _rebuilt_head(files: list[Path]) -> Head:
    """From the last line that can be read."""
    for path in reversed(files):
        for line in reversed(path.read_bytes().splitlines()):
            with suppress(BadLine):
                record = read_signed(line, None)
                return Head(int(record.get("sequence", 0)), digest_of(line), path.name, path.stat().st_size)
    return Head()


def _opened(path: Path) -> FileIO:
    """For reading and appending; made where it is not there, readable by its owner alone.

    Without a buffer: what could not be written would be written when the file is closed.
    """
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _FILE_MODE), "a+b")


def _write_whole(file: FileIO, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]
