from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from training.cases import TrainingCase
from training.sampling import BlockSource, RoiSource, SliceSource

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
