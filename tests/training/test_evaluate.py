from __future__ import annotations

import pytest

from training.evaluate import CaseFigures, summary


def test_summary_counts_by_size_and_averages_over_scans() -> None:
    one = CaseFigures("1", (0.5, 2.0), (0.05,), (0.9,), 0.8, 0.9, 1.0, 10.0)
    other = CaseFigures("2", (), (0.6,), (), 0.0, 0.7, 0.98, 20.0)
    healthy = CaseFigures("3", (), (), (0.6, 0.7), 0.0, 0.8, 1.0, 30.0)
    figures = summary([one, other, healthy])
    assert figures["lesion_sensitivity_by_size"] == {
        "0-0.1 ml": [0, 1], "0.1-0.3 ml": [0, 0], "0.3-1 ml": [1, 2], "1-10 ml": [1, 1], "10-inf ml": [0, 0],
    }  # fmt: skip
    assert figures["scans"] == 3
    assert figures["emboli"] == 4
    assert figures["false_positives_per_scan"] == 1.0
    assert figures["voxel_dice_mean"] == pytest.approx(0.4), "only over scans with emboli"
    assert figures["artery_dice_mean"] == pytest.approx(0.8)
    assert figures["roi_recall_min"] == 0.98
    assert figures["seconds_median"] == 20.0
