"""`embolens models`: from a checkpoint to the package that a segmentation is made with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from models.packages import default_package_directory
from tests.cli.conftest import Embolens
from tests.models.made_package import aanet_state, detector_files, make_package

SHIPPED = default_package_directory().name


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Of the data directory."""
    return tmp_path / "data" / "packages"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in aanet_state().items()}}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def row(table: str, name: str) -> list[str]:
    """The cells after the name."""
    line = next(line for line in table.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_the_shipped_package_is_listed_as_the_one_in_use(embolens: Embolens) -> None:
    listed = embolens("models", "list")
    assert listed.returncode == 0, listed.stderr
    _, digits, size_mb, used = row(listed.stdout, SHIPPED)
    assert re.fullmatch("[0-9a-f]{12}", digits)
    assert float(size_mb) > 1
    assert used == "default"


def test_a_package_that_is_imported_and_chosen_is_what_segments(
    embolens: Embolens, checkpoint: Path, packages: Path, tmp_path: Path
) -> None:
    base = make_package(tmp_path / "base")
    imported = embolens("models", "import", checkpoint, "--base", base.directory, "--name", "site-1")
    assert imported.returncode == 0, imported.stderr
    assert str(packages / "site-1") in imported.stdout
    assert "site-1: fusion and thresholds are not fitted" in imported.stdout

    chosen = embolens("models", "use", "site-1")
    assert chosen.returncode == 0, chosen.stderr
    assert "site-1: fusion and thresholds are not fitted" in chosen.stderr
    listed = embolens("models", "list").stdout
    assert row(listed, "site-1")[-1] == "choice"
    assert row(listed, SHIPPED)[-1] == ""
    assert "site-1: fusion and thresholds are not fitted" in listed

    used = provenance(embolens, tmp_path, "chosen")
    assert used["name"] == "site-1"
    assert used["sha256"].startswith(row(listed, "site-1")[1])
    given = provenance(embolens, tmp_path, "given", "--package", str(base.directory))
    assert given["name"] == "base", "--package wins"
    assert embolens("models", "use", "--default").returncode == 0
    assert row(embolens("models", "list").stdout, SHIPPED)[-1] == "default"


def provenance(embolens: Embolens, folder: Path, name: str, *options: str) -> dict[str, str]:
    """Which package segmented a phantom."""
    phantom = folder / "phantom"
    if not phantom.exists():
        embolens("phantom", "--output", phantom, "--slices", "40", "--matrix", "128", "--emboli", "1")
    done = embolens("segment", phantom / "ct.nii.gz", "--output", folder / name, "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    findings = json.loads((folder / name / "findings.json").read_text())
    package: dict[str, str] = findings["provenance"]["package"]
    return package


def test_a_detector_is_imported_into_the_shipped_package(embolens: Embolens, packages: Path, tmp_path: Path) -> None:
    weights, config = detector_files(tmp_path)
    imported = embolens("models", "import", weights, "--config", config)
    assert imported.returncode == 0, imported.stderr
    verified = embolens("models", "verify", f"{SHIPPED}-hospital")
    assert verified.returncode == 0
    assert f"{SHIPPED}-hospital 1 (" in verified.stdout
    assert (packages / f"{SHIPPED}-hospital" / "hospital.cfg").is_file()


def test_a_tampered_file_is_named_and_does_not_hide_the_other_packages(
    embolens: Embolens, packages: Path, tmp_path: Path
) -> None:
    make_package(packages / "site-1")
    with (packages / "site-1" / "aanet.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")

    for arguments in ((), ("site-1",), (packages / "site-1",)):
        verified = embolens("models", "verify", *arguments)
        assert verified.returncode == 1
        assert "file aanet.safetensors was changed" in verified.stderr
        assert "[package.tampered]" in verified.stderr
        assert (f"{SHIPPED} " in verified.stdout) == (not arguments)

    listed = embolens("models", "list")
    assert listed.returncode == 0
    assert row(listed.stdout, "site-1")[0] == "broken"
    assert "site-1 is broken: model package site-1: file aanet.safetensors was changed" in listed.stdout

    used = embolens("models", "use", "site-1")
    assert used.returncode == 1
    assert "was changed" in used.stderr
    assert not (tmp_path / "data" / "chosen-package.json").exists()


def test_the_setting_wins_and_the_command_says_so(embolens: Embolens, packages: Path, tmp_path: Path) -> None:
    make_package(packages / "site-1")
    other = make_package(tmp_path / "other")
    setting = {"EMBOLENS_PACKAGE_DIR": str(other.directory)}
    used = embolens("models", "use", "site-1", **setting)
    assert used.returncode == 0
    assert f"EMBOLENS_PACKAGE_DIR is set to {other.directory} and wins" in used.stderr
    listed = embolens("models", "list", **setting).stdout
    assert row(listed, "other")[-1] == "setting"
    assert row(listed, "site-1")[-1] == ""
    assert row(embolens("models", "list").stdout, "site-1")[-1] == "choice"


def test_a_chosen_package_that_is_gone_is_said_and_hides_nothing(embolens: Embolens, packages: Path) -> None:
    make_package(packages / "site-1")
    embolens("models", "use", "site-1")
    (packages / "site-1").rename(packages / "site-2")
    listed = embolens("models", "list")
    assert listed.returncode == 0
    assert "site-1 is not there" in listed.stderr
    assert row(listed.stdout, "site-2")[-1] == ""


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--name", "../up"), "package name '../up'"),
        (("--name", SHIPPED), "is the name of a shipped package"),
        (("--base", "nobody"), "no model package 'nobody'"),
        (("--config", "a.cfg"), "takes no cfg"),
    ],
)
def test_an_import_that_cannot_be_is_one_line_and_leaves_nothing(
    options: tuple[str, ...], complaint: str, embolens: Embolens, checkpoint: Path, packages: Path
) -> None:
    (checkpoint.parent / "a.cfg").touch()
    refused = embolens("models", "import", checkpoint, *options)
    assert refused.returncode == 1
    assert complaint in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not packages.exists() or not list(packages.iterdir())


@pytest.mark.parametrize(
    "arguments", [("use",), ("use", "phantom", "--default"), ("import", "no-such-file"), ("import",), ("unheard-of",)]
)
def test_a_wrong_command_line_is_a_usage_error(arguments: tuple[str, ...], embolens: Embolens) -> None:
    assert embolens("models", *arguments).returncode == 2
