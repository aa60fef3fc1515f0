from __future__ import annotations

import numpy as np

from imaging.label_areas import label_areas


def test_areas_are_those_that_counting_label_by_label_gives() -> None:
    rng = np.random.default_rng(1)
    labels = np.where(rng.random((9, 11, 13)) < 0.2, rng.integers(0, 300, (9, 11, 13)), 0).astype(np.uint16)
    labels[3] = 0
    for view in (labels, np.flip(labels.transpose(2, 0, 1), 0)):
        areas = label_areas(view)
        assert areas.shape == (len(view), labels.max() + 1)
        for label in range(1, labels.max() + 1):
            np.testing.assert_array_equal(areas[:, label], np.count_nonzero(view == label, axis=(1, 2)))
        assert not areas[:, 0].any()


def test_a_map_without_labels_has_no_area() -> None:
    assert label_areas(np.zeros((4, 2, 2), dtype=np.uint16)).shape == (4, 1)
