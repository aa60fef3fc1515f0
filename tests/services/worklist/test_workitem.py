"""What is read out of a workitem, and the tables that say which are ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from imaging.errors import ConfigurationError
from services.delivery.destinations import Destinations
from services.store.worklist_items import InputSeries
from services.worklist.workitem import Workitem
from tests.services.ingest.peers import ct_series
from tests.services.worklist.origin_server import input_of, workitem

SERVICE = '[[dicomweb]]\nname = "archive"\nurl = "https://archive.example/dicom-web"\nretrieve = true\n'


def loaded(tmp_path: Path, text: str) -> Destinations:
    (tmp_path / "destinations.toml").write_text(text)
    return Destinations.load(tmp_path / "destinations.toml")


@pytest.mark.parametrize(
    ("retrieval", "node"),
    [
        ({"url": "https://archive.example/dicom-web/studies/1/series/2"}, "dicomweb:archive"),
        ({"url": "https://archive.example/dicom-web.elsewhere.example/studies/1"}, "OTHERWISE"),
        ({"url": "https://elsewhere.example/dicom-web/studies/1"}, "OTHERWISE"),
        ({"ae_title": "PACS"}, "PACS"),
        ({"ae_title": "NOBODY"}, "OTHERWISE"),
        ({}, "OTHERWISE"),
    ],
)
def test_only_those_who_are_listed_are_asked_for_images(tmp_path: Path, retrieval: dict[str, str], node: str) -> None:
    node_table = '[[nodes]]\nae_title = "PACS"\nhost = "pacs"\nport = 104\nretrieve = "c-move"\n'
    destinations = loaded(tmp_path, SERVICE + node_table)
    one = Workitem(workitem(input_of(ct_series(2), **retrieval)))
    (series,) = one.inputs(destinations, destinations.retrieved_from(), "OTHERWISE")
    assert series.node == node


def test_items_of_one_series_are_one_input_and_what_is_no_ct_is_none(tmp_path: Path) -> None:
    slices = ct_series(3)
    report = ct_series(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22")
    document = Dataset()
    document.TypeOfInstances = "CDA"
    inputs = [input_of(slices[:1]), input_of(report), document, input_of(slices[1:])]
    found = Workitem(workitem(*inputs)).inputs(loaded(tmp_path, SERVICE), (), None)
    uids = tuple(one.SOPInstanceUID for one in slices)
    assert found == [InputSeries(slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID, uids)]


def test_the_tables_of_the_shipped_file_can_be_used(tmp_path: Path) -> None:
    shipped = (Path(__file__).resolve().parents[3] / "deploy/destinations.toml").read_text()
    commented = shipped[shipped.index("# [[worklists]]") :].split("\n\n")[0]
    table = "\n".join(line.removeprefix("# ") for line in commented.splitlines())
    (worklist,) = loaded(tmp_path, SERVICE + table).worklists
    assert worklist.station.scheme == "99HOSPITAL"


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('server = "nobody"', "no .*dicomweb.* service"),
        ('server = "archive"\nretrieve_from = "NOBODY"', "not listed with `retrieve`"),
        ('server = "archive"\npoll_s = 0', "poll_s"),
        ('server = "archive"\nat_onec = 2', "at_onec"),
    ],
)
def test_a_mistake_in_a_table_is_named(tmp_path: Path, table: str, complaint: str) -> None:
    station = 'station = { value = "EMBOLENS", scheme = "99TEST", meaning = "Embolens" }'
    with pytest.raises(ConfigurationError, match=complaint):
        loaded(tmp_path, f'{SERVICE}[[worklists]]\nname = "ai"\n{station}\n{table}\n')
