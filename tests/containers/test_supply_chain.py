"""What is installed is what was locked, and the bills of materials say what that is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = ("requirements-gateway.lock", "requirements.lock", "requirements-dev.lock")


def locked(name: str) -> dict[str, list[str]]:
    """The hashes of each pinned requirement, `name==version`."""
    entries: dict[str, list[str]] = {}
    for entry in (REPOSITORY / name).read_text().replace("\\\n", " ").splitlines():
        requirement, *rest = entry.split()
        entries[requirement] = [part.removeprefix("--hash=sha256:") for part in rest if part.startswith("--hash=")]
    return entries


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_is_pinned_and_has_the_hashes_of_its_files(lock: str) -> None:
    entries = locked(lock)
    assert len(entries) > 50
    for requirement, hashes in entries.items():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", requirement)
        assert hashes, requirement
        assert all(re.fullmatch(r"[0-9a-f]{64}", one) for one in hashes), requirement


def test_torch_alone_is_pinned_without_a_hash() -> None:
    assert locked("requirements-torch.lock") == {"torch==2.13.0": []}


def test_the_images_install_nothing_but_torch_without_its_hash() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"\bpip .*? install (.*?)(?:&&|\n)", dockerfile)
    assert len(installs) == 3
    for install in installs:
        assert "--only-binary :all:" in install
        assert ("--require-hashes" in install) != ("requirements-torch.lock" in install)


def test_the_images_and_the_tests_have_the_same_versions() -> None:
    gateway, worker, dev = (set(locked(lock)) for lock in LOCKS)
    assert gateway <= worker <= dev


@pytest.mark.parametrize(
    ("image", "locks"),
    [
        ("gateway", ["requirements-gateway.lock"]),
        ("worker", ["requirements.lock", "requirements-torch.lock"]),
    ],
)
def test_the_bill_of_materials_lists_what_is_locked(image: str, locks: list[str]) -> None:
    path = REPOSITORY / "deploy" / "sbom" / f"{image}.cdx.json"
    spec = importlib.util.spec_from_file_location("sbom", REPOSITORY / "deploy" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    sbom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sbom)

    assert path.read_text() == sbom.bill_of_materials(image), "run `make sbom`"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text()) is None
    billed = {
        f"{component['name']}=={component['version']}": [one["content"] for one in component["hashes"]]
        for component in json.loads(path.read_text())["components"]
    }
    entries = {requirement: hashes for lock in locks for requirement, hashes in locked(lock).items()}
    assert {name: sorted(hashes) for name, hashes in billed.items()} == {
        name: sorted(hashes) for name, hashes in entries.items()
    }


def test_where_nobody_could_be_asked_no_package_is_called_safe() -> None:
    command = [sys.executable, "deploy/advisories.py", "requirements-torch.lock"]
    nowhere = os.environ | {"HTTPS_PROXY": "http://127.0.0.1:9"}
    asked = subprocess.run(
        command, cwd=REPOSITORY, env=nowhere, capture_output=True, text=True, check=False, timeout=60
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == "advisories: PyPI could not be asked, so nothing is known of any package\n"
