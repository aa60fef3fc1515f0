"""What may be relied on in every phantom."""

from __future__ import annotations

from pathlib import Path

import cc3d
import numpy as np
import pytest
from scipy import ndimage

from imaging.errors import InputError
from imaging.phantom import Anatomy, Phantom, make_phantom

SHAPE = (88, 100, 128)
SPACING_MM = (3.0, 2.8, 2.8)
ANATOMIES = Path(__file__).parents[3] / "../shared/data/anatomies"


def small_phantom(seed: int, **asked: object) -> Phantom:
    return make_phantom(seed, shape_zyx=SHAPE, spacing_zyx_mm=SPACING_MM, **asked)  # type: ignore[arg-type]


def clot_free_core(phantom: Phantom) -> np.ndarray:
    return ndimage.binary_erosion(phantom.artery & (phantom.embolus_labelmap == 0), iterations=2)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return small_phantom(3, emboli=4, min_embolus_ml=0.5)


def test_same_seed_makes_the_same_phantom(phantom: Phantom) -> None:
    again = small_phantom(3, emboli=4, min_embolus_ml=0.5)
    assert np.array_equal(again.volume.hu, phantom.volume.hu)
    assert np.array_equal(again.embolus_labelmap, phantom.embolus_labelmap)
    assert not np.array_equal(small_phantom(4, emboli=4).volume.hu, phantom.volume.hu)


def test_all_arrays_lie_on_the_grid_asked_for(phantom: Phantom) -> None:
    assert phantom.volume.shape_zyx == SHAPE
    assert phantom.volume.spacing_zyx_mm == pytest.approx(SPACING_MM)
    assert {a.shape for a in (phantom.lung, phantom.artery, phantom.vein, phantom.embolus_labelmap)} == {SHAPE}
    assert phantom.embolus_labelmap.dtype == np.uint16


def test_axes_run_to_superior_posterior_and_left(phantom: Phantom) -> None:
    assert np.allclose(phantom.volume.direction_cosines, np.eye(3)[::-1])
    assert np.median(phantom.volume.hu[:, SHAPE[1] * 9 // 10]) < -900 or phantom.lung.any()
    heart_side = phantom.volume.point_lps_mm(np.argwhere(phantom.artery).mean(axis=0))
    spine = phantom.volume.hu[:, SHAPE[1] // 2 :].max(axis=1) > 250
    breast_bone = phantom.volume.hu[:, : SHAPE[1] // 2].max(axis=1) > 250
    assert spine.sum() > 0
    assert breast_bone.sum() > 0
    assert abs(heart_side[0]) < 40


def test_each_embolus_has_its_own_label(phantom: Phantom) -> None:
    assert np.unique(phantom.embolus_labelmap).tolist() == [0, 1, 2, 3, 4]


def test_emboli_do_not_touch_each_other(phantom: Phantom) -> None:
    for label in range(1, 5):
        around = ndimage.binary_dilation(phantom.embolus_labelmap == label, np.ones((3, 3, 3)))
        assert set(np.unique(phantom.embolus_labelmap[around])) <= {0, label}


def test_emboli_lie_inside_the_arteries(phantom: Phantom) -> None:
    assert phantom.artery[phantom.embolus_labelmap > 0].all()
    assert not (phantom.artery & phantom.vein).any()


def test_no_embolus_is_smaller_than_asked_for(phantom: Phantom) -> None:
    sizes = np.bincount(phantom.embolus_labelmap.ravel())[1:] * phantom.volume.voxel_volume_mm3 / 1000
    assert sizes.min() >= 0.5


def test_clot_is_dark_in_bright_blood(phantom: Phantom) -> None:
    blood = np.median(phantom.volume.hu[clot_free_core(phantom)])
    clot = np.median(phantom.volume.hu[ndimage.binary_erosion(phantom.embolus_labelmap > 0)])
    assert 180 < blood < 600
    assert 0 < clot < 150
    assert blood - clot > 100


def test_lungs_hold_air_and_are_as_large_as_lungs(phantom: Phantom) -> None:
    litres = phantom.lung.sum() * phantom.volume.voxel_volume_mm3 / 1e6
    assert 1.5 < litres < 8
    assert -930 < np.median(phantom.volume.hu[phantom.lung]) < -700


def test_there_is_air_around_the_body_and_hu_stay_in_range(phantom: Phantom) -> None:
    assert np.median(phantom.volume.hu[:, :3, :3]) < -900
    assert phantom.volume.hu.min() >= -1024
    assert phantom.volume.hu.max() <= 3071


def test_a_negative_has_no_embolus() -> None:
    negative = small_phantom(5, emboli=0)
    assert not negative.embolus_labelmap.any()
    assert negative.artery.any()


def test_arteries_are_one_tree_of_many_branches() -> None:
    phantom = make_phantom(6, shape_zyx=(170, 190, 220), spacing_zyx_mm=(1.5, 1.5, 1.5), emboli=0)
    parts = np.bincount(cc3d.connected_components(phantom.artery, connectivity=26).ravel())[1:]
    assert parts.max() > 0.99 * parts.sum()
    thin = phantom.artery & ~ndimage.binary_opening(phantom.artery, np.ones((3, 3, 3)))
    assert thin.sum() * phantom.volume.voxel_volume_mm3 / 1000 > 20
    assert (phantom.artery & phantom.lung).any()
    assert (phantom.artery & ~phantom.lung).any()


def test_more_emboli_than_the_arteries_hold_are_refused() -> None:
    with pytest.raises(InputError, match="no room") as refusal:
        make_phantom(7, shape_zyx=(16, 40, 40), spacing_zyx_mm=(3.0, 3.0, 3.0), emboli=2, min_embolus_ml=500.0)
    assert refusal.value.code == "phantom.no_room"


def box_anatomy(flip: bool) -> Anatomy:
    """Two boxes of lung with a straight artery across both and a vein below it, 3 mm voxels."""
    labels = np.zeros((70, 60, 90), np.uint8)
    labels[5:65, 5:55, 5:36] = labels[5:65, 5:55, 54:85] = 1
    artery, vein = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    artery[38:44, 26:32, 12:78] = True
    vein[20:25, 32:37, 12:78] = True
    labels[artery] = np.where(labels[artery] == 1, 4, 2)
    labels[vein] = np.where(labels[vein] == 1, 5, 3)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = 3.0
    affine[3, 3] = 1
    if flip:
        labels, affine[0, 2] = labels[:, :, ::-1].copy(), -3.0
    return Anatomy(labels, affine)


def test_a_given_anatomy_is_what_is_seen() -> None:
    phantom = small_phantom(8, emboli=1, anatomy=box_anatomy(flip=False))
    litres = phantom.artery.sum() * phantom.volume.voxel_volume_mm3 / 1e6
    assert litres == pytest.approx(6 * 6 * 66 * 27 / 1e6, rel=0.25)
    assert phantom.embolus_labelmap.max() == 1
    assert np.median(phantom.volume.hu[clot_free_core(phantom)]) > 180


def test_an_anatomy_stored_the_other_way_round_gives_the_same_phantom() -> None:
    plain = small_phantom(8, emboli=1, anatomy=box_anatomy(flip=False))
    flipped = small_phantom(8, emboli=1, anatomy=box_anatomy(flip=True))
    assert np.array_equal(plain.volume.hu, flipped.volume.hu)


def test_an_anatomy_without_arteries_is_refused() -> None:
    with pytest.raises(InputError, match="artery"):
        Anatomy(np.ones((4, 4, 4), np.uint8), np.eye(4))


def test_a_real_anatomy_keeps_its_artery_volume() -> None:
    path = ANATOMIES / "e0135.nii.gz"
    if not path.exists():
        pytest.skip(f"real anatomies are not here: {path}")
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(path)
    affine = (np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)[:, [2, 1, 0, 3]]
    labels = np.ascontiguousarray(np.asarray(image.dataobj).astype(np.uint8).transpose(2, 1, 0))
    phantom = make_phantom(
        9, shape_zyx=(150, 150, 190), spacing_zyx_mm=(2.0, 2.0, 2.0), emboli=2, anatomy=Anatomy(labels, affine)
    )
    real_ml = np.isin(labels, (2, 4)).sum() * abs(np.linalg.det(affine)) / 1000
    assert phantom.artery.sum() * phantom.volume.voxel_volume_mm3 / 1000 == pytest.approx(real_ml, rel=0.3)
    assert phantom.embolus_labelmap.max() == 2


def test_a_grid_that_shows_little_artery_gets_as_many_drawn_emboli_as_fit() -> None:
    phantom = make_phantom(1, shape_zyx=(16, 60, 60), spacing_zyx_mm=(3.0, 4.0, 4.0), min_embolus_ml=40.0)
    assert phantom.embolus_labelmap.max() <= 6
