"""A series that came whole and was released in order is complete soon; whatever may go on gets the long quiet time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from services.ingest.completion import completion_reason
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.database import Database
from tests.services.ingest.peers import Receiving, association, ct_series, push, wait_until

SLICES = 32
SPACING_MM = 5.0  # 155 mm: as long as lungs are
SOON_S, LATE_S = 0.3, 1.6


@pytest.fixture
def receiving(settings: Settings, database: Database, rules: IntakeRules) -> Iterator[Receiving]:
    times = {"series_quiet_s": LATE_S, "series_released_quiet_s": SOON_S}
    running = Receiving(settings.model_copy(update=times), database, rules)
    yield running
    running.stop()


def reason_of(receiving: Receiving, slices: list) -> str:  # type: ignore[type-arg]
    (job,) = receiving.wait_for_state(slices[0], "queued")
    return str(job.completion_reason)


SOON, LATE = f"sent whole and released, quiet for {SOON_S:g} s", f"associations released, quiet for {LATE_S:g} s"


def test_the_short_quiet_time_counts_for_what_was_sent_whole_and_released() -> None:
    usual = {"instance_count": 10, "announced_instances": None, "being_stored": 0, "series_quiet_s": 20.0}

    def reason(**changed: object) -> str | None:
        return completion_reason(**(usual | {"open_associations": 0, "is_sent": True} | changed))  # type: ignore[arg-type]

    soon = {"series_released_quiet_s": 1.0}
    assert reason(quiet_for_s=1.0, **soon) == "sent whole and released, quiet for 1 s"
    assert reason(quiet_for_s=0.9, **soon) is None
    assert reason(quiet_for_s=1.0) is None, "where it is not switched on"
    assert reason(quiet_for_s=1.0, is_sent=False, **soon) is None
    assert reason(quiet_for_s=1.0, open_associations=1, **soon) is None


def test_a_whole_chest_over_one_association_is_complete_soon(receiving: Receiving) -> None:
    slices = ct_series(SLICES, spacing_mm=SPACING_MM)
    push(receiving.port, slices)
    assert reason_of(receiving, slices) == SOON


def test_associations_side_by_side_complete_it_when_all_are_released(receiving: Receiving) -> None:
    slices = ct_series(SLICES, spacing_mm=SPACING_MM)
    with association(receiving.port) as last:
        with association(receiving.port) as first:
            for number, one in enumerate(slices):
                assert (first, last)[number % 2].send_c_store(one).Status == 0x0000
        threading.Event().wait(2 * SOON_S)
        assert [job.state for job in receiving.jobs_of(slices[0])] == ["receiving"]
    assert reason_of(receiving, slices) == SOON


def test_another_association_of_the_sender_may_bring_more(receiving: Receiving) -> None:
    """Evenly spaced, and a chest: yet every second slice is to come, over the association that is open."""
    slices = ct_series(2 * SLICES, spacing_mm=SPACING_MM / 2)
    with association(receiving.port) as second:
        push(receiving.port, slices[::2])
        threading.Event().wait(2 * SOON_S)
        for one in slices[1::2]:
            assert second.send_c_store(one).Status == 0x0000
    assert reason_of(receiving, slices) == LATE
    (job,) = receiving.jobs_of(slices[0])
    assert job.instance_count == 2 * SLICES


def test_somebody_else_may_go_on_sending(receiving: Receiving) -> None:
    slices = ct_series(SLICES, spacing_mm=SPACING_MM)
    with association(receiving.port, calling_ae_title="CT2"):
        push(receiving.port, slices)
        assert reason_of(receiving, slices) == SOON


def test_a_sender_with_an_association_for_every_slice_is_not_cut_into_pieces(receiving: Receiving) -> None:
    slices = ct_series(SLICES, spacing_mm=SPACING_MM)
    for one in slices:
        push(receiving.port, [one])
    assert reason_of(receiving, slices) == LATE


def test_a_broken_off_association_may_be_tried_again(receiving: Receiving) -> None:
    slices = ct_series(SLICES, spacing_mm=SPACING_MM)
    with association(receiving.port) as opened:
        for one in slices:
            assert opened.send_c_store(one).Status == 0x0000
        opened.abort()
    assert reason_of(receiving, slices) == LATE


@pytest.mark.parametrize(
    "pushed",
    [
        pytest.param(ct_series(SLICES, spacing_mm=1.0), id="the first slices of a longer stack"),
        pytest.param(ct_series(3, spacing_mm=1.0), id="a scout"),
        pytest.param([*ct_series(SLICES, spacing_mm=SPACING_MM)[:20]], id="a part of a chest"),
    ],
)
def test_what_is_no_whole_chest_gets_the_long_time(receiving: Receiving, pushed: list) -> None:  # type: ignore[type-arg]
    push(receiving.port, pushed)
    assert reason_of(receiving, pushed) == LATE


def test_a_gap_gets_the_long_time_and_more(receiving: Receiving) -> None:
    slices = ct_series(SLICES + 4, spacing_mm=SPACING_MM)
    push(receiving.port, [*slices[:10], *slices[11:]])
    threading.Event().wait(LATE_S)
    assert [job.state for job in receiving.jobs_of(slices[0])] == ["receiving"]
    push(receiving.port, [slices[10]])
    assert reason_of(receiving, slices) == LATE


def test_who_has_come_back_with_late_slices_gets_the_long_time_from_then_on(receiving: Receiving) -> None:
    first = ct_series(SLICES + 2, spacing_mm=SPACING_MM)
    push(receiving.port, first[:SLICES])
    assert reason_of(receiving, first) == SOON
    push(receiving.port, first[SLICES:])
    receiving.wait_for_state(first[0], "cancelled", "queued")
    assert receiving.jobs_of(first[0])[-1].completion_reason == LATE
    second = ct_series(SLICES, spacing_mm=SPACING_MM)
    push(receiving.port, second)
    assert reason_of(receiving, second) == LATE
    elsewhere = ct_series(SLICES, spacing_mm=SPACING_MM)
    push(receiving.port, elsewhere, calling_ae_title="CT2")
    assert reason_of(receiving, elsewhere) == SOON


def test_slices_that_came_by_another_way_are_not_known_to_be_all(receiving: Receiving) -> None:
    """As STOW-RS and another process do: they put the file in place, and count it in the job."""
    slices = ct_series(SLICES, spacing_mm=SPACING_MM)
    uids = {"study_instance_uid": slices[0].StudyInstanceUID, "series_instance_uid": slices[0].SeriesInstanceUID}
    with association(receiving.port) as opened:
        for one in slices[1:]:
            assert opened.send_c_store(one).Status == 0x0000
        path = receiving.store.instance_path(*uids.values(), slices[0].SOPInstanceUID)
        slices[0].save_as(path, enforce_file_format=True)
        receiving.jobs.open_receiving(**uids, arrivals=1)
        (series,) = receiving.listener.register.all()
        wait_until(lambda: len(series.sop_instance_uids) == SLICES)
    assert reason_of(receiving, slices) == LATE
