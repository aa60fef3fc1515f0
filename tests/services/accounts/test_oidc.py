"""Bearer tokens, checked against issuers that are really asked for their keys."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from imaging.errors import ConfigurationError, IssuerUnavailable, NotAuthenticated, NotPermitted
from services.accounts import oidc
from services.accounts.oidc import TokenChecker
from services.accounts.principal import Principal, Scope
from services.embedded_redis import free_port
from services.settings import Settings
from tests.services.accounts.issuers import AUDIENCE, OwnIssuer, log_in, provider


def checker(issuer: str, **chosen: Any) -> TokenChecker:
    return TokenChecker(Settings(oidc_issuer=issuer, oidc_audience=AUDIENCE, **chosen))


@pytest.fixture
def own() -> Iterator[OwnIssuer]:
    issuer = OwnIssuer()
    yield issuer
    issuer.close()


class TestARealProvider:
    @pytest.fixture(scope="class")
    def issuer(self) -> Iterator[str]:
        with provider() as issuer:
            yield issuer

    def test_its_token_says_who_calls_what_for_and_of_which_tenant(self, issuer: str) -> None:
        token = log_in(issuer, "ada", scope="openid embolens.read embolens.submit admin", department="cardiology")
        found = checker(issuer, oidc_tenant_claim="department").principal_of(token)
        assert found == Principal("oidc:ada", "cardiology", frozenset({Scope.READ, Scope.SUBMIT}))

    def test_roles_may_stand_in_a_list_inside_an_object(self, issuer: str) -> None:
        roles = {"embolens": {"roles": ["pe-admin", "other"]}}
        token = log_in(issuer, "bob", resource_access=roles)
        chosen = {"oidc_scope_claim": "resource_access.embolens.roles", "oidc_scope_prefix": "pe-"}
        assert checker(issuer, **chosen).principal_of(token).scopes == {Scope.ADMIN}

    def test_a_token_for_somebody_else_is_refused(self, issuer: str) -> None:
        with pytest.raises(NotAuthenticated, match="InvalidAudience"):
            checker(issuer).principal_of(log_in(issuer, "ada", client="another-program"))

    def test_a_token_of_another_issuer_is_refused(self, issuer: str) -> None:
        with provider() as other, pytest.raises(NotAuthenticated):
            checker(issuer).principal_of(log_in(other, "ada"))

    def test_an_expired_token_is_refused(self) -> None:
        with provider(access_token_max_age=timedelta(seconds=-60)) as issuer:
            with pytest.raises(NotAuthenticated) as refused:
                checker(issuer).principal_of(log_in(issuer, "ada"))
            assert refused.value.code == "token.expired"

    def test_new_keys_are_found_and_old_ones_count_no_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(oidc, "_REFETCH_AFTER_S", 0.0)
        port = free_port()
        with provider(port) as issuer:
            tokens = checker(issuer)
            old = log_in(issuer, "ada", scope="embolens.read")
            assert tokens.principal_of(old).scopes == {Scope.READ}
        with provider(port):
            assert tokens.principal_of(log_in(issuer, "ada", scope="embolens.read")).scopes == {Scope.READ}
            with pytest.raises(NotAuthenticated):
                tokens.principal_of(old)

    @pytest.mark.fault("accounts", "the OIDC issuer stops", "known keys serve on; what cannot be checked is not a 401")
    def test_while_it_is_away_known_keys_serve_and_others_cannot_be_told(self) -> None:
        with provider() as issuer:
            tokens, token = checker(issuer), log_in(issuer, "ada", scope="embolens.read")
            tokens.principal_of(token)
            fresh = checker(issuer)
        assert tokens.principal_of(token).name == "oidc:ada"
        for _ in range(2):  # the second time it is not even asked
            with pytest.raises(IssuerUnavailable):
                fresh.principal_of(token)


class TestSignatures:
    @pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "PS384", "ES256"])
    def test_asymmetric_ones_count(self, own: OwnIssuer, algorithm: str) -> None:
        assert checker(own.url).principal_of(own.sign(algorithm)).scopes == {Scope.READ}

    def test_a_token_without_one_does_not(self, own: OwnIssuer) -> None:
        parts = [{"alg": "none", "typ": "JWT"}, own.claims()]
        token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
        with pytest.raises(NotAuthenticated, match="none"):
            checker(own.url).principal_of(token + ".")

    def test_nor_one_signed_with_the_public_key_as_if_it_were_a_secret(self, own: OwnIssuer) -> None:
        public = own.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()).rstrip(b"=")
        body = base64.urlsafe_b64encode(json.dumps(own.claims()).encode()).rstrip(b"=")
        mac = base64.urlsafe_b64encode(hmac.digest(public, head + b"." + body, "sha256")).rstrip(b"=")
        with pytest.raises(NotAuthenticated, match="HS256"):
            checker(own.url).principal_of((head + b"." + body + b"." + mac).decode())

    @pytest.mark.parametrize(
        ("algorithm", "key_id"),
        [("RS256", "ec"), ("ES256", "rsa"), ("PS256", "bound"), ("RS256", "sealing"), ("RS256", "unknown")],
    )
    def test_nor_one_with_a_key_that_is_not_for_it(self, own: OwnIssuer, algorithm: str, key_id: str) -> None:
        with pytest.raises(NotAuthenticated):
            checker(own.url).principal_of(own.sign(algorithm, key_id))

    def test_nor_one_of_a_key_that_nobody_publishes(self, own: OwnIssuer) -> None:
        foreign = rsa.generate_private_key(65537, 2048)
        with pytest.raises(NotAuthenticated, match="InvalidSignature"):
            checker(own.url).principal_of(own.sign(key=foreign))

    def test_unknown_keys_do_not_make_us_ask_at_every_request(self, own: OwnIssuer) -> None:
        tokens = checker(own.url)
        for number in range(20):
            with pytest.raises(NotAuthenticated):
                tokens.principal_of(own.sign(key_id=f"made-up-{number}"))
        assert own.asked == 1


class TestClaims:
    @pytest.mark.parametrize(
        "changed",
        [
            {"iss": "http://127.0.0.1:1"},
            {"aud": "another"},
            {"aud": None},
            {"exp": None},
            {"sub": None},
            {"exp": int(time.time()) - 3600},
            {"nbf": int(time.time()) + 3600},
        ],
        ids=str,
    )
    def test_each_of_them_is_checked(self, own: OwnIssuer, changed: dict[str, Any]) -> None:
        with pytest.raises(NotAuthenticated):
            checker(own.url).principal_of(own.sign(**changed))

    def test_clocks_may_differ_a_little(self, own: OwnIssuer) -> None:
        now = int(time.time())
        assert checker(own.url).principal_of(own.sign(exp=now - 5, nbf=now + 5)).name == "oidc:u1"

    @pytest.mark.parametrize("department", [None, "../other", "Cardiology", "", ["cardiology"], "a" * 33])
    def test_a_token_that_names_no_tenant_is_of_none(self, own: OwnIssuer, department: Any) -> None:
        with pytest.raises(NotPermitted) as refused:
            checker(own.url, oidc_tenant_claim="department").principal_of(own.sign(department=department))
        assert refused.value.code == "token.no_tenant"

    @pytest.mark.parametrize("scope", [None, "read admin", {"embolens.read": True}, 7, "xembolens.read"])
    def test_what_is_not_meant_for_us_permits_nothing(self, own: OwnIssuer, scope: Any) -> None:
        assert checker(own.url).principal_of(own.sign(scope=scope)).scopes == frozenset()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"oidc_issuer": "http://sso.example"}, "not https"),
        ({"oidc_issuer": "sso.example"}, "not https"),
        ({"oidc_issuer": "https://sso.example", "oidc_audience": ""}, "audience"),
    ],
)
def test_what_could_not_be_trusted_is_no_issuer(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        TokenChecker(Settings(**{"oidc_audience": AUDIENCE} | settings))
