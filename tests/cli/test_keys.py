"""`embolens keys`, as an operator uses it."""

from __future__ import annotations

from pathlib import Path

from cli.process_user import process_user
from services.accounts.key_store import KeyStore
from services.audit.codes import SECURITY_ALERT, SECURITY_CONFIGURATION
from services.audit.written import written_messages
from services.store.database import Database
from tests.cli.conftest import Embolens


def test_a_key_is_made_listed_rotated_and_revoked(embolens: Embolens, tmp_path: Path) -> None:
    made = embolens("keys", "create", "ris", "--scope", "submit", "--scope", "read", "--tenant", "cardiology")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("embolens_")
    assert key not in made.stderr
    database = Database(f"sqlite:///{tmp_path / 'data' / 'embolens.sqlite'}")
    keys = KeyStore(database)
    principal = keys.principal_of(key)
    assert principal is not None
    assert (principal.name, principal.tenant, sorted(principal.scopes)) == ("ris", "cardiology", ["read", "submit"])

    key_id = key.split("_")[1]
    rotated = embolens("keys", "rotate", key_id, "--overlap-hours", "0")
    new = rotated.stdout.strip()
    assert keys.principal_of(key) is None
    assert keys.principal_of(new) == principal

    listed = embolens("keys", "list").stdout
    assert [state in listed for state in ("expired", "valid", "revoked")] == [True, True, False]
    assert key_id in listed
    assert key not in listed
    assert new not in listed

    assert embolens("keys", "revoke", new.split("_")[1]).returncode == 0
    assert keys.principal_of(new) is None
    assert "revoked" in embolens("keys", "list").stdout
    database.close()


def test_who_changed_which_key_is_in_the_audit_trail(embolens: Embolens, tmp_path: Path) -> None:
    key = embolens("keys", "create", "ris", "--scope", "read").stdout.strip()
    new = embolens("keys", "rotate", key.split("_")[1]).stdout.strip()
    old_id, new_id = key.split("_")[1], new.split("_")[1]
    embolens("keys", "revoke", old_id)
    embolens("keys", "list")
    messages = list(written_messages(tmp_path / "data" / "audit"))
    assert {(one.event, *one.event_types) for one in messages} == {(SECURITY_ALERT, SECURITY_CONFIGURATION)}
    assert {one.participants[0].user_id for one in messages} == {process_user()}
    assert [one.outcome_description for one in messages] == [
        f"API key {old_id} of ris made: read, tenant default",
        f"API key {new_id} of ris made in the place of {old_id}",
        f"API key {old_id} of ris revoked",
    ]
    written = b"".join(path.read_bytes() for path in (tmp_path / "data" / "audit").rglob("*.jsonl"))
    assert not [text for text in (key, new) if text.split("_", 2)[2].encode() in written]


def test_whoever_cannot_sign_the_audit_trail_changes_no_key(embolens: Embolens, tmp_path: Path) -> None:
    refused = embolens("keys", "create", "ris", "--scope", "read", EMBOLENS_AUDIT_KEY_FILE=str(tmp_path / "not there"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert not (tmp_path / "data" / "embolens.sqlite").exists()


def test_what_is_no_key_or_scope_is_said(embolens: Embolens, tmp_path: Path) -> None:
    assert embolens("keys", "create", "ris", "--scope", "write").returncode == 2
    unknown = embolens("keys", "revoke", "nothing")
    assert unknown.returncode == 1
    assert "embolens keys list" in unknown.stderr
    assert not list(written_messages(tmp_path / "data" / "audit"))


def test_serve_does_not_start_open_to_the_network_without_a_key(embolens: Embolens) -> None:
    refused = embolens("serve", EMBOLENS_GATEWAY_HOST="0.0.0.0", EMBOLENS_GATEWAY_PORT="0")
    assert refused.returncode == 1
    assert "embolens keys create" in refused.stderr
