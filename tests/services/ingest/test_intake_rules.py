"""The rules on their own, and the shipped ones on real and made series."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from services.dicom.series_reader import SeriesInfo, inspect_headers
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings
from services.store.rows import Priority
from tests.services.ingest.peers import ct_series, save

SHIPPED = IntakeRules.load(Settings().intake_rules)


def series(**changed: object) -> SeriesInfo:
    usual: dict[str, object] = {
        "patient_id": "", "study_instance_uid": "1.2", "series_instance_uid": "1.2.3", "modality": "CT",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "description": "", "count": 220, "rows": 512, "columns": 512,
        "slice_spacing_mm": 1.0, "paths": (),
    }  # fmt: skip
    return SeriesInfo(**(usual | changed))  # type: ignore[arg-type]


def codes(rules: IntakeRules, calling_ae_title: str = "CT1", **changed: object) -> list[str]:
    return [reason.code for reason in rules.judge(series(**changed), calling_ae_title).reasons]


def rules_of(tmp_path: Path, text: str) -> IntakeRules:
    (tmp_path / "intake.toml").write_text(text)
    return IntakeRules.load(tmp_path / "intake.toml")


def test_the_shipped_rules_take_a_ctpa() -> None:
    for accepted in (
        {},
        {"slice_spacing_mm": 2.5, "count": 133},
        {"slice_spacing_mm": 0.8},
        {"slice_spacing_mm": None},
    ):
        assert codes(SHIPPED, **accepted) == []
    assert codes(SHIPPED, description="5.4 CT #131 CHEST PULMONARY EMBOLUS") == []


def test_the_shipped_rules_set_aside_what_is_no_ctpa() -> None:
    assert codes(SHIPPED, slice_spacing_mm=8.0) == ["intake.slice_spacing"]
    assert codes(SHIPPED, count=3) == ["intake.too_few_slices"]
    assert codes(SHIPPED, count=30_000) == ["intake.too_many_slices"]
    assert codes(SHIPPED, modality="MR") == ["intake.modality"]
    for description in ("Topogram 0.6 T20f", "BOLUS TRACKING", "Dose Report", "Thorax MIP ax", "Localizer"):
        assert codes(SHIPPED, description=description) == ["intake.description"]


def test_every_rule_that_turns_a_series_away_is_named() -> None:
    found = codes(SHIPPED, modality="MR", count=1, slice_spacing_mm=20.0, description="scout")
    assert set(found) == {
        "intake.modality", "intake.too_few_slices", "intake.slice_spacing", "intake.description",
    }  # fmt: skip


def test_the_measured_value_is_told_but_never_the_description() -> None:
    verdict = SHIPPED.judge(series(slice_spacing_mm=8.0, description="scout of Secret Person"), "CT1")
    texts = " ".join(reason.text for reason in verdict.reasons)
    assert "8.00 mm" in texts
    assert "Secret" not in texts


def test_included_descriptions_are_asked_for_when_there_are_any(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, "[description]\ninclude = ['ctpa', 'pulm.*embol']\n")
    assert codes(rules, description="Thorax CTPA 1.0") == []
    assert codes(rules, description="Pulmonary embolism") == []
    assert codes(rules, description="Abdomen") == ["intake.description"]
    assert codes(rules, description="") == ["intake.description"]


def test_the_calling_ae_title_decides_on_the_priority(tmp_path: Path) -> None:
    text = '[calling_ae_titles]\ndefault = "routine"\n[calling_ae_titles.named]\nER_CT = "stat"\n"DEMO 1" = "ignored"\n'
    rules = rules_of(tmp_path, text)
    assert rules.judge(series(), "ER_CT").priority is Priority.STAT
    assert rules.judge(series(), "CT2").priority is Priority.ROUTINE
    assert codes(rules, "DEMO 1") == ["intake.calling_ae_title"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("min_slice = 3", "min_slice: unknown key"),
        ("[description]\nexlude = []", "description.exlude: unknown key"),
        ("[description]\nexclude = ['(']", "not a regular expression"),
        ("min_slices = 'many'", "min_slices"),
        ("min_slices = 10\nmax_slices = 5", "min_slices 10 is more than max_slices 5"),
        ('[calling_ae_titles.named]\nA = "urgent"', "calling_ae_titles.named.A"),
        ("min_slices = ", "is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        rules_of(tmp_path, text)
    assert told in raised.value.message
    assert "intake.toml" in raised.value.message


def test_a_file_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        IntakeRules.load(tmp_path / "none.toml")


def test_the_shipped_rules_take_a_made_series(tmp_path: Path) -> None:
    (found,) = inspect_headers(save(ct_series(25, spacing_mm=2.5), tmp_path)).series
    assert SHIPPED.judge(found, "CT1").reasons == ()


@pytest.mark.parametrize(
    ("archive", "expected"),
    [
        ("LIDC-IDRI-0001_contrast_133sl.tar.xz", []),
        ("RIDER-Pilot-0117_CTPA-protocol_lower-chest_95sl.tar.xz", []),
        ("Lung_Dx-A0002_noncontrast_8mm_30sl.tar.xz", ["intake.slice_spacing"]),
    ],
)
def test_the_shipped_rules_on_real_series(shared_data: Path, tmp_path: Path, archive: str, expected: list[str]) -> None:
    with tarfile.open(shared_data / "chest_ct" / archive) as packed:
        packed.extractall(tmp_path, filter="data")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    found = inspect_headers(files).series[0]
    assert [reason.code for reason in SHIPPED.judge(found, "CT1").reasons] == expected
