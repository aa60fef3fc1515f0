from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from imaging.errors import ConfigurationError
from training.cases import UNKNOWN_VESSELS, VEIN, TrainingCase
from training.sampling import BlockSource, CropOptions, RoiSource, SliceSource

MakeCase = Callable[..., TrainingCase]


def test_the_share_of_crops_asked_for_holds_an_embolus(make_case: MakeCase) -> None:
    source = BlockSource([make_case()], (16, 16, 16), 4, embolus_share=0.75, seed=0)
    for step in range(10):
        images, targets = source.batch(step)
        assert images.shape == (4, 1, 16, 16, 16)
        assert targets.shape == (4, 2, 16, 16, 16)
        holds_embolus = targets[:, 0].sum(dim=(1, 2, 3)) > 0
        assert holds_embolus.tolist() == [True, True, True, False]
        assert bool((targets[:, 1] >= targets[:, 0]).all()), "a clot lies in the artery"


def test_a_slice_crop_shows_the_embolus_in_the_middle_slice(make_case: MakeCase) -> None:
    source = SliceSource([make_case()], (32, 32), 2, embolus_share=1.0, seed=0)
    images, targets = source.batch(3)
    assert images.shape == (2, 5, 32, 32)
    assert targets.shape == (2, 1, 32, 32)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    clot, background = images[:, 1][targets[:, 0] > 0], images[:, 1][targets[:, 0] == 0]
    assert float(background.max()) > float(clot.mean()) + 0.2


def test_a_case_without_emboli_gives_other_crops(make_case: MakeCase) -> None:
    _, targets = BlockSource([make_case(None)], (16, 16, 16), 2, embolus_share=1.0, seed=0).batch(0)
    assert float(targets.sum()) == 0


def test_a_batch_depends_on_seed_and_step_alone(make_case: MakeCase) -> None:
    one, other = (BlockSource([make_case()], (16, 16, 16), 2, 0.5, seed=3) for _ in range(2))
    one.batch(0)
    torch.testing.assert_close(one.batch(5).input, other.batch(5).input, rtol=0, atol=0)
    assert not torch.equal(one.batch(5).input, one.batch(6).input)


def test_turned_crops_depend_on_seed_and_step_alone(make_case: MakeCase) -> None:
    options = CropOptions(turned_share=1.0)
    one, other = (BlockSource([make_case()], (16, 16, 16), 2, 0.5, seed=3, options=options) for _ in range(2))
    one.batch(0)
    torch.testing.assert_close(one.batch(5).input, other.batch(5).input, rtol=0, atol=0)
    straight = BlockSource([make_case()], (16, 16, 16), 2, 0.5, seed=3).batch(5)
    assert not torch.equal(one.batch(5).target, straight.target)


def test_the_share_of_embolus_voxels_is_the_target_ratio(make_case: MakeCase) -> None:
    for ratio in (0.001, 0.003):
        source = BlockSource([make_case()], (16, 16, 16), 4, 0.0, seed=0, options=CropOptions(target_ratio=ratio))
        voxels = torch.cat([source.batch(step).target[:, 0] for step in range(60)])
        assert float(voxels.mean()) == pytest.approx(ratio, rel=0.1)


def test_a_target_ratio_beyond_reach_is_refused_with_what_can_be_reached(make_case: MakeCase) -> None:
    with pytest.raises(ConfigurationError, match=r"choose a ratio from 0.00000 to 0.00\d+"):
        BlockSource([make_case()], (16, 16, 16), 4, 0.5, seed=0, options=CropOptions(target_ratio=0.5))


def test_veins_are_a_third_target_for_a_network_that_has_them(make_case: MakeCase) -> None:
    case = make_case()
    anatomy = case.anatomy.copy()
    anatomy[:, :, :30] = VEIN
    source = BlockSource([replace(case, anatomy=anatomy)], (40, 48, 72), 1, 1.0, seed=0, veins=True)
    (target,) = source.batch(0).target
    assert target.shape == (3, 40, 48, 72)
    assert int(target[2].sum()) == 40 * 48 * 30
    assert int(target[1].sum()) == 7**3
    assert bool((target[1] * target[2] == 0).all())


def test_vessels_nobody_marked_are_no_target_but_a_clot_lies_in_an_artery(make_case: MakeCase) -> None:
    case = make_case()
    unmarked = replace(case, anatomy=np.full(case.anatomy.shape, UNKNOWN_VESSELS, np.uint8))
    (target,) = BlockSource([unmarked], (40, 48, 72), 1, 1.0, seed=0, veins=True).batch(0).target
    embolus = target[0] == 1
    assert int(embolus.sum()) == 27
    assert bool((target[1][embolus] == 1).all())
    assert bool((target[2][embolus] == 0).all())
    assert bool((target[1:, ~embolus] == -1).all())
    assert bool((target[0][~embolus] == 0).all()), "what is no embolus is known"


def test_a_recipe_names_crop_options_among_others() -> None:
    table = {"patch_zyx": [64, 64, 64], "target_ratio": 0.002, "lung_crop": False}
    assert CropOptions.of(table) == CropOptions(target_ratio=0.002, lung_crop=False)


def test_a_crop_larger_than_the_case_is_padded_with_air(make_case: MakeCase) -> None:
    hu, anatomy, embolus = make_case().block(np.array([-4, -4, -4]), (64, 48, 72))
    assert hu.shape == anatomy.shape == embolus.shape == (64, 48, 72)
    assert hu[-1, 0, 0] == -1024


def test_roi_boxes_follow_their_slices_and_stay_inside(make_case: MakeCase) -> None:
    images, boxes = RoiSource([make_case()], 16, seed=0).batch(0)
    assert images.shape == (16, 1, 32, 32)
    assert boxes.shape == (16, 1, 4)
    with_lung = boxes[boxes[..., 2] > 0]
    assert 0 < len(with_lung) < 16
    assert bool(((with_lung[:, :2] - with_lung[:, 2:] / 2) >= 0).all())
    assert bool(((with_lung[:, :2] + with_lung[:, 2:] / 2) <= 1).all())
