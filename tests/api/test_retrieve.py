"""Asking for retrievals over HTTP; the listener is played by claiming and ending them in the database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from imaging.errors import NodeUnavailable
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.retrievals import RetrievalStore, RetrievedSeries

STUDY = "1.2.840.1"
TOML = """
[[nodes]]
ae_title = "PACS"
host = "127.0.0.1"
port = 104
retrieve = "c-move"

[[nodes]]
ae_title = "PRINTER"
host = "127.0.0.1"
port = 105

[[dicomweb]]
name = "VNA"
url = "http://127.0.0.1:8042/dicom-web"
retrieve = true

[[retrieve]]
name = "night"
node = "PACS"
study_date = "yesterday"
contrast = true
priority = "stat"
"""


@pytest.fixture
def gateway(start_gateway: Callable[..., Any], tmp_path: Path) -> Any:
    (tmp_path / "destinations.toml").write_text(TOML)
    return start_gateway(destinations=tmp_path / "destinations.toml")


@pytest.fixture
def retrievals(gateway: Any) -> RetrievalStore:
    return RetrievalStore(Database(gateway.settings.resolved_database_url))


def ask(gateway: Any, **body: Any) -> dict[str, Any]:
    response = gateway.client.post("/retrieve", json=body)
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == f"/retrieve/{response.json()['id']}"
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("node", ["PACS", "dicomweb:VNA"])
def test_a_study_is_asked_for_and_followed_to_its_job(gateway: Any, retrievals: RetrievalStore, node: str) -> None:
    asked = ask(gateway, node=node, study_instance_uid=STUDY, priority="stat")
    assert (asked["state"], asked["priority"], asked["node"], asked["jobs"]) == ("pending", "stat", node, [])
    row = retrievals.claim()
    assert row is not None
    retrievals.record_series(row.id, [RetrievedSeries("1.3", 5, 4, 1), RetrievedSeries("1.4", 9, skipped="x.y")])
    job = JobStore(retrievals._database).open_receiving(
        study_instance_uid=STUDY, series_instance_uid="1.3", calling_ae_title=node
    )
    seen = gateway.client.get(f"/retrieve/{row.id}").json()
    assert (seen["instances_found"], seen["instances_received"], seen["instances_failed"]) == (5, 4, 1)
    assert [(one["series_instance_uid"], one["job"], one["skipped"]) for one in seen["series"]] == [
        ("1.3", job.id, None),
        ("1.4", None, "x.y"),
    ]
    assert seen["jobs"] == [job.id]


def test_what_is_under_way_is_not_asked_for_twice(gateway: Any, retrievals: RetrievalStore) -> None:
    first = ask(gateway, node="PACS", study_instance_uid=STUDY)
    again = ask(gateway, node="PACS", study_instance_uid=STUDY, priority="stat")
    assert (again["id"], again["priority"]) == (first["id"], "stat")
    one_series = ask(gateway, node="PACS", study_instance_uid=STUDY, series_instance_uid="1.2.3")
    assert one_series["id"] != first["id"]
    for _ in range(2):
        row = retrievals.claim()
        assert row is not None
        retrievals.complete(row.id)
    assert ask(gateway, node="PACS", study_instance_uid=STUDY)["id"] != first["id"]


def test_a_failure_is_an_error_and_not_an_empty_answer(gateway: Any, retrievals: RetrievalStore) -> None:
    asked = ask(gateway, node="PACS", study_instance_uid=STUDY)
    retrievals.claim()
    retrievals.try_again(asked["id"], NodeUnavailable("no association", remedy="is it running?"), wait_s=60)
    seen = gateway.client.get(f"/retrieve/{asked['id']}").json()
    assert seen["state"] == "pending"
    assert seen["error"] == {"code": "retrieve.node_unavailable", "message": "no association (is it running?)"}
    assert datetime.fromisoformat(seen["next_attempt_at"]) > datetime.fromisoformat(seen["updated_at"])


@pytest.mark.parametrize("wanted", ["night", {"name": "now", "node": "PACS", "last_days": 2}])
def test_a_rule_runs_at_once(gateway: Any, retrievals: RetrievalStore, wanted: Any) -> None:
    asked = ask(gateway, rule=wanted)
    assert (asked["rule"], asked["study_instance_uid"]) == (wanted if wanted == "night" else "now", None)
    assert asked["priority"] == ("stat" if wanted == "night" else "routine")
    row = retrievals.claim()
    assert row is not None
    child = retrievals.request_study(node="PACS", study_instance_uid=STUDY, rule=row.rule, parent_id=row.id)
    retrievals.record_studies(row.id, 7)
    seen = gateway.client.get(f"/retrieve/{row.id}").json()
    assert (seen["studies_found"], seen["retrievals"]) == (7, [child.id])
    assert gateway.client.get(f"/retrieve/{child.id}").json()["parent"] == row.id


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"node": "NOBODY", "study_instance_uid": STUDY}, 404, "retrieve.unknown_node"),
        ({"node": "PRINTER", "study_instance_uid": STUDY}, 404, "retrieve.unknown_node"),
        ({"node": "dicomweb:PACS", "study_instance_uid": STUDY}, 404, "retrieve.unknown_node"),
        ({"rule": "noon"}, 404, "retrieve.unknown_rule"),
        ({"rule": {"name": "x", "node": "NOBODY", "last_days": 1}}, 404, "retrieve.unknown_node"),
        ({"rule": {"name": "x", "node": "PACS"}}, 422, "request.invalid"),
        ({"rule": {"name": "x", "node": "PACS", "last_days": 1, "description": "("}}, 422, "request.invalid"),
        ({"rule": {"name": "x", "node": "PACS", "last_days": 1, "description": "(a+)+$"}}, 422, "request.invalid"),
        ({"rule": {"name": "x", "node": "PACS", "last_days": 1, "description": "a" * 201}}, 422, "request.invalid"),
        ({}, 422, "request.invalid"),
        ({"study_instance_uid": STUDY}, 422, "request.invalid"),
        ({"node": "PACS", "study_instance_uid": "../etc"}, 422, "request.invalid"),
        ({"node": "PACS", "study_instance_uid": STUDY, "rule": "night"}, 422, "request.invalid"),
        ({"rule": "night", "node": "PACS"}, 422, "request.invalid"),
    ],
)
def test_what_cannot_be_asked_for_is_a_problem(gateway: Any, body: dict[str, Any], status: int, code: str) -> None:
    response = gateway.client.post("/retrieve", json=body)
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize("retrieval_id", ["6f1f7a52-5a3e-4b2f-9a44-2c1de28f1f0e", "nonsense"])
def test_an_unknown_retrieval_is_not_found(gateway: Any, retrieval_id: str) -> None:
    for method in ("GET", "DELETE"):
        assert gateway.client.request(method, f"/retrieve/{retrieval_id}").status_code == 404


def test_retrievals_are_listed_page_by_page(gateway: Any, retrievals: RetrievalStore) -> None:
    ids = [ask(gateway, node="PACS", study_instance_uid=f"1.2.{number}")["id"] for number in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = gateway.client.get("/retrieve", params=query).json()
        seen += [one["id"] for one in page["retrievals"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == ids[::-1]
    retrievals.claim()
    running = gateway.client.get("/retrieve", params={"state": "running"}).json()["retrievals"]
    assert [one["id"] for one in running] == ids[:1]
    of_study = gateway.client.get("/retrieve", params={"study_instance_uid": "1.2.3"}).json()["retrievals"]
    assert [one["id"] for one in of_study] == [ids[3]]


def test_a_waiting_retrieval_is_cancelled_at_once_and_a_running_one_soon(
    gateway: Any, retrievals: RetrievalStore
) -> None:
    running, waiting = (ask(gateway, node="PACS", study_instance_uid=f"1.2.{number}")["id"] for number in (1, 2))
    retrievals.claim()
    response = gateway.client.delete(f"/retrieve/{waiting}")
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert gateway.client.delete(f"/retrieve/{waiting}").status_code == 200, "repeated, it is cancelled all the same"
    response = gateway.client.delete(f"/retrieve/{running}")
    assert (response.status_code, response.json()["state"]) == (202, "running")
    retrievals.end_cancelled(running)
    done = ask(gateway, node="PACS", study_instance_uid="1.2.3")["id"]
    retrievals.claim()
    retrievals.complete(done)
    response = gateway.client.delete(f"/retrieve/{done}")
    assert (response.status_code, response.json()["code"]) == (409, "state_conflict")


def test_cancelling_the_run_of_a_rule_cancels_what_came_of_it(gateway: Any, retrievals: RetrievalStore) -> None:
    run = ask(gateway, rule="night")["id"]
    row = retrievals.claim()
    assert row is not None
    child = retrievals.request_study(node="PACS", study_instance_uid=STUDY, rule=row.rule, parent_id=run)
    retrievals.complete(run)
    response = gateway.client.delete(f"/retrieve/{run}")
    assert (response.status_code, response.json()["state"]) == (200, "completed")
    assert retrievals.get(child.id).state == "cancelled"
