"""The description of the API."""

from __future__ import annotations

import json

from api.openapi import OPENAPI_FILE, openapi_text


def test_openapi_file_is_not_stale():
    assert OPENAPI_FILE.read_text(encoding="utf-8") == openapi_text(), "run `python -m api.openapi`"


def test_served_description_is_the_file(gateway):
    description = gateway.client.get("/openapi.json").json()
    assert description == json.loads(OPENAPI_FILE.read_text(encoding="utf-8"))
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    assert all(operation["summary"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                expected = ["application/problem+json"]
                if operation["operationId"].startswith("store_instances") and status in ("409", "507"):
                    # What was refused; 507 as a problem where not even the request had room.
                    expected = ["application/dicom+json", *(expected if status == "507" else [])]
                assert list(response["content"]) == expected, operation["operationId"]
