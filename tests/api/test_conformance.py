"""The API as its description says, asked by schemathesis: every check, every operation, with a key, on real objects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from api.openapi import OPENAPI_FILE
from tests.api.test_tenancy import Hospital, hospital  # noqa: F401  the fixture

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PROGRAM = Path(sys.executable).parent / "schemathesis"


def test_every_answer_is_one_that_is_described(hospital: Hospital, tmp_path: Path) -> None:  # noqa: F811
    one = hospital.instance
    named = {
        "job_id": hospital.job,
        "retrieval_id": hospital.retrieval,
        "study": one.StudyInstanceUID,
        "series": one.SeriesInstanceUID,
        "instance": one.SOPInstanceUID,
    }
    config = tmp_path / "schemathesis.toml"
    objects = "".join(f'"path.{name}" = "{value}"\n' for name, value in named.items())
    text = (HERE / "schemathesis.toml").read_text() + f"\n[parameters]\n{objects}"
    config.write_text(text)
    shown = hospital.ours["Authorization"]
    command = [PROGRAM, "--config-file", config, "run", OPENAPI_FILE, "--url", hospital.gateway.url, "--no-color"]
    ran = subprocess.run(
        [*map(str, command), "-H", f"Authorization: {shown}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    tested = hospital.gateway.client.get("/openapi.json").json()["paths"]
    operations = sum(len(methods) for methods in tested.values())
    assert f"Tested: {operations}" in ran.stdout
