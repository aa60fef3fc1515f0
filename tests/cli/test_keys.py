"""`embolens keys`, as an operator uses it."""

from __future__ import annotations

from pathlib import Path

from services.accounts.key_store import KeyStore
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


def test_what_is_no_key_or_scope_is_said(embolens: Embolens) -> None:
    assert embolens("keys", "create", "ris", "--scope", "write").returncode == 2
    unknown = embolens("keys", "revoke", "nothing")
    assert unknown.returncode == 1
    assert "embolens keys list" in unknown.stderr


def test_serve_does_not_start_open_to_the_network_without_a_key(embolens: Embolens) -> None:
    refused = embolens("serve", EMBOLENS_GATEWAY_HOST="0.0.0.0", EMBOLENS_GATEWAY_PORT="0")
    assert refused.returncode == 1
    assert "embolens keys create" in refused.stderr
