"""Who is let in, on every route there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from api.authentication import COOKIE, is_open
from api.gateway import Gateway
from imaging.errors import ConfigurationError
from services.accounts.key_store import FIRST_KEY_FILE
from services.accounts.principal import Scope
from services.embedded_redis import free_port
from services.settings import Settings
from tests.api.conftest import RunningGateway, bearer, serving
from tests.services.accounts.issuers import AUDIENCE, log_in, provider

OPEN = {
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/"),
    ("GET", "/pages/{name}"),
    ("POST", "/session"),
    ("DELETE", "/session"),
}


def every_route() -> list[tuple[str, str]]:
    """As (method, path); a Mount, say, which is no route, has none of the two and fails here."""
    routes = iter_route_contexts(create_app(Settings()).routes)
    return sorted((method, str(route.path)) for route in routes for method in route.methods or {"?"})


GUARDED = [route for route in every_route() if route not in OPEN and route[0] != "HEAD"]


def somewhere(path: str) -> str:
    """The path with something in the place of its parameters."""
    return re.sub(r"\{(\w+)\}", lambda name: "1" if name[1] in ("study", "series", "instance") else "x", path)


@pytest.fixture(scope="module")
def open_gateway(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[RunningGateway]:
    """One for all routes: whoever is turned away changes nothing."""
    settings = Settings(gateway_port=free_port(), data_dir=tmp_path_factory.mktemp("data"), redis_url=redis_url)
    with serving(settings) as running:
        yield running


def test_every_route_is_looked_at() -> None:
    assert len(GUARDED) >= 34
    assert {route for route in every_route() if is_open(somewhere(route[1]))} - OPEN == set()


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_route_answers_nobody_without_a_key(open_gateway: RunningGateway, method: str, path: str) -> None:
    response = httpx.request(method, open_gateway.url + somewhere(path))
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="embolens"'
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "not_authenticated"


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_route_asks_for_its_scope(open_gateway: RunningGateway, method: str, path: str) -> None:
    lacking = Scope.SUBMIT if method in ("GET", "HEAD") else Scope.READ
    shown = open_gateway.key_for("default", lacking)
    response = httpx.request(method, open_gateway.url + somewhere(path), headers=shown)
    assert (response.status_code, response.json()["code"]) == (403, "missing_scope")


def test_what_is_no_route_says_so_to_nobody(gateway: RunningGateway) -> None:
    for path in ("/nothing", "/health", "/health/live/", "/pages", "//"):
        assert httpx.get(gateway.url + path).status_code == 401


class TestKeys:
    @pytest.mark.parametrize(
        "shown",
        [
            "Bearer x",
            "Basic eDp5",
            "Bearer embolens_AAAAAAAAAAAA_" + "A" * 49,
            "Bearer eyJhbGciOiJub25lIn0.e30.",
        ],
    )
    def test_what_is_no_key_is_refused(self, gateway: RunningGateway, shown: str) -> None:
        response = httpx.get(f"{gateway.url}/segment", headers={"Authorization": shown})
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"] or shown.startswith("Basic")

    def test_a_revoked_key_is_refused_from_then_on(self, gateway: RunningGateway) -> None:
        row, key = gateway.keys.create("ris", scopes=[Scope.READ])
        shown = {"Authorization": f"Bearer {key.text()}"}
        assert httpx.get(f"{gateway.url}/segment", headers=shown).status_code == 200
        gateway.keys.revoke(row.id)
        response = httpx.get(f"{gateway.url}/segment", headers=shown)
        assert (response.status_code, response.json()["code"]) == (401, "key.invalid")

    def test_a_key_may_be_limited_in_what_it_uploads(self, gateway: RunningGateway, nifti: bytes) -> None:
        shown = gateway.key_for("default", max_upload_bytes=len(nifti) - 1)
        files = {"files": ("x", nifti)}
        for path in ("/segment", "/convert"):
            response = httpx.post(gateway.url + path, files=files, headers=shown)
            assert (response.status_code, response.json()["code"]) == (413, "input.too_large")
        assert gateway.client.post("/segment", files=files).status_code == 202


class TestFirstKey:
    def test_it_is_made_once_and_readable_by_its_owner_alone(
        self, start_gateway: Callable[..., RunningGateway]
    ) -> None:
        gateway = start_gateway()
        file = gateway.settings.data_dir / FIRST_KEY_FILE
        assert file.stat().st_mode & 0o777 == 0o600
        first = file.read_text()
        again = start_gateway(data_dir=gateway.settings.data_dir)
        assert file.read_text() == first
        [row] = again.keys.all()
        assert (row.name, row.scopes, row.secret_hash in first) == ("first", ["admin"], False)

    def test_a_site_that_revoked_all_its_keys_gets_no_other(self, start_gateway: Callable[..., RunningGateway]) -> None:
        gateway = start_gateway()
        gateway.keys.revoke(gateway.keys.all()[0].id)
        again = start_gateway(data_dir=gateway.settings.data_dir)
        assert not again.keys.has_usable()


class TestRates:
    def test_a_client_that_asks_too_often_is_told_when_to_go_on(
        self, start_gateway: Callable[..., RunningGateway]
    ) -> None:
        gateway = start_gateway(requests_per_second=0.5, requests_at_once=3)
        busy, quiet = gateway.key_for("default"), gateway.key_for("default")
        answers = [httpx.get(f"{gateway.url}/segment", headers=busy) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["Retry-After"] in ("1", "2")
        assert answers[-1].json()["code"] == "too_many_requests"
        assert httpx.get(f"{gateway.url}/segment", headers=quiet).status_code == 200
        assert httpx.get(f"{gateway.url}/health/ready").status_code == 200

    def test_guessing_is_limited_by_address_whatever_door_is_tried(
        self, start_gateway: Callable[..., RunningGateway]
    ) -> None:
        gateway = start_gateway(failed_logins_per_minute=3)
        wrong = {"Authorization": "Bearer embolens_wrong"}
        assert httpx.get(f"{gateway.url}/segment", headers=wrong).status_code == 401
        assert httpx.get(f"{gateway.url}/openapi.json", headers=wrong).status_code == 401
        login = httpx.post(f"{gateway.url}/session", json={"key": "wrong"}, headers={"Origin": gateway.url})
        assert login.status_code == 401
        for response in (
            httpx.get(f"{gateway.url}/segment", headers=wrong),
            httpx.get(f"{gateway.url}/segment", headers=bearer(gateway.settings.data_dir)),
            httpx.post(f"{gateway.url}/session", json={"key": "wrong"}, headers={"Origin": gateway.url}),
        ):
            assert (response.status_code, response.json()["code"]) == (429, "too_many_failed_logins")
            assert int(response.headers["Retry-After"]) <= 20


class TestSession:
    """What a browser holds, as another program would misuse it. The page itself is in test_page.py."""

    @pytest.fixture
    def browser(self, gateway: RunningGateway) -> Iterator[httpx.Client]:
        key = bearer(gateway.settings.data_dir)["Authorization"].removeprefix("Bearer ")
        with httpx.Client(base_url=gateway.url) as client:
            answer = client.post("/session", json={"key": key}, headers={"Origin": gateway.url})
            assert answer.status_code == 204
            assert "HttpOnly" in answer.headers["set-cookie"]
            assert "secure" not in answer.headers["set-cookie"].lower()
            yield client

    def test_it_reads_and_sends_for_our_own_page(self, browser: httpx.Client, gateway: RunningGateway) -> None:
        assert browser.get("/segment").status_code == 200
        ours = {"Origin": gateway.url, "Sec-Fetch-Site": "same-origin"}
        assert browser.post("/retrieve", json={}, headers=ours).status_code == 422

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},  # the same site to a browser
            {"Sec-Fetch-Site": "same-origin"},
        ],
    )
    def test_it_changes_nothing_for_other_pages(self, browser: httpx.Client, headers: dict[str, str]) -> None:
        response = browser.post("/retrieve", json={}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (401, "cross_origin")

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_it_reads_nothing_for_other_pages(self, browser: httpx.Client, site: str) -> None:
        assert browser.get("/segment", headers={"Sec-Fetch-Site": site}).status_code == 401

    def test_nobody_else_logs_a_browser_in(self, gateway: RunningGateway) -> None:
        key = bearer(gateway.settings.data_dir)["Authorization"].removeprefix("Bearer ")
        answer = httpx.post(f"{gateway.url}/session", json={"key": key}, headers={"Origin": "http://evil.example"})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers

    def test_a_login_of_any_size_is_not_read(self, gateway: RunningGateway) -> None:
        answer = httpx.post(f"{gateway.url}/session", content=b" " * 10_000, headers={"Origin": gateway.url})
        assert answer.status_code == 413

    def test_it_ends_by_itself(self, gateway: RunningGateway) -> None:
        key = bearer(gateway.settings.data_dir)["Authorization"].removeprefix("Bearer ")
        token = gateway.keys.open_session(key, lasts=timedelta(seconds=-1))
        assert httpx.get(f"{gateway.url}/segment", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401

    def test_beside_https_the_cookie_travels_by_https_alone(self, start_gateway: Callable[..., RunningGateway]) -> None:
        gateway = start_gateway(gateway_url="https://embolens.example")
        key = bearer(gateway.settings.data_dir)["Authorization"].removeprefix("Bearer ")
        ours = {"Origin": "https://embolens.example"}
        answer = httpx.post(f"{gateway.url}/session", json={"key": key}, headers=ours)
        assert "secure" in answer.headers["set-cookie"].lower()


class TestWithoutAuthentication:
    def test_everybody_on_this_machine_may_do_everything(
        self, start_gateway: Callable[..., RunningGateway], nifti: bytes
    ) -> None:
        gateway = start_gateway(authentication=False)
        assert httpx.post(f"{gateway.url}/segment", files={"files": ("x", nifti)}).status_code == 202
        assert not (gateway.settings.data_dir / FIRST_KEY_FILE).exists()

    def test_it_is_not_possible_beyond_this_machine(self, tmp_path: Path, redis_url: str) -> None:
        settings = Settings(data_dir=tmp_path, redis_url=redis_url, gateway_host="0.0.0.0", authentication=False)
        with pytest.raises(ConfigurationError, match="EMBOLENS_AUTHENTICATION=false"):
            Gateway.open(settings)


def test_the_gateway_takes_tokens_and_says_503_when_it_cannot_tell(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    with provider() as issuer:
        gateway = start_gateway(oidc_issuer=issuer, oidc_audience=AUDIENCE, oidc_tenant_claim="department")
        reading = log_in(issuer, "ada", scope="embolens.read", department="cardiology")
        shown = {"Authorization": f"Bearer {reading}"}
        assert httpx.get(f"{gateway.url}/segment", headers=shown).json() == {"jobs": [], "next": None}
        refused = httpx.post(f"{gateway.url}/segment", headers=shown)
        assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
        nowhere = {"Authorization": f"Bearer {log_in(issuer, 'bob')}"}
        refused = httpx.get(f"{gateway.url}/segment", headers=nowhere)
        assert (refused.status_code, refused.json()["code"]) == (403, "token.no_tenant")
        assert not gateway.keys.all()  # where tokens are taken, no first key is made
        later = start_gateway(oidc_issuer=issuer, oidc_audience=AUDIENCE)
    answer = httpx.get(f"{later.url}/segment", headers=shown)
    assert (answer.status_code, answer.json()["code"]) == (503, "issuer_unavailable")
    assert answer.headers["Retry-After"] == "10"


def test_figures_of_all_tenants_have_a_scope_of_their_own(open_gateway: RunningGateway) -> None:
    url = open_gateway.url
    figures = open_gateway.key_for("default", Scope.METRICS)
    assert httpx.get(f"{url}/metrics", headers=figures).status_code == 200
    assert httpx.get(f"{url}/segment", headers=figures).status_code == 403
    assert httpx.get(f"{url}/metrics", headers=open_gateway.key_for("default", Scope.READ)).status_code == 403
