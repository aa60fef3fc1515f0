"""Event reports as they come over the wire."""

from __future__ import annotations

import pytest

from services.worklist.event_channel import CANCEL_REQUESTED, WorkitemEvent, read_event

REPORT = (
    '{"00000002": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.34.6.4"]}, "00001000": {"vr": "UI", "Value": ["1.2.3"]},'
    ' "00001002": {"vr": "US", "Value": [2]}, "00741236": {"vr": "AE", "Value": ["MANAGER"]}%s}'
)


def test_a_cancel_request_with_and_without_a_reason() -> None:
    with_reason = REPORT % ', "00741238": {"vr": "LT", "Value": ["too late"]}'
    assert read_event(with_reason) == WorkitemEvent("1.2.3", CANCEL_REQUESTED, "too late")
    assert read_event(f"[{with_reason}]") == WorkitemEvent("1.2.3", CANCEL_REQUESTED, "too late")
    assert read_event(REPORT % ', "00741238": {"vr": "LT"}') == WorkitemEvent("1.2.3", CANCEL_REQUESTED)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "[]",
        "null",
        "7",
        '"x"',
        "{}",
        '{"00001000": 1}',
        b"\xff\xfe",
        '{"00001000": {"Value": ["1"]}}',
        REPORT.replace("1.2.3", "1\\u00002") % "",
    ],
)
def test_what_is_no_event_report_is_none(message: str | bytes) -> None:
    assert read_event(message) is None
