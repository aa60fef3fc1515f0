"""Parts of a STOW-RS request, malformed ones above all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.dicomweb.resource_urls import ResourceUrls
from services.ingest.held_instances import HeldInstances
from services.ingest.stow_receiver import StowReceiver
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.study_store import StudyStore
from tests.services.ingest.peers import ct_series


def receiver(database: Database, tmp_path: Path) -> StowReceiver:
    store, jobs = StudyStore(tmp_path), JobStore(database)
    return StowReceiver(
        store, jobs, HeldInstances(store, jobs), store.arriving_directory(), ResourceUrls("https://embolens.example"),
        study_instance_uid=None, calling_address=None, max_bytes=10**6, max_parts=10**4,
    )  # fmt: skip


def whole_file() -> bytes:
    written = BytesIO()
    ct_series(1)[0].save_as(written, enforce_file_format=True)
    return written.getvalue()


FILE = whole_file()


@given(
    changes=st.dictionaries(st.integers(128, len(FILE) - 512), st.integers(0, 255), max_size=6),
    length=st.just(len(FILE)) | st.integers(0, len(FILE)),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_part_is_stored_as_it_came_or_refused(
    database: Database, tmp_path: Path, changes: dict[int, int], length: int
) -> None:
    content = bytearray(FILE)
    for at, value in changes.items():
        content[at] = value
    one = receiver(database, tmp_path)
    one.begin({})
    one.write(bytes(content[:length]))
    one.end()
    one.close()
    assert len(one.stored) + len(one.failed) + len(one.unreadable) == 1
    assert len(JobStore(database).receiving()) == len(list(tmp_path.glob("received/*/*")))
