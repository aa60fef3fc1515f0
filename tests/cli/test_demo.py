"""The demo's parts over real associations, and the demo itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest

from cli.demo_comparison import compare
from cli.demo_pacs import AE_TITLE, DemoPacs
from cli.demo_push import push_series
from cli.demo_run import PacsNode, _settings
from cli.supervisor import Supervisor
from imaging.errors import DeliveryError
from imaging.volume import CtVolume
from services.dicom.ct_series_writer import write_ct_series
from services.dicom.input_reader import read_input
from services.dicom.seg_writer import write_seg
from services.embedded_redis import free_port
from services.ingest.intake_rules import IntakeRules
from tests.cli.conftest import Embolens
from tests.services.dicom.made_series import IDENTITY
from tests.worker.threshold_worker import CLOT_HU, LUMEN_HU, ThresholdSegmenter


@pytest.fixture
def volume() -> CtVolume:
    hu = np.full((24, 40, 48), -800, dtype=np.int16)
    hu[8:16, 16:24, 4:44] = LUMEN_HU
    hu[10:14, 18:22, 20:24] = CLOT_HU
    hu[10:14, 18:22, 30:34] = CLOT_HU
    return CtVolume(hu, np.array([[0, 0, 1, -20], [0, 1, 0, -30], [1, 0, 0, 5], [0, 0, 0, 1]], dtype=np.float64))


@pytest.fixture
def slices(volume: CtVolume, tmp_path: Path) -> list[Path]:
    return write_ct_series(volume, tmp_path / "ct", patient_id="P1", patient_name="Phantom^One")


def test_a_pushed_series_lies_whole_in_the_pacs(slices: list[Path], tmp_path: Path) -> None:
    sent: list[None] = []
    with DemoPacs(tmp_path / "pacs") as pacs:
        push_series(
            slices,
            host="127.0.0.1",
            port=pacs.port,
            called_ae_title=AE_TITLE,
            calling_ae_title="CT1",
            on_sent=lambda: sent.append(None),
        )

        assert len(sent) == len(pacs.received()) == len(slices)
        np.testing.assert_array_equal(read_input(pacs.directory).volume.hu, read_input(slices).volume.hu)


def test_a_push_that_nobody_takes_says_so(slices: list[Path]) -> None:
    with pytest.raises(DeliveryError, match="accepts no association"):
        push_series(
            slices,
            host="127.0.0.1",
            port=free_port(),
            called_ae_title=AE_TITLE,
            calling_ae_title="CT1",
            on_sent=lambda: None,
        )


def test_a_seg_is_laid_over_the_phantom_by_position(volume: CtVolume, slices: list[Path], tmp_path: Path) -> None:
    """Of two emboli in the SEG one was inserted and one was not; another that was inserted is missing."""
    source = read_input(slices)
    result = ThresholdSegmenter().segment(source.volume)
    seg = write_seg(source, result, tmp_path / "seg.dcm", identity=IDENTITY)
    truth = np.zeros(volume.shape_zyx, dtype=np.uint16)
    truth[10:14, 18:22, 20:24] = 1
    truth[2:4, 2:4, 2:4] = 2

    comparison = compare(seg.path, volume, truth)

    assert (comparison.inserted, comparison.found, comparison.false) == (2, 1, 1)
    assert comparison.dice == pytest.approx(2 * 64 / (72 + 128))


@pytest.mark.timeout(400)
def test_the_demo_ends_with_the_seg_in_the_pacs(embolens: Embolens, tmp_path: Path) -> None:
    shown = embolens("demo", "--output", tmp_path / "demo", timeout_s=360)

    assert shown.returncode == 0, shown.stdout + shown.stderr
    found = re.search(r"found\s+│\s+(\d+)", shown.stdout)
    assert found is not None
    assert int(found[1]) >= 1
    sent = [pydicom.dcmread(path).Modality for path in (tmp_path / "demo/pacs").glob("*.dcm")]
    assert sorted(sent) == ["SEG", "SR"]
    assert re.search(r"Worklist: http://127.0.0.1:\d+/", shown.stdout)
    preview = re.search(r"preview: (.*)", shown.stdout)
    assert preview is not None
    assert Path(preview[1]).is_file()


def test_the_demo_leaves_an_operators_database_rules_and_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "DATABASE_URL": "postgresql://hospital",
        "PACKAGE_DIR": "/srv/package",
        "INTAKE_RULES": "/srv/intake.toml",
        "DATA_DIR": "/srv/data",
        "REDIS_URL": "redis://127.0.0.1:6379/5",
    }.items():
        monkeypatch.setenv(f"EMBOLENS_{name}", value)

    chosen = _settings(tmp_path, PacsNode("PACS", "127.0.0.1", 104))

    assert chosen.resolved_database_url == f"sqlite:///{tmp_path}/server/embolens.sqlite"
    assert chosen.package_dir is None
    assert IntakeRules.load(chosen.intake_rules).associations.calling_ae_titles == ("PACS",)
    assert chosen.redis_url == "redis://127.0.0.1:6379/5"
    children = Supervisor(chosen, [])._environment
    assert "EMBOLENS_PACKAGE_DIR" not in children
    assert "hospital" not in children["EMBOLENS_DATABASE_URL"]
