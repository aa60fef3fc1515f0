"""Which results go where."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import ConfigurationError, Reason
from imaging.findings import Findings, Outcome
from services.delivery.destinations import Destinations
from services.dicom.result_files import ResultFiles
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import SopInstance
from services.settings import Settings
from services.store.rows import JobRow
from services.store.study_store import relative_result_path

TWO = """
[[nodes]]
ae_title = "PACS"
host = "pacs.example"
port = 104
[[folders]]
name = "research"
path = "/srv/results"
"""


def destinations(tmp_path: Path, text: str) -> Destinations:
    (tmp_path / "destinations.toml").write_text(text)
    return Destinations.load(tmp_path / "destinations.toml")


def job(source: str = "dicom", calling_ae_title: str | None = "CT1") -> JobRow:
    return JobRow(id="4711", source=source, calling_ae_title=calling_ae_title)


def test_the_shipped_file_sends_back_to_where_a_study_came_from() -> None:
    shipped = Destinations.load(Settings().destinations)
    assert shipped.destinations_of(job()) == ["node:CT1"]
    assert shipped.destinations_of(job("rest", None)) == []


def test_the_first_route_that_fits_decides(tmp_path: Path) -> None:
    loaded = destinations(
        tmp_path,
        TWO
        + """
[[routes]]
calling_ae_title = "ER_CT"
to = ["origin", "node:PACS", "origin"]
[[routes]]
calling_ae_title = "SILENT"
to = []
[[routes]]
source = "rest"
to = ["folder:research", "origin"]
""",
    )
    assert loaded.destinations_of(job(calling_ae_title="ER_CT")) == ["node:ER_CT", "node:PACS"]
    assert loaded.destinations_of(job(calling_ae_title="SILENT")) == []
    assert loaded.destinations_of(job("rest", None)) == ["folder:research"]
    assert loaded.destinations_of(job(calling_ae_title="CT2")) == ["node:CT2"]


def test_what_was_fetched_from_a_dicomweb_service_goes_back_to_it(tmp_path: Path) -> None:
    loaded = destinations(tmp_path, '[[dicomweb]]\nname = "VNA"\nurl = "http://h/dicom-web"\nretrieve = true\n')
    assert loaded.retrieved_from() == ["dicomweb:VNA"]
    assert loaded.destinations_of(job(calling_ae_title="dicomweb:VNA")) == ["dicomweb:VNA"]


def written(directory: Path, *kinds: ResultKind) -> ResultFiles:
    objects = {kind: (SopInstance("1.2", f"1.2.{kind}", "1", "1", directory / f"{kind}.dcm"),) for kind in kinds}
    findings = Findings(Outcome.NOT_ANALYSABLE, reasons=(Reason("input.empty", "nothing"),))
    return ResultFiles(directory, findings, directory / "findings.json", objects=objects)


def test_a_destination_gets_the_seg_and_the_sr_where_nothing_else_is_said(tmp_path: Path) -> None:
    loaded = destinations(tmp_path, TWO + '[[routes]]\nto = ["origin", "folder:research"]\n')
    made = loaded.deliveries_for(job(), written(tmp_path, *ResultKind))
    assert [(delivery.destination, delivery.object_path) for delivery in made] == [
        (destination, relative_result_path("4711", name))
        for destination in ("node:CT1", "folder:research")
        for name in ("seg.dcm", "sr.dcm")
    ]
    assert loaded.deliveries_for(job(), written(tmp_path)) == []


def test_a_destination_gets_the_objects_that_it_wants(tmp_path: Path) -> None:
    loaded = destinations(
        tmp_path,
        TWO.replace("port = 104", 'port = 104\nobjects = ["sr", "key_images"]')
        + 'objects = ["seg"]\n[[routes]]\nto = ["node:PACS", "folder:research"]\n',
    )
    made = loaded.deliveries_for(job(), written(tmp_path, *ResultKind))
    assert [(delivery.destination, delivery.sop_instance_uid) for delivery in made] == [
        ("node:PACS", "1.2.sr"),
        ("node:PACS", "1.2.key_images"),
        ("folder:research", "1.2.seg"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[node]]\n", "node: unknown key"),
        ('[[nodes]]\nae_title = "A"\nhost = "h"\n', "nodes.0.port"),
        ('[[nodes]]\nae_title = "MUCH_TOO_LONG_AE_TITLE"\nhost = "h"\nport = 1\n', "nodes.0.ae_title"),
        ('[[routes]]\nto = ["PACS"]\n', "is none of"),
        ('[[routes]]\nto = ["node:PACS"]\n', "node:PACS, which is not listed"),
        (TWO + TWO, "same name"),
        ('[[nodes]]\nae_title = "A"\nhost = "h"\nport = 1\nannounce_to = ["RIS"]\n', "A is announced to node:RIS"),
        ('[[webhooks]]\nname = "a"\nurl = "https://h/"\n', "webhooks.0.secret_file"),
        ('[[webhooks]]\nname = "a"\nurl = "https://u:p@h/"\nsecret_file = "s"\n', "no credentials in the url"),
        ('[[webhooks]]\nname = "a"\nurl = "https://h/"\nsecret_file = "s"\nevents = ["lost"]\n', "events.0"),
        ('[[hl7]]\nname = "a"\nhost = "h"\nport = 2575\nevents = []\n', "hl7.0.events"),
        ('[[routes]]\nto = ["availability:RIS"]\n', "is none of"),
        (TWO + 'objects = ["gsps"]\n', "folders.0.objects.0"),
        (TWO + "objects = []\n", "folders.0.objects"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        destinations(tmp_path, text)
    assert told in raised.value.message
