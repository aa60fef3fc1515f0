"""Known vulnerabilities of locked packages, by pip-audit. Fails on one; says so where PyPI could not be asked."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(locks: list[str]) -> int:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        # One list without hashes: torch has none, and pip-audit wants all or nothing.
        lines = [line for lock in locks for line in Path(lock).read_text().splitlines()]
        pins.write("\n".join(line.removesuffix("\\") for line in lines if not line.startswith(" ")))
        pins.flush()
        command = [Path(sys.executable).parent / "pip-audit", "--requirement", pins.name, "--no-deps", "--disable-pip"]
        asked = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    if "ConnectionError" in asked.stderr or "ServiceError" in asked.stderr:
        packages = []
    else:
        packages = json.loads(asked.stdout)["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [(package, one) for package in packages for one in package.get("vulns", ())]
    for package, one in found:
        fixed = ", ".join(one["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {one['id']}, mended in {fixed}", file=sys.stderr)
    if len(unknown) == len(packages):
        print("advisories: PyPI could not be asked, so nothing is known of any package")
    else:
        print(f"advisories: {len(packages) - len(unknown)} packages asked for, {len(found)} findings")
        if unknown:
            print(f"advisories: not known to PyPI: {', '.join(unknown)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
