"""Darknet's .data file, of which detection needs one line: where the names of the classes are."""

from __future__ import annotations

import re
from pathlib import Path

from imaging.errors import ConfigurationError


def class_names(data_file: Path) -> list[str]:
    """The class names a .data file points to, one a line, in the order of the class numbers.

    A relative path is looked up from the working directory, as darknet does, then from the folder of the .data file.

    Raises:
        ConfigurationError: no `names=` line, or no such file.
    """
    options = dict(re.findall(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", _read(data_file), re.MULTILINE))
    listed = options.get("names") or options.get("labels")  # as darknet's get_metadata, src/option_list.c
    if not listed:
        raise ConfigurationError(
            f"{data_file.name} has no names= line",
            code="configuration.darknet_data",
            remedy="add names = FILE, a text file with one class name a line",
        )
    candidates = [Path(listed), data_file.parent / listed]
    names_file = next((path for path in candidates if path.is_file()), None)
    if names_file is None:
        raise ConfigurationError(
            f"{data_file.name} says names={listed}, and there is no such file",
            code="configuration.darknet_data",
            remedy="correct the path; it is taken from the working directory or the folder of the .data file",
        )
    return [line.strip() for line in _read(names_file).strip().splitlines()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path.name} cannot be read as text: {error}", code="configuration.darknet_data"
        ) from error
