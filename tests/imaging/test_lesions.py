from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from imaging import lesions
from imaging.errors import ConfigurationError
from imaging.findings import ArteryLevel
from imaging.lesions import LesionThresholds, find_lesions
from imaging.volume import CtVolume

THRESHOLDS = LesionThresholds(voxel=0.5, score=0.6, min_volume_ml=0.005)


def _scan() -> tuple[CtVolume, np.ndarray, np.ndarray]:
    """1 mm voxels; a wide artery along z with a strong lesion, a thin one with a weak candidate."""
    artery = np.zeros((40, 40, 40), dtype=bool)
    artery[:, 5:21, 5:21] = True
    artery[:, 30:32, 30:32] = True
    probability = np.zeros(artery.shape, dtype=np.float32)
    probability[10:14, 10:14, 10:16] = 0.9
    probability[14, 10:14, 10:16] = 0.4  # the strong one's rim
    probability[20:26, 30:32, 30:32] = 0.45
    hu = np.where(artery, 300, -800).astype(np.int16)
    hu[probability > 0] = 40
    affine = np.eye(4)[[2, 1, 0, 3]]
    return CtVolume(hu, affine), probability, artery


def test_a_lesion_is_measured_in_patient_space() -> None:
    volume, probability, artery = _scan()
    found = find_lesions(probability, artery, volume, THRESHOLDS, min_score=None)

    assert len(found.lesions) == 1
    lesion = found.lesions[0]
    assert lesion.id == 1
    assert lesion.volume_ml == 4 * 4 * 6 / 1000
    assert np.count_nonzero(found.labelmap) == 4 * 4 * 6
    np.testing.assert_allclose(lesion.centroid_lps_mm, (12.5, 11.5, 11.5))
    assert abs(lesion.max_diameter_mm - (np.sqrt(9 + 9 + 25) + 1)) < 1e-6
    assert lesion.mean_hu == 40
    assert abs(lesion.score - 0.9) < 1e-6
    assert lesion.artery_level is ArteryLevel.CENTRAL
    assert found.scan_probability == lesion.score


def test_a_lower_min_score_adds_candidates_and_leaves_the_others_as_they_are() -> None:
    volume, probability, artery = _scan()
    strict = find_lesions(probability, artery, volume, THRESHOLDS, min_score=None)
    loose = find_lesions(probability, artery, volume, THRESHOLDS, min_score=0.3)

    assert loose.lesions[0] == strict.lesions[0]
    np.testing.assert_array_equal(loose.labelmap == 1, strict.labelmap == 1)
    assert len(loose.lesions) == 2
    assert np.count_nonzero(loose.labelmap == 2) == 6 * 2 * 2
    assert loose.lesions[1].artery_level is ArteryLevel.SUBSEGMENTAL
    assert loose.scan_probability == strict.scan_probability


def test_the_lower_the_min_score_the_longer_the_list_and_it_never_swallows_the_scan() -> None:
    volume, probability, artery = _scan()
    probability = np.maximum(probability, np.float32(0.04))  # background that would run together
    counts = [
        len(find_lesions(probability, artery, volume, THRESHOLDS, min_score=score).lesions)
        for score in (0.95, 0.6, 0.3, 0.1, 0.0)
    ]
    assert counts == [1, 1, 2, 2, 2]


def test_a_hot_speck_is_no_lesion_and_with_what_surrounds_it_a_weak_candidate() -> None:
    volume, probability, artery = _scan()
    probability[:] = 0
    probability[10:13, 10:13, 10:13] = 0.3
    probability[11, 11, 11] = 0.99
    assert find_lesions(probability, artery, volume, THRESHOLDS, min_score=None).lesions == ()
    found = find_lesions(probability, artery, volume, THRESHOLDS, min_score=0.2)
    (candidate,) = found.lesions
    assert candidate.volume_ml == 0.027
    assert candidate.score == pytest.approx((0.99 + 24 * 0.3) / 25)
    assert set(np.unique(found.labelmap)) == {0, 1}
    assert found.scan_probability < THRESHOLDS.score


def test_without_a_probable_voxel_the_scan_keeps_its_best_candidate_as_probability() -> None:
    volume, probability, artery = _scan()
    probability = np.minimum(probability, 0.45)
    found = find_lesions(probability, artery, volume, THRESHOLDS, min_score=None)
    assert found.lesions == ()
    assert not found.labelmap.any()
    assert abs(found.scan_probability - 0.45) < 1e-6


@pytest.mark.parametrize("min_score", [None, 0.3])
def test_more_of_the_patient_around_changes_nothing_but_places(min_score: float | None) -> None:
    volume, probability, artery = _scan()
    alone = find_lesions(probability, artery, volume, THRESHOLDS, min_score=min_score)
    around = [(9, 2), (3, 14), (0, 5)]
    before = np.array([first for first, _ in around])
    affine = volume.affine_lps.copy()
    affine[:3, 3] = volume.point_lps_mm(-before)
    wider = CtVolume(np.pad(volume.hu, around), affine)
    found = find_lesions(np.pad(probability, around), np.pad(artery, around), wider, THRESHOLDS, min_score=min_score)
    assert found.lesions == alone.lesions
    np.testing.assert_array_equal(found.labelmap, np.pad(alone.labelmap, around))


def test_pieces_are_measured_in_the_part_of_the_scan_that_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, probability, artery = _scan()
    looked_at: list[int] = []
    labelled = lesions.components

    def counting(mask: np.ndarray) -> np.ndarray:
        looked_at.append(mask.size)
        return labelled(mask)

    monkeypatch.setattr(lesions, "components", counting)
    find_lesions(probability, artery, volume, THRESHOLDS, min_score=None)
    assert looked_at == [18 * 18 * 20], "4 x 4 x 6 voxels and 7 mm on every side"


def test_thresholds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="voxel <= score"):
        LesionThresholds(voxel=0.7, score=0.6, min_volume_ml=0.0)


@pytest.mark.parametrize("radius_mm", [1.0, 2.0, 3.0, 4.0, 6.6, 7.4, 12.0])
@pytest.mark.parametrize("spacing_zyx_mm", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.8)])
def test_the_level_is_that_of_the_distance_to_the_wall_in_the_whole_volume(
    radius_mm: float, spacing_zyx_mm: tuple[float, float, float]
) -> None:
    shape = [round(50 / step) for step in spacing_zyx_mm]
    z, y, x = (np.arange(n) * step - 25 for n, step in zip(shape, spacing_zyx_mm, strict=True))
    artery = np.broadcast_to(y[:, None] ** 2 + x[None, :] ** 2 < radius_mm**2, shape).copy()
    probability = np.where(artery & (np.abs(z) < 4)[:, None, None], 0.9, 0.0).astype(np.float32)
    volume = CtVolume(np.zeros(shape, dtype=np.int16), np.diag([*spacing_zyx_mm, 1.0])[[2, 1, 0, 3]])
    (lesion,) = find_lesions(probability, artery, volume, THRESHOLDS, min_score=None).lesions
    inside = ndimage.distance_transform_edt(np.pad(artery, 1), sampling=spacing_zyx_mm)[1:-1, 1:-1, 1:-1]
    largest = inside[probability > 0].max()
    levels = {7.0: ArteryLevel.CENTRAL, 3.8: ArteryLevel.LOBAR, 1.9: ArteryLevel.SEGMENTAL, 0: ArteryLevel.SUBSEGMENTAL}
    assert lesion.artery_level is next(level for least, level in levels.items() if largest >= least)
