"""What a search finds among held series, as PS3.4 C.2.2.2 has values matched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.errors import InputError
from services.dicomweb.held_index import HeldIndex
from services.dicomweb.resource_urls import ResourceUrls
from services.dicomweb.search import SearchResults, search
from services.dicomweb.search_query import Level, like_pattern, read_query
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.rows import Source
from services.store.study_store import StudyStore
from tests.services.ingest.peers import ct_series

URLS = ResourceUrls("https://embolens.example/")
# Study 1.2.<n>.0 with one series 1.2.<n>.1, which has n instances
STUDIES: dict[int, dict[str, Any]] = {
    1: {"PatientName": "Doe^Jane^^", "PatientID": "A1", "StudyDate": "20260101", "StudyTime": "081500",
        "AccessionNumber": "ACC-1", "StudyDescription": "CT 100% contrast", "SeriesNumber": 3},
    2: {"PatientName": "DOE^JOHN", "PatientID": "a2", "StudyDate": "20260115", "StudyTime": "103000.25",
        "AccessionNumber": "ACC_2", "ReferringPhysicianName": "House^Gregory"},
    3: {"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう", "PatientID": "B*3", "StudyDate": "20260201",
        "SpecificCharacterSet": "ISO_IR 192", "SeriesDescription": "Angio 1 mm"},
    4: {"PatientName": "Müller^Jörg", "SpecificCharacterSet": "ISO_IR 100", "PatientID": "",
        "Modality": "CT", "StudyID": "4711"},
}  # fmt: skip


@pytest.fixture
def held(database: Database, tmp_path: Path) -> Database:
    """Four studies, indexed."""
    store, jobs = StudyStore(tmp_path), JobStore(database)
    for number, attributes in STUDIES.items():
        put(store, jobs, number, **attributes)
    assert HeldIndex(database, store).update(most_jobs=100) == 0
    return database


def put(store: StudyStore, jobs: JobStore, number: int, **attributes: Any) -> None:
    for instance, one in enumerate(ct_series(number, **attributes), start=1):
        one.StudyInstanceUID, one.SeriesInstanceUID = f"1.2.{number}.0", f"1.2.{number}.1"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}.1.{instance}"
        path = store.instance_path(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        path.parent.mkdir(parents=True, exist_ok=True)
        one.save_as(path, enforce_file_format=True)
    jobs.open_receiving(
        study_instance_uid=f"1.2.{number}.0", series_instance_uid=f"1.2.{number}.1", source=Source.DICOMWEB
    )


def find(database: Database, level: Level, *parameters: tuple[str, str], **within: str) -> SearchResults:
    return search(database, read_query(level, parameters), URLS, **within)


def studies_found(results: SearchResults) -> set[int]:
    return {int(one["0020000D"]["Value"][0].split(".")[2]) for one in results.results}


STUDIES_FOUND_BY = {
    ("PatientID", "A1"): {1},
    ("PatientID", "A2"): set(),
    ("PatientID", "a*"): {2},
    ("PatientID", "?1"): {1},
    ("PatientID", "B**"): {3},
    ("00100020", "A1"): {1},
    ("PatientName", "doe^jane"): {1},
    ("PatientName", "Doe"): set(),
    ("PatientName", "doe*"): {1, 2},
    ("PatientName", "*jo*"): {2},
    ("PatientName", "山田*"): {3},
    ("PatientName", "yamada^tarou"): {3},
    ("PatientName", "MÜLLER^JÖRG"): {4},
    ("PatientName", "%"): set(),
    ("PatientName", "*"): {1, 2, 3, 4},
    ("PatientName", ""): {1, 2, 3, 4},
    ("AccessionNumber", "ACC_*"): {2},
    ("AccessionNumber", "ACC?1"): {1},
    ("StudyDescription", "*100%*"): {1},
    ("ReferringPhysicianName", "house*"): {2},
    ("StudyID", "4711"): {4},
    ("StudyDate", "20260115"): {2},
    ("StudyDate", "20260101-20260115"): {1, 2},
    ("StudyDate", "20260102-"): {2, 3},
    ("StudyDate", "-20260114"): {1},
    ("StudyTime", "0815"): {1},
    ("StudyTime", "08-10"): {1, 2},
    ("StudyTime", "-09"): {1},
    ("ModalitiesInStudy", "CT"): {1, 2, 3, 4},
    ("ModalitiesInStudy", "MR,CT"): {1, 2, 3, 4},
    ("ModalitiesInStudy", "MR"): set(),
    ("StudyInstanceUID", "1.2.1.0,1.2.3.0,9.9"): {1, 3},
    ("StudyInstanceUID", "1.2.1.0\\1.2.2.0"): {1, 2},
    ("StudyInstanceUID", "1.2.1"): set(),
    ("StudyInstanceUID", "1.2.*"): set(),
}


def test_studies_are_found_by_their_attributes(held: Database) -> None:
    found = {query: studies_found(find(held, Level.STUDY, query)) for query in STUDIES_FOUND_BY}
    assert found == STUDIES_FOUND_BY


def test_several_conditions_must_all_be_met(held: Database) -> None:
    found = find(held, Level.STUDY, ("PatientName", "doe*"), ("StudyDate", "20260110-"))
    assert studies_found(found) == {2}


def test_series_and_instances_are_found_by_their_own_and_their_studys_attributes(held: Database) -> None:
    assert studies_found(find(held, Level.SERIES, ("SeriesDescription", "Angio*"))) == {3}
    assert studies_found(find(held, Level.SERIES, ("SeriesNumber", "3"), ("PatientID", "A1"))) == {1}
    (found,) = find(held, Level.INSTANCE, ("InstanceNumber", "2"), ("PatientID", "a2")).results
    assert found["00080018"]["Value"] == ["1.2.2.1.2"]
    within = {"study_instance_uid": "1.2.4.0", "series_instance_uid": "1.2.4.1"}
    numbers = [one["00200013"]["Value"][0] for one in find(held, Level.INSTANCE, **within).results]
    assert numbers == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (Level.STUDY, "Nonsense", "x"),
        (Level.STUDY, "SliceThickness", "1"),
        (Level.STUDY, "Modality", "CT"),
        (Level.SERIES, "SOPInstanceUID", "1.2"),
        (Level.STUDY, "00000000", "x"),
        (Level.STUDY, "StudyDate", "2026"),
        (Level.STUDY, "StudyDate", "-"),
        (Level.STUDY, "StudyDate", "20260101-2026"),
        (Level.STUDY, "StudyTime", "8"),
        (Level.SERIES, "SeriesNumber", "x"),
        (Level.STUDY, "limit", "-1"),
        (Level.STUDY, "limit", "x"),
        (Level.STUDY, "offset", "1.5"),
        (Level.STUDY, "fuzzymatching", "maybe"),
        (Level.STUDY, "includefield", "Nonsense"),
        (Level.STUDY, "PatientID", "a\0"),
        (Level.STUDY, "PatientID", "*a" * 20),
    ],
)
def test_a_query_that_is_not_understood_is_refused(level: Level, name: str, value: str) -> None:
    with pytest.raises(InputError) as refused:
        read_query(level, [(name, value)])
    assert refused.value.code == "dicomweb.bad_request"


def test_pages_do_not_overlap_and_say_how_many_are_left(held: Database) -> None:
    pages = [find(held, Level.STUDY, ("limit", "3"), ("offset", offset)) for offset in ("0", "3", "9")]
    assert [(len(page.results), page.remaining) for page in pages] == [(3, 1), (1, 0), (0, 0)]
    assert studies_found(pages[0]) | studies_found(pages[1]) == {1, 2, 3, 4}
    assert studies_found(find(held, Level.STUDY, ("limit", "1"))) == {3}, "the newest first"
    assert find(held, Level.INSTANCE, ("limit", "4")).remaining == 6


def test_a_study_says_what_it_holds(held: Database) -> None:
    (study,) = find(held, Level.STUDY, ("StudyInstanceUID", "1.2.3.0")).results
    assert study["00100010"] == {
        "vr": "PN",
        "Value": [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}],
    }
    assert study["00080061"]["Value"] == ["CT"]
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([1], [3])
    assert study["00081190"]["Value"] == ["https://embolens.example/dicom-web/studies/1.2.3.0"]
    assert "0008103E" not in study, "a description of the series is none of the study"


def test_more_is_returned_where_it_is_asked_for(held: Database) -> None:
    usual, asked, everything = (
        find(held, Level.SERIES, *parameters, study_instance_uid="1.2.1.0").results[0]
        for parameters in ([], [("includefield", "PatientName,00200037")], [("includefield", "all")])
    )
    assert "00100010" not in usual
    assert asked["00100010"]["Value"] == [{"Alphabetic": "Doe^Jane^^"}]
    assert everything.keys() > asked.keys()
    (matched,) = find(held, Level.SERIES, ("PatientID", ""), study_instance_uid="1.2.1.0").results
    assert matched["00100020"]["Value"] == ["A1"], "an empty value matches all and asks for the attribute"


class TestIndex:
    """How the index follows files and jobs."""

    @pytest.fixture
    def parts(self, database: Database, tmp_path: Path) -> tuple[Database, StudyStore, JobStore, HeldIndex]:
        store = StudyStore(tmp_path)
        return database, store, JobStore(database), HeldIndex(database, store)

    def test_it_reads_a_file_once(self, parts, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
        database, store, jobs, index = parts
        put(store, jobs, 3)
        index.update(most_jobs=9)
        put_more_and_count = self.count_headers(monkeypatch)
        put(store, jobs, 2)
        jobs.count_received(jobs.receiving()[0].id, 3)
        index.update(most_jobs=9)
        assert len(put_more_and_count) == 2
        assert len(find(database, Level.INSTANCE).results) == 5

    @staticmethod
    def count_headers(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        from services.dicomweb import held_index

        seen: list[Path] = []
        read: Callable[..., Any] = held_index.read_indexed_header

        def counted(path: Path, *arguments: str) -> Any:
            seen.append(path)
            return read(path, *arguments)

        monkeypatch.setattr(held_index, "read_indexed_header", counted)
        return seen

    def test_it_says_how_many_jobs_are_left(self, parts) -> None:  # type: ignore[no-untyped-def]
        database, store, jobs, index = parts
        for number in (1, 2, 3):
            put(store, jobs, number)
        assert index.update(most_jobs=2) == 1
        assert studies_found(find(database, Level.STUDY)) == {2, 3}, "the latest first"
        assert index.update(most_jobs=2) == 0
        assert studies_found(find(database, Level.STUDY)) == {1, 2, 3}

    def test_files_that_are_gone_or_replaced_are_noticed(self, parts) -> None:  # type: ignore[no-untyped-def]
        database, store, jobs, index = parts
        put(store, jobs, 2)
        index.update(most_jobs=9)
        put(store, jobs, 2, PatientID="another")
        store.instance_path("1.2.2.0", "1.2.2.1", "1.2.2.1.2").unlink()
        jobs.open_receiving(study_instance_uid="1.2.2.0", series_instance_uid="1.2.2.1", arrivals=1)
        index.update(most_jobs=9)
        assert studies_found(find(database, Level.STUDY, ("PatientID", "another"))) == {2}
        assert len(find(database, Level.INSTANCE).results) == 1
        store.instance_path("1.2.2.0", "1.2.2.1", "1.2.2.1.1").unlink()
        jobs.open_receiving(study_instance_uid="1.2.2.0", series_instance_uid="1.2.2.1", arrivals=1)
        index.update(most_jobs=9)
        assert not find(database, Level.SERIES).results

    def test_a_file_that_the_disk_does_not_give_back_holds_nobody_else_up(self, parts) -> None:  # type: ignore[no-untyped-def]
        database, store, jobs, index = parts
        for number in (1, 2):
            put(store, jobs, number)
        broken = store.instance_path("1.2.2.0", "1.2.2.1", "1.2.2.1.1")
        content = broken.read_bytes()
        broken.unlink()
        broken.symlink_to(broken)  # ELOOP, as a disk in trouble gives EIO
        assert index.update(most_jobs=9) == 1
        assert studies_found(find(database, Level.STUDY)) == {1}
        broken.unlink()
        broken.write_bytes(content)
        assert index.update(most_jobs=9) == 0
        assert studies_found(find(database, Level.STUDY)) == {1, 2}

    def test_a_file_that_is_no_instance_is_passed_over(self, parts) -> None:  # type: ignore[no-untyped-def]
        database, store, jobs, index = parts
        put(store, jobs, 1)
        (store.series_directory("1.2.1.0", "1.2.1.1") / "torn.dcm").write_bytes(b"DICM")
        index.update(most_jobs=9)
        assert len(find(database, Level.INSTANCE).results) == 1


@given(st.text(alphabet="ab*?%_\\^=", max_size=8))
def test_a_pattern_takes_only_dicoms_wildcards(value: str) -> None:
    plain = like_pattern(value).replace("\\\\", "").replace("\\%", "").replace("\\_", "")
    assert plain.count("%") == value.count("*")
    assert plain.count("_") == value.count("?")
