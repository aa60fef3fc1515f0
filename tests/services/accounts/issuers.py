"""Issuers of tokens on real ports: a whole OpenID provider, and one whose keys and claims a test chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from oidc_provider_mock import run_server_in_thread

AUDIENCE = "embolens"


@contextmanager
def provider(port: int = 0, **options: Any) -> Iterator[str]:
    """A provider with discovery, keys and token endpoint; its address. Every start has other keys."""
    with run_server_in_thread(port, **options) as server:
        yield f"http://localhost:{server.server_port}"


def log_in(issuer: str, subject: str, *, client: str = AUDIENCE, **claims: Any) -> str:
    """The token of a user with these claims, by the authorization code flow."""
    found = httpx.get(f"{issuer}/.well-known/openid-configuration").json()
    httpx.put(f"{issuer}/users/{subject}", json=claims).raise_for_status()
    asked = {"client_id": client, "redirect_uri": "http://localhost/", "response_type": "code", "scope": "openid"}
    agreed = httpx.post(found["authorization_endpoint"], params=asked, data={"sub": subject})
    code = parse_qs(urlsplit(agreed.headers["Location"]).query)["code"][0]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": "http://localhost/"}
    given = httpx.post(found["token_endpoint"], data=form, auth=(client, "secret"))
    token: str = given.raise_for_status().json()["id_token"]
    return token


class OwnIssuer:
    """Signs what it is told, with a key of each kind; counts how often it is asked for them."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += self.path == "/jwks"
                answer = issuer.keys() if self.path == "/jwks" else issuer.discovery()
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def discovery(self) -> dict[str, Any]:
        return {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}

    def keys(self) -> dict[str, Any]:
        of_rsa = json.loads(RSAAlgorithm.to_jwk(self.rsa.public_key()))
        of_ec = json.loads(ECAlgorithm.to_jwk(self.ec.public_key()))
        others = [
            {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
            of_rsa | {"kid": "sealing", "use": "enc"},
            of_rsa | {"kid": "odd", "n": "!"},
            {"kty": "RSA"},
            "no key",
        ]
        bound = of_rsa | {"kid": "bound", "alg": "RS256"}
        return {"keys": [of_rsa | {"kid": "rsa"}, of_ec | {"kid": "ec"}, bound, *others]}

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "u1", "exp": now + 300, "scope": "embolens.read"}
        return {name: value for name, value in (usual | changed).items() if value is not None}

    def sign(self, algorithm: str = "RS256", key_id: str | None = None, key: Any = None, **changed: Any) -> str:
        is_ec = algorithm.startswith("ES")
        headers = {"kid": key_id or ("ec" if is_ec else "rsa")}
        return jwt.encode(self.claims(**changed), key or (self.ec if is_ec else self.rsa), algorithm, headers=headers)
