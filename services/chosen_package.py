"""The model package that an operator chose for a data directory: one small file in it, written whole.

A package inside the data directory is written down relative to it, so that the choice holds wherever that is mounted.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from imaging.errors import ConfigurationError

CHOICE_FILE = "chosen-package.json"
_REMEDY = "choose again with `embolens models use`"


def chosen_package(data_dir: Path) -> Path | None:
    """The directory of the package; None: nobody chose.

    Raises:
        ConfigurationError: the file is damaged, or the package is gone.
    """
    file = data_dir / CHOICE_FILE
    try:
        directory = data_dir.resolve() / Path(json.loads(file.read_text(encoding="utf-8"))["directory"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}", code="package.choice") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{file} names no package: {error!r}", code="package.choice", remedy=_REMEDY
        ) from error
    if not directory.is_dir():
        raise ConfigurationError(
            f"the chosen model package {directory} is not there", code="package.choice", remedy=_REMEDY
        )
    return directory


def choose_package(data_dir: Path, directory: Path) -> None:
    """From now on every process that starts on this data directory loads the package in `directory`."""
    data_dir.mkdir(parents=True, exist_ok=True)
    home, package = data_dir.resolve(), directory.resolve()
    shown = package.relative_to(home) if package.is_relative_to(home) else package
    file = data_dir / CHOICE_FILE
    unfinished = file.with_name(f".{CHOICE_FILE}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as writing:
        writing.write(json.dumps({"directory": str(shown)}) + "\n")
        writing.flush()
        os.fsync(writing.fileno())
    os.replace(unfinished, file)


def forget_choice(data_dir: Path) -> None:
    """From now on the shipped package is loaded again."""
    (data_dir / CHOICE_FILE).unlink(missing_ok=True)
