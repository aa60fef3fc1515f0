"""SECURITY.md names what there is: tests, files and settings. Whoever renames one finds its row here."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from services.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "SECURITY.md").read_text("utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[^`]+)`", TEXT)))
FILES = sorted({*re.findall(r"`([\w./-]+\.\w+)`", TEXT), *re.findall(r"\]\(([^)]+)\)", TEXT)} - set(TESTS))


@cache
def names_in(path: Path) -> frozenset[str]:
    """The tests of a file as pytest names them, without parameters."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
    return frozenset(name for name in names if name.split("::")[-1].startswith("test_"))


def exists(test: str) -> bool:
    file, _, name = test.partition("::")
    return (REPOSITORY / file).is_file() and name in names_in(REPOSITORY / file)


@pytest.mark.parametrize("test", TESTS)
def test_a_test_it_names_exists(test: str) -> None:
    assert exists(test)


@pytest.mark.parametrize("file", FILES)
def test_a_file_it_names_exists(file: str) -> None:
    assert (REPOSITORY / file).is_file()


def test_a_test_that_was_renamed_is_missed() -> None:
    named = "tests/api/test_authentication.py::TestKeys::test_what_is_no_key_is_refused"
    assert exists(named)
    assert not exists(named + "_any_more")
    assert not exists(named.replace("TestKeys::", ""))
    assert not exists("tests/api/test_nothing.py::test_nothing")


def test_the_settings_it_names_exist() -> None:
    known = {f"EMBOLENS_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"EMBOLENS_[A-Z_0-9]+", TEXT)) <= known


def test_every_threat_has_a_control_and_a_test() -> None:
    model = TEXT.split("## Threat model")[1].split("## Known gaps")[0]
    rows = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", model, re.MULTILINE)]
    threats = [row for row in rows if row[0].strip(" -") not in ("threat", "")]
    assert model.count("| threat | control | test |") == 6  # one table for each letter of STRIDE
    assert len(threats) > 50
    for row in threats:
        _, control, tests = (cell.strip() for cell in row)
        assert control
        assert re.findall(r"`([^`]+)`", tests) == [one.strip("`") for one in tests.split(", ")]
        assert all(exists(one) for one in re.findall(r"`([^`]+)`", tests))
