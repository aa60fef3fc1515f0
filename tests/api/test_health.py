"""Live, ready, degraded, not ready."""

from __future__ import annotations

import shutil

import httpx


def test_live_and_ready_answer_anybody_and_give_nothing_away(gateway):
    assert httpx.get(f"{gateway.url}/health/live").json() == {"status": "live"}
    ready = httpx.get(f"{gateway.url}/health/ready").json()
    assert ready["status"] == "ready"
    assert ready["parts"] == {part: {"ok": True, "detail": ""} for part in ("database", "data_dir", "redis")}


def test_without_redis_the_gateway_is_degraded_but_takes_studies(start_gateway):
    gateway = start_gateway(redis_url="redis://:secret@127.0.0.1:1/0")
    response = gateway.client.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert not response.json()["parts"]["redis"]["ok"]
    assert "secret" not in response.text


def test_without_its_data_directory_the_gateway_is_not_ready(gateway):
    shutil.rmtree(gateway.settings.data_dir / "arriving")
    response = gateway.client.get("/health/ready")
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert "data_dir" in response.json()["detail"]
    assert response.json()["parts"]["database"]["ok"]


def test_error_inside_is_a_problem_that_quotes_nothing(gateway, nifti):
    shutil.rmtree(gateway.settings.data_dir / "arriving")
    response = gateway.client.post("/segment", files={"files": ("a", nifti)})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "internal"
    assert str(gateway.settings.data_dir) not in response.text
