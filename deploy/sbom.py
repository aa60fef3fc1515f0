"""The bill of materials of each image (CycloneDX 1.6) from its lock files: names, versions, SHA-256 of every file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_LOCKS = {
    "gateway": ["requirements-gateway.lock"],
    "worker": ["requirements.lock", "requirements-torch.lock"],
}


def bill_of_materials(image: str) -> str:
    """The same bytes for the same lock files."""
    locked = "".join((_ROOT / lock).read_text() for lock in _LOCKS[image])
    command = [Path(sys.executable).parent / "cyclonedx-py", "requirements", "--pyproject", _ROOT / "pyproject.toml"]
    options = ["--mc-type", "application", "--output-reproducible", "--spec-version", "1.6", "-"]
    made = subprocess.run([*command, *options], input=locked, capture_output=True, text=True, check=True)
    bill = json.loads(made.stdout)
    for component in bill["components"]:
        # A file's hash says what it is; where it was fetched from is each site's own matter.
        component["hashes"] = [one for file in component.pop("externalReferences") for one in file.get("hashes", ())]
        component["bom-ref"] = component["purl"]
        del component["description"]
    bill["dependencies"] = [{"ref": component["purl"]} for component in bill["components"]]
    del bill["metadata"]["tools"]
    return json.dumps(bill, indent=1) + "\n"


def main() -> None:
    for image in _LOCKS:
        (_ROOT / "deploy" / "sbom" / f"{image}.cdx.json").write_text(bill_of_materials(image))


if __name__ == "__main__":
    main()
