"""What may not listen beyond loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from services.accounts.exposure import check_authentication, check_secrets, is_loopback, weakness
from services.ingest.listener import run_listener
from services.settings import Settings

STRONG = "b7f0c1d29e4a86355f1d"


@pytest.mark.parametrize(
    "password",
    [
        None,
        "",
        "short-b7f0c1d2",
        "postgrespostgres",
        "password-password",
        "Changeme-Changeme-123",
        "a" * 40,
        "embolens embolens",
    ],
)
def test_what_is_guessed_is_weak(password: str | None) -> None:
    assert weakness(password) is not None


def test_a_random_one_is_not() -> None:
    assert weakness(STRONG) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "embolens.example", "localhost.example"])
def test_so_is_what_is_beyond(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"database_url": "postgresql+psycopg://embolens@db/embolens"}, "EMBOLENS_DATABASE_URL"),
        ({"database_url": "postgresql+psycopg://embolens:@db/embolens"}, "EMBOLENS_DATABASE_URL"),
        ({"database_url": "postgresql+psycopg://embolens:embolens@127.0.0.1/embolens"}, "EMBOLENS_DATABASE_URL"),
        ({"redis_url": "redis://redis:6379/0"}, "EMBOLENS_REDIS_URL"),
        ({"redis_url": "rediss://:redisredisredisredis@10.0.0.7:6379/0"}, "EMBOLENS_REDIS_URL"),
    ],
)
def test_a_weak_secret_is_refused_beyond_loopback_alone(settings: dict[str, str], named: str) -> None:
    check_secrets(Settings(**settings), "127.0.0.1")
    with pytest.raises(ConfigurationError, match=named) as refused:
        check_secrets(Settings(**settings), "0.0.0.0")
    assert "embolens:embolens" not in str(refused.value)
    assert "openssl rand" in refused.value.remedy


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"database_url": f"postgresql+psycopg://embolens:{STRONG}@db/embolens"},
        {"database_url": "postgresql+psycopg:///embolens?host=/run/postgresql"},
        {"database_url": "postgresql+psycopg://embolens@db/embolens?sslcert=/run/secrets/client.pem"},
        {"redis_url": f"redis://:{STRONG}@redis:6379/0"},
        {"redis_url": "redis://127.0.0.1:6379/0"},
        {"redis_url": "unix:///run/redis.sock"},
    ],
)
def test_what_holds_is_taken(settings: dict[str, str]) -> None:
    check_secrets(Settings(**settings), "0.0.0.0")


def test_the_gateway_needs_somebody_who_can_log_in() -> None:
    beyond = Settings(gateway_host="0.0.0.0")
    with pytest.raises(ConfigurationError, match="no API key") as refused:
        check_authentication(beyond, has_key=False)
    assert "embolens keys create" in refused.value.remedy
    check_authentication(beyond, has_key=True)
    check_authentication(Settings(gateway_host="0.0.0.0", oidc_issuer="https://sso.example"), has_key=False)
    check_authentication(Settings(authentication=False), has_key=False)
    with pytest.raises(ConfigurationError, match="EMBOLENS_AUTHENTICATION"):
        check_authentication(Settings(gateway_host="0.0.0.0", authentication=False), has_key=True)


def test_the_listener_does_not_start_beside_a_weak_secret(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, dicom_host="0.0.0.0", redis_url="redis://redis.example:6379/0")
    with pytest.raises(ConfigurationError, match="EMBOLENS_REDIS_URL"):
        run_listener(settings)
    assert not list(tmp_path.iterdir())
