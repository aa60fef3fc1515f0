"""Which results go where."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from imaging.errors import ConfigurationError
from services.delivery.destinations import Destinations
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


def test_every_object_is_delivered_to_every_destination(tmp_path: Path) -> None:
    loaded = destinations(tmp_path, TWO + '[[routes]]\nto = ["origin", "folder:research"]\n')
    seg = SimpleNamespace(path=tmp_path / "arriving" / "seg.dcm", sop_class_uid="1.2", sop_instance_uid="1.2.3")
    made = loaded.deliveries_for(job(), SimpleNamespace(seg=seg))  # type: ignore[arg-type]
    assert [delivery.destination for delivery in made] == ["node:CT1", "folder:research"]
    assert {delivery.object_path for delivery in made} == {relative_result_path("4711", "seg.dcm")}
    assert loaded.deliveries_for(job(), SimpleNamespace(seg=None)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[node]]\n", "node: unknown key"),
        ('[[nodes]]\nae_title = "A"\nhost = "h"\n', "nodes.0.port"),
        ('[[nodes]]\nae_title = "MUCH_TOO_LONG_AE_TITLE"\nhost = "h"\nport = 1\n', "nodes.0.ae_title"),
        ('[[routes]]\nto = ["PACS"]\n', "is none of"),
        ('[[routes]]\nto = ["node:PACS"]\n', "node:PACS, which is not listed"),
        (TWO + TWO, "same name"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        destinations(tmp_path, text)
    assert told in raised.value.message
