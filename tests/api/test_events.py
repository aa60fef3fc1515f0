"""Progress as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx

from services.store.rows import Stage
from tests.api.conftest import bearer


def _events(response: httpx.Response) -> Iterator[tuple[str, str, dict]]:
    """(id, event, data) of each event, as an EventSource would hand them out."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        else:
            if "data" in fields:
                yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


def test_each_change_is_told_and_the_end_ends_the_stream(gateway, nifti):
    job_id = gateway.submit(nifti)
    worker = "worker-of-the-test"
    work = [
        lambda: gateway.jobs.claim(job_id, worker, lease_s=60),
        lambda: gateway.jobs.renew_lease(job_id, worker, lease_s=60, reached=(Stage.ROI, 0.2)),
        lambda: gateway.jobs.renew_lease(job_id, worker, lease_s=60, reached=(Stage.UNET, 0.5)),
        lambda: gateway.finish(job_id),
    ]

    heard = []
    with gateway.client.stream("GET", f"/segment/{job_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for event in _events(response):  # each step is taken once the one before was heard
            heard.append(event)
            if work:
                work.pop(0)()

    assert [(event, data["state"], data["stage"]) for _, event, data in heard] == [
        ("progress", "queued", None),
        ("progress", "running", "load"),
        ("progress", "running", "roi"),
        ("progress", "running", "unet"),
        ("end", "completed", None),
    ]
    assert heard[0][2]["queue_position"] == 0
    assert heard[-1][2]["outcome"] == "embolus_found"
    assert len({event_id for event_id, _, _ in heard}) == len(heard)


def test_reconnect_hears_only_what_is_new(gateway, nifti):
    job_id = gateway.submit(nifti)
    with gateway.client.stream("GET", f"/segment/{job_id}/events") as response:
        last_id, _, data = next(_events(response))
    assert data["state"] == "queued"

    gateway.finish(job_id)
    with gateway.client.stream("GET", f"/segment/{job_id}/events", headers={"Last-Event-ID": last_id}) as response:
        heard = list(_events(response))
    assert [(event, data["state"]) for _, event, data in heard] == [("end", "completed")]

    after_end = gateway.client.get(f"/segment/{job_id}/events", headers={"Last-Event-ID": heard[0][0]})
    assert after_end.status_code == 204


def test_many_listeners_do_not_keep_others_out(gateway, nifti):
    job_id = gateway.submit(nifti)
    limits = httpx.Limits(max_connections=100)
    with httpx.Client(
        base_url=gateway.url, limits=limits, timeout=10, headers=bearer(gateway.settings.data_dir)
    ) as client:
        open_streams = [
            client.send(client.build_request("GET", f"/segment/{job_id}/events"), stream=True) for _ in range(60)
        ]
        began = time.monotonic()
        assert gateway.client.get(f"/segment/{job_id}").status_code == 200
        assert time.monotonic() - began < 2
        for response in open_streams:
            response.close()
