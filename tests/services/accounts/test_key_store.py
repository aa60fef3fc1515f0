"""API keys: what they look like, how long they are valid, and what is kept of them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from imaging.errors import ConfigurationError, NotFound, StateConflict
from services.accounts.api_key import ApiKey
from services.accounts.key_store import KeyStore, is_usable
from services.accounts.principal import Principal, Scope
from services.store.database import Database


@pytest.fixture
def keys(database: Database) -> KeyStore:
    return KeyStore(database)


class TestTheText:
    def test_it_is_read_back(self) -> None:
        key = ApiKey.generate()
        assert ApiKey.parse(key.text()) == key
        assert key.text().startswith(f"embolens_{key.id}_")
        assert key.secret not in repr(key)

    def test_a_mistyped_one_is_noticed_without_asking_anybody(self) -> None:
        text = ApiKey.generate().text()
        for place in range(len("embolens_"), len(text)):
            other = "x" if text[place] != "x" else "y"
            assert ApiKey.parse(text[:place] + other + text[place + 1 :]) is None

    def test_no_two_are_alike(self) -> None:
        assert len({ApiKey.generate().text() for _ in range(1000)}) == 1000


class TestAKey:
    def test_it_says_who_calls(self, keys: KeyStore) -> None:
        _, key = keys.create("ris", scopes=[Scope.READ], tenant="cardiology", max_upload_bytes=5)
        assert keys.principal_of(key.text()) == Principal("ris", "cardiology", frozenset({Scope.READ}), 5)

    def test_its_secret_is_not_kept(self, keys: KeyStore, database: Database, tmp_path: Path) -> None:
        row, key = keys.create("ris", scopes=[Scope.READ])
        keys.principal_of(key.text())
        database.close()
        kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert row.secret_hash.encode() in kept
        assert key.secret.encode() not in kept

    def test_many_callers_are_looked_up_at_once(self, keys: KeyStore) -> None:
        texts = [keys.create(name, scopes=[Scope.READ])[1].text() for name in "abc"]
        gone, gone_key = keys.create("gone", scopes=[Scope.READ])
        keys.revoke(gone.id)
        found = keys.principals_of([*texts, gone_key.text(), ApiKey.generate().text(), "no key"])
        assert {text: one.name for text, one in found.items()} == dict(zip(texts, "abc", strict=True))

    def test_anothers_secret_does_not_do(self, keys: KeyStore) -> None:
        (_, one), (_, other) = keys.create("a", scopes=[Scope.READ]), keys.create("b", scopes=[Scope.READ])
        assert keys.principal_of(ApiKey(one.id, other.secret).text()) is None

    def test_its_last_use_is_noted(self, keys: KeyStore) -> None:
        _, key = keys.create("ris", scopes=[Scope.READ])
        assert keys.all()[0].last_used_at is None
        keys.principal_of(key.text())
        first = keys.all()[0].last_used_at
        keys.principal_of(key.text())
        assert first is not None
        assert keys.all()[0].last_used_at == first  # not written at every request

    def test_it_expires(self, keys: KeyStore) -> None:
        row, key = keys.create("ris", scopes=[Scope.READ], valid_for=timedelta(seconds=-1))
        assert not is_usable(row)
        assert keys.principal_of(key.text()) is None
        assert not keys.has_usable()
        keys.create("ris", scopes=[Scope.READ])  # its name is free again

    @pytest.mark.parametrize("name", ["", "oidc:ada", "a\nb", "x" * 65])
    def test_names_that_could_be_taken_for_others_are_refused(self, keys: KeyStore, name: str) -> None:
        with pytest.raises(ConfigurationError):
            keys.create(name, scopes=[Scope.READ])

    @pytest.mark.parametrize("tenant", ["", "..", "a/b", "Cardiology"])
    def test_so_are_tenants_that_are_no_name_of_a_directory(self, keys: KeyStore, tenant: str) -> None:
        with pytest.raises(ConfigurationError):
            keys.create("ris", scopes=[Scope.READ], tenant=tenant)

    def test_two_clients_have_two_names(self, keys: KeyStore) -> None:
        keys.create("ris", scopes=[Scope.READ])
        with pytest.raises(StateConflict):
            keys.create("ris", scopes=[Scope.READ])


class TestRotation:
    def test_both_are_valid_for_a_while(self, keys: KeyStore) -> None:
        old_row, old = keys.create("ris", scopes=[Scope.SUBMIT], tenant="t", valid_for=timedelta(days=30))
        new_row, new = keys.rotate(old_row.id, overlap=timedelta(hours=1))
        assert keys.principal_of(old.text()) == keys.principal_of(new.text()) is not None
        kept = next(row for row in keys.all() if row.id == old_row.id)
        assert kept.expires_at is not None
        assert kept.expires_at - new_row.created_at == pytest.approx(timedelta(hours=1), abs=timedelta(seconds=5))
        assert new_row.expires_at is not None
        assert new_row.expires_at - new_row.created_at == pytest.approx(timedelta(days=30), abs=timedelta(seconds=5))

    def test_without_an_overlap_the_old_one_ends_at_once(self, keys: KeyStore) -> None:
        row, old = keys.create("ris", scopes=[Scope.READ])
        keys.rotate(row.id, overlap=timedelta(0))
        assert keys.principal_of(old.text()) is None

    def test_the_overlap_makes_no_key_live_longer(self, keys: KeyStore) -> None:
        row, _ = keys.create("ris", scopes=[Scope.READ], valid_for=timedelta(minutes=5))
        keys.rotate(row.id, overlap=timedelta(days=1))
        assert next(one for one in keys.all() if one.id == row.id).expires_at == row.expires_at

    def test_what_is_over_is_not_rotated(self, keys: KeyStore) -> None:
        row, _ = keys.create("ris", scopes=[Scope.READ])
        keys.revoke(row.id)
        with pytest.raises(StateConflict):
            keys.rotate(row.id, overlap=timedelta(hours=1))
        with pytest.raises(NotFound):
            keys.rotate("nothing", overlap=timedelta(hours=1))


class TestASession:
    def test_it_stands_for_its_key_while_that_is_valid(self, keys: KeyStore) -> None:
        row, key = keys.create("ris", scopes=[Scope.READ])
        token = keys.open_session(key.text(), lasts=timedelta(hours=1))
        assert token is not None
        assert keys.principal_of_session(token) == keys.principal_of(key.text())
        keys.revoke(row.id)
        assert keys.principal_of_session(token) is None

    def test_it_ends(self, keys: KeyStore) -> None:
        _, key = keys.create("ris", scopes=[Scope.READ])
        over = keys.open_session(key.text(), lasts=timedelta(seconds=-1))
        closed = keys.open_session(key.text(), lasts=timedelta(hours=1))
        assert over is not None
        assert closed is not None
        keys.close_session(closed)
        assert keys.principal_of_session(over) is keys.principal_of_session(closed) is None

    def test_a_wrong_key_opens_none(self, keys: KeyStore) -> None:
        assert keys.open_session(ApiKey.generate().text(), lasts=timedelta(hours=1)) is None
