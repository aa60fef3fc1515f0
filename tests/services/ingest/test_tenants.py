"""Whose a pushed series is: by the AE title that sent it, and by whom it is fetched for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from services.ingest.arriving_series import ArrivingSeriesRegister, Calling, Expected
from services.ingest.intake_rules import IntakeRules, Tenants
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import Priority
from services.store.study_store import StudyStore
from tests.services.ingest.peers import Receiving, ct_series, push

RULES = Tenants(default="default", named={"CT_CARDIO": "cardiology", "dicomweb:VNA": "research", "PACS": "research"})


def test_a_sender_is_of_the_tenant_that_is_named_for_it() -> None:
    assert RULES.of("CT_CARDIO ") == "cardiology"
    assert RULES.of("dicomweb:VNA") == "research"
    assert RULES.of("CT_OTHER") == "default"


@pytest.mark.parametrize("name", ["../x", "A", "", "a b"])
def test_what_is_no_name_of_a_tenant_stops_the_listener(tmp_path: Path, name: str) -> None:
    (tmp_path / "intake.toml").write_text(f'[tenants.named]\nCT = "{name}"\n')
    with pytest.raises(ConfigurationError, match="tenant"):
        IntakeRules.load(tmp_path / "intake.toml")


class TestAPush:
    @pytest.fixture
    def rules(self) -> IntakeRules:
        return IntakeRules(min_slices=2, tenants=RULES)

    def test_its_sender_decides_whose_it_is(self, receiving: Receiving) -> None:
        slices = ct_series(3)
        one = slices[0]
        push(receiving.port, slices, calling_ae_title="CT_CARDIO")
        push(receiving.port, slices, calling_ae_title="CT_OTHER")
        jobs = receiving.wait_for_state(one, "queued", "queued")
        for job in jobs:
            directory = receiving.store.series_directory(one.StudyInstanceUID, one.SeriesInstanceUID, tenant=job.tenant)
            assert {path.parent for path in receiving.store.read_inputs(job.id)} == {directory}
            assert job.supersedes is None
        assert {job.tenant for job in jobs} == {"cardiology", "default"}

    def test_what_is_fetched_for_one_tenant_and_pushed_to_another_is_two_series(self, receiving: Receiving) -> None:
        slices = ct_series(2)
        study, series = str(slices[0].StudyInstanceUID), str(slices[0].SeriesInstanceUID)
        wanted = frozenset(str(one.SOPInstanceUID) for one in slices)
        with receiving.listener.register.expecting(study, series, Expected(wanted, "PACS", Priority.STAT, "research")):
            push(receiving.port, slices, calling_ae_title="CT_OTHER")
            push(receiving.port, slices, calling_ae_title="PACS")
            jobs = receiving.wait_for_state(slices[0], "queued", "queued")
        assert [(job.tenant, job.priority) for job in jobs] == [("default", "routine"), ("research", "stat")]


class TestTheRegister:
    @pytest.fixture
    def register(self, database: Database, tmp_path: Path) -> ArrivingSeriesRegister:
        return ArrivingSeriesRegister(StudyStore(tmp_path), JobStore(database))

    def test_two_tenants_series_of_one_name_are_two(self, register: ArrivingSeriesRegister, database: Database) -> None:
        calling = Calling("A", "", threading.current_thread())
        for tenant in ("default", "cardiology"):
            with register.storing("1.2", "1.2.3", f"1.2.3.{len(tenant)}", calling, tenant):
                pass
        ours, others = register.find("1.2", "1.2.3"), register.find("1.2", "1.2.3", "cardiology")
        assert ours is not None
        assert others is not None
        assert ours.job_id != others.job_id
        assert (ours.sop_instance_uids, others.sop_instance_uids) == ({"1.2.3.7"}, {"1.2.3.10"})
        assert {job.tenant for job in JobStore(database).receiving()} == {"default", "cardiology"}


def test_files_of_another_tenant_lie_apart(tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    assert store.series_directory("1.2", "1.2.3") == tmp_path / "received/1.2/1.2.3"
    assert store.series_directory("1.2", "1.2.3", tenant="research") == tmp_path / "tenants/research/received/1.2/1.2.3"
