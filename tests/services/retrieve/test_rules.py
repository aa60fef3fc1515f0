"""Which studies a rule asks for, and when it runs."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

from imaging.errors import ConfigurationError
from services.delivery.destinations import Destinations
from services.retrieve.found import FoundSeries
from services.retrieve.rules import RetrieveRule
from services.retrieve.schedule import Schedule
from services.settings import Settings
from services.store.database import Database
from services.store.retrievals import RetrievalStore, series_of
from services.store.rows import Priority, RetrievalState
from tests.services.ingest.peers import ct_series, push, wait_until
from tests.services.retrieve.conftest import Archive, Fetching, node_toml

TODAY = date(2026, 3, 1)


def rule(**changed: object) -> RetrieveRule:
    return RetrieveRule.model_validate({"name": "night", "node": "PACS", "study_date": "today"} | changed)


@pytest.mark.parametrize(
    ("asked", "dates"),
    [
        ({"study_date": "today"}, "20260301-20260301"),
        ({"study_date": "yesterday"}, "20260228-20260228"),
        ({"study_date": None, "last_days": 3}, "20260227-20260301"),
    ],
)
def test_days_are_counted_from_the_day_of_the_run(asked: dict[str, object], dates: str) -> None:
    assert rule(**asked).query(TODAY).study_dates == dates


@pytest.mark.parametrize(
    "wrong", [{"study_date": None}, {"last_days": 2}, {"at": "26:00"}, {"description": "("}, {"on": "Monday"}]
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        rule(**wrong)


def no_database(**_: object) -> None:
    raise OperationalError("INSERT", {}, Exception("it is away"))


def series(*, modality: str = "CT", description: str = "", agent: str = "") -> FoundSeries:
    return FoundSeries("1.2", modality, description, agent, None)


@pytest.mark.parametrize(
    ("found", "study", "wanted"),
    [
        (series(agent="IOMERON"), "", True),
        (series(description="Lung Embolism 1.0"), "", True),
        (series(description="Thorax mit KM"), "", True),
        (series(description="CTPA 1.25"), "", True),
        (series(description="Thorax nativ"), "CT Angio", False),
        (series(description="THORAX W/O CONTRAST"), "", False),
        (series(description="Axial 1.0"), "CT Angio", False),
        (series(), "CT Pulmonary Angiogram", True),
        (series(), "", False),
        (series(modality="MR", agent="GADOVIST"), "", False),
    ],
)
def test_contrast_is_told_by_its_agent_or_by_the_description(found: FoundSeries, study: str, wanted: bool) -> None:
    assert rule(contrast=True).query(TODAY).wants(found, study) is wanted


def test_a_description_may_be_the_series_or_the_study_s() -> None:
    query = rule(description="pulm").query(TODAY)
    assert query.wants(series(description="PULMONARY"), "")
    assert query.wants(series(description="1.0 B30"), "CT Pulm")
    assert not query.wants(series(description="1.0 B30"), "CT Abdomen")


def destinations(directory: Path, *, at: str = "02:00:00", node: str = "ORTHANC") -> Destinations:
    path = directory / "rules.toml"
    path.write_text(
        node_toml(104) + f'[[retrieve]]\nname = "night"\nnode = "{node}"\nat = {at}\nstudy_date = "yesterday"\n'
    )
    return Destinations.load(path)


def test_a_rule_on_a_node_that_is_not_fetched_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="night retrieves from PACS2"):
        destinations(tmp_path, node="PACS2")


class TestSchedule:
    @pytest.fixture
    def retrievals(self, database: Database) -> RetrievalStore:
        return RetrievalStore(database)

    def runs(self, retrievals: RetrievalStore) -> list[str | None]:
        return sorted(str(row.run_key) for row in retrievals.page(limit=50))

    def test_a_rule_runs_once_a_day_at_its_time(self, retrievals: RetrievalStore, tmp_path: Path) -> None:
        clock = [datetime(2026, 3, 1, 1, 59)]
        known = destinations(tmp_path)
        schedule = Schedule(retrievals, lambda: clock[0])
        schedule.request_due(known)
        assert self.runs(retrievals) == []
        for minute in (0, 1, 30):
            clock[0] = datetime(2026, 3, 1, 2, minute)
            schedule.request_due(known)
        assert self.runs(retrievals) == ["night 2026-03-01"]
        assert retrievals.page(limit=1)[0].rule["study_dates"] == "20260228-20260228"
        clock[0] = datetime(2026, 3, 2, 2, 0)
        schedule.request_due(known)
        assert self.runs(retrievals) == ["night 2026-03-01", "night 2026-03-02"]

    def test_a_run_that_the_database_did_not_take_is_asked_for_again(
        self, retrievals: RetrievalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        schedule = Schedule(retrievals, lambda: datetime(2026, 3, 1, 2, 0))
        with monkeypatch.context() as away:
            away.setattr(retrievals, "request_run", no_database)
            with pytest.raises(OperationalError):
                schedule.request_due(destinations(tmp_path))
        schedule.request_due(destinations(tmp_path))
        assert self.runs(retrievals) == ["night 2026-03-01"]

    def test_a_missed_run_is_made_up_for_once(self, retrievals: RetrievalStore, tmp_path: Path) -> None:
        for hour in (9, 10):  # a process each: what it has run before, the database knows
            Schedule(retrievals, lambda hour=hour: datetime(2026, 3, 1, hour)).request_due(destinations(tmp_path))
        assert self.runs(retrievals) == ["night 2026-03-01"]


def test_a_run_fetches_the_studies_that_fit_and_are_not_here(
    settings: Settings, database: Database, archive: Archive
) -> None:
    day = {"StudyDate": "20260301", "ModalitiesInStudy": "CT"}
    wanted = ct_series(3, ContrastBolusAgent="IOMERON", **day)
    native = ct_series(3, StudyInstanceUID=wanted[0].StudyInstanceUID, SeriesDescription="nativ", **day)
    held = ct_series(3, ContrastBolusAgent="IOMERON", **day)
    without = ct_series(3, **day)
    earlier = ct_series(3, ContrastBolusAgent="IOMERON", StudyDate="20260228")
    archive.add(*wanted, *native, *held, *without, *earlier)
    settings.destinations.write_text(
        node_toml(archive.port)
        + '[[retrieve]]\nname = "night"\nnode = "ORTHANC"\nat = 02:00:00\nstudy_date = "today"\ncontrast = true\n'
        + 'priority = "stat"\n'
    )
    fetching = Fetching(settings, database, now=lambda: datetime(2026, 3, 1, 7, 0))
    try:
        push(fetching.port, held)
        wait_until(lambda: fetching.retrievals.page(limit=1))
        (run,) = (row for row in fetching.retrievals.page(limit=50) if row.run_key is not None)
        run = fetching.wait_for_end(run, "completed")
        assert run.studies_found == 3
        (child,) = fetching.retrievals.page(limit=50, parent_id=run.id)
        assert child.study_instance_uid == wanted[0].StudyInstanceUID
        child = fetching.wait_for_end(child, "completed")
        assert {one.series_instance_uid: one.skipped for one in series_of(child)} == {
            wanted[0].SeriesInstanceUID: None,
            native[0].SeriesInstanceUID: "retrieve.not_of_the_rule",
        }
        assert fetching.wait_for_state(wanted[0], "queued")[0].priority == "stat"

        assert run.rule is not None
        again = fetching.retrievals.request_run(node="ORTHANC", rule=run.rule, priority=Priority.STAT)
        fetching.wait_for_end(again, "completed")
        assert len(fetching.retrievals.page(limit=50)) == 3, "what was fetched is not fetched again"
        assert not fetching.retrievals.page(limit=50, state=RetrievalState.FAILED)
    finally:
        fetching.stop()
