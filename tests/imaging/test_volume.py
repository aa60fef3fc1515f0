from __future__ import annotations

import numpy as np
import pytest

from imaging.errors import InputError, NotAnalysable, Reason
from imaging.findings import Findings, Outcome
from imaging.volume import CtVolume

SHEARED = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def test_points_and_indices_are_inverse() -> None:
    affine = np.array([[0, 0, 0.7, -120], [0, 0.7, 0, -90], [1.5, 0, 0, 33], [0, 0, 0, 1.0]])
    volume = CtVolume(np.zeros((3, 4, 5), dtype=np.int16), affine)
    np.testing.assert_allclose(volume.point_lps_mm((2, 1, 3)), (-120 + 2.1, -90 + 0.7, 36))
    np.testing.assert_allclose(volume.index_zyx(volume.point_lps_mm((2, 1, 3))), (2, 1, 3))
    assert volume.spacing_zyx_mm == pytest.approx((1.5, 0.7, 0.7))


@pytest.mark.parametrize(
    ("hu", "affine", "said"),
    [
        (np.zeros((2, 2), dtype=np.int16), np.eye(4), "3 axes"),
        (np.zeros((2, 2, 2), dtype=np.float32), np.eye(4), "int16"),
        (np.zeros((2, 2, 2), dtype=np.int16), np.diag([0, 1, 1, 1.0]), "spacing"),
        (np.zeros((2, 2, 2), dtype=np.int16), SHEARED, "ortho"),
        (np.zeros((2, 2, 2), dtype=np.int16), np.full((4, 4), np.nan), "finite"),
    ],
)  # fmt: skip
def test_a_volume_is_whole_or_not_at_all(hu: np.ndarray, affine: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        CtVolume(hu, affine)


def test_hu_cannot_be_changed() -> None:
    volume = CtVolume(np.zeros((2, 2, 2), dtype=np.int16), np.eye(4))
    with pytest.raises(ValueError, match="read-only"):
        volume.hu[0, 0, 0] = 1


def test_findings_never_say_nothing_found_of_a_scan_that_was_not_looked_at() -> None:
    for outcome in (Outcome.NOT_ANALYSABLE, Outcome.FAILED):
        with pytest.raises(ValueError, match="was analysed"):
            Findings(outcome, reasons=(Reason("x", "y"),), scan_probability=0.0)
    with pytest.raises(ValueError, match="reasons"):
        Findings(Outcome.NOT_ANALYSABLE)
    with pytest.raises(ValueError, match="reported"):
        Findings(Outcome.EMBOLUS_FOUND, scan_probability=0.9)
    with pytest.raises(ValueError, match="at least one"):
        NotAnalysable([])
    said = Findings(Outcome.NOT_ANALYSABLE, reasons=(Reason("x", "y"),)).to_dict()
    assert said["clot_burden_ml"] is None
