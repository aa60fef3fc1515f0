"""The command line's face: quick help, and exit codes that mean one thing each."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cli.exit_codes import ExitCode, exit_code_of
from imaging.errors import (
    ConfigurationError,
    DeliveryError,
    EmbolensError,
    InputError,
    InputTooLarge,
    NotAnalysable,
    Reason,
)
from tests.cli.conftest import REPOSITORY, Embolens


def test_help_takes_less_than_a_second(embolens: Embolens) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    helped = embolens("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert helped.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # of the processor, however busy
    assert all(command in helped.stdout for command in ("serve", "segment", "phantom", "demo", "health"))


def test_the_command_line_loads_what_is_heavy_only_when_it_needs_it() -> None:
    look = "import cli.app, sys; print([n for n in ('torch', 'numpy', 'pydicom', 'celery') if n in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", look], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    ["serve", "segment", "phantom", "demo", "health", "import-cases", "convert", "models", "train", "package"],
)
def test_every_command_explains_itself(command: str, embolens: Embolens) -> None:
    assert embolens(command, "--help").returncode == ExitCode.DONE


@pytest.mark.parametrize(
    "arguments",
    [
        ("unheard-of",),
        ("serve", "--only", "gateway,archive"),
        ("segment", "no-such-file", "--output", "out"),
        ("segment", "--output", "out"),
        ("health", "archive"),
        ("demo", "--pacs", "ORTHANC"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: tuple[str, ...], embolens: Embolens) -> None:
    assert embolens(*arguments).returncode == ExitCode.USAGE


def test_one_process_alone_needs_a_broker(embolens: Embolens) -> None:
    refused = embolens("serve", "--only", "worker")

    assert refused.returncode == ExitCode.FAILURE
    assert "EMBOLENS_REDIS_URL" in refused.stderr
    assert "[configuration]" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_demo_does_not_empty_a_folder_that_is_not_its_own(embolens: Embolens, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "thesis.tex"
    mine.parent.mkdir()
    mine.touch()

    assert embolens("demo", "--output", mine.parent).returncode == ExitCode.USAGE
    assert mine.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("not a CT"), 3),
        (InputTooLarge("too large"), 3),
        (NotAnalysable([Reason("geometry.missing_slices", "3 slices are missing")]), 3),
        (ConfigurationError("no package"), 1),
        (DeliveryError("no PACS"), 1),
        (EmbolensError("anything"), 1),
    ],
)
def test_each_branch_of_the_error_tree_has_its_exit_code(error: EmbolensError, code: int) -> None:
    assert exit_code_of(error) == code
