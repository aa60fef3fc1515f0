"""The error tree as exit codes: the one place where the command line translates it."""

from __future__ import annotations

import sys
from enum import IntEnum

from imaging.errors import EmbolensError, InputError, NotAnalysable


class ExitCode(IntEnum):
    DONE = 0
    FAILURE = 1
    USAGE = 2  # typer's own for a wrong command line
    NOT_ANALYSABLE = 3


def exit_code_of(error: EmbolensError) -> ExitCode:
    """What a script is told about this error."""
    return ExitCode.NOT_ANALYSABLE if isinstance(error, (InputError, NotAnalysable)) else ExitCode.FAILURE


def explain(error: EmbolensError) -> None:
    """One line on stderr for people, with the code for programs."""
    print(f"embolens: {error} [{error.code}]", file=sys.stderr)
