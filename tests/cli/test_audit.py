from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from imaging.errors import EmbolensError
from services.audit.events import Peer, Subject, instances_received
from services.audit.trail import AuditTrail
from services.settings import Settings, settings


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("EMBOLENS_DATA_DIR", str(tmp_path))
    settings.cache_clear()
    chosen = settings()
    trail = AuditTrail(chosen, "listener")
    instances_received(trail, Peer("CT1", "10.0.0.7"), Subject("1.2.3", "P1", {"1.2": 5}))
    instances_received(trail, Peer("CT2", "10.0.0.8"), Subject("1.2.4", "P2", {"1.2": 5}))
    yield chosen
    settings.cache_clear()


def test_verify_says_of_every_chain_whether_it_is_whole_and_is_itself_written_down(chosen: Settings) -> None:
    result = CliRunner().invoke(app, ["audit", "verify"])
    assert result.exit_code == 0
    assert "2 lines, whole" in result.output
    assert "EMBOLENS_AUDIT_KEY_FILE" in result.output
    shown = CliRunner().invoke(app, ["audit", "show"]).output.splitlines()
    assert len(shown) == 3
    assert "Audit Log Used (R)" in shown[2]


def test_a_broken_chain_is_an_error_for_scripts(chosen: Settings) -> None:
    (file,) = (chosen.data_dir / "audit").rglob("*.jsonl")
    file.write_text(file.read_text().replace("CT1", "CT9"))
    result = CliRunner().invoke(app, ["audit", "verify"])
    assert "BROKEN" in result.output
    assert isinstance(result.exception, EmbolensError)
    assert result.exception.code == "audit.broken"


def test_show_tells_what_was_done_to_one_study(chosen: Settings) -> None:
    result = CliRunner().invoke(app, ["audit", "show", "--study", "1.2.3"])
    (line,) = result.output.splitlines()
    assert "DICOM Instances Transferred (C)  CT1 [10.0.0.7]* > listener@" in line
    as_json = CliRunner().invoke(app, ["audit", "show", "--study", "1.2.4", "--json"]).output
    assert '"user_id": "CT2"' in as_json
