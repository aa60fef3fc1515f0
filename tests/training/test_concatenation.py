from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from training.cases import Block, TrainingCase
from training.concatenation import concatenated, tile_edges
from training.sampling import BlockSource, CropOptions, SliceSource

MakeCase = Callable[..., TrainingCase]


def test_a_crop_is_cut_into_halves_or_quarters_and_slices_stay_together() -> None:
    counts = set()
    for seed in range(50):
        edges = tile_edges((3, 64, 63), np.random.default_rng(seed))
        assert edges[0] == (0, 3)
        counts.add(int(np.prod([len(along) - 1 for along in edges])))
    assert counts == {2, 4}


def test_labels_lie_where_their_voxels_do() -> None:
    values = iter(range(1, 5))

    def draw(shape: tuple[int, int, int]) -> Block:
        value = next(values)
        return Block(np.full(shape, value, np.int16), np.full(shape, value, np.uint8), np.full(shape, value == 2))

    crop = concatenated(((0, 4), (0, 5, 11), (0, 6, 12)), draw)
    assert crop.hu.shape == (4, 11, 12)
    np.testing.assert_array_equal(crop.hu[0, [0, 0, 10, 10], [0, 11, 0, 11]], [1, 2, 3, 4])
    np.testing.assert_array_equal(crop.hu, crop.anatomy)
    np.testing.assert_array_equal(crop.embolus, crop.hu == 2)
    assert (crop.hu == 1).sum() == 4 * 5 * 6


def test_concatenated_crops_hold_several_small_emboli(make_case: MakeCase) -> None:
    options = CropOptions(concatenate_share=1.0, variation=0.0)
    source = BlockSource([make_case()], (16, 16, 16), 2, 0.5, seed=0, options=options)
    plain = BlockSource([make_case()], (16, 16, 16), 2, 0.5, seed=0)
    tiled = np.array([source.batch(step).target[:, 0].sum(dim=(1, 2, 3)).tolist() for step in range(40)])
    once = np.array([plain.batch(step).target[:, 0].sum(dim=(1, 2, 3)).tolist() for step in range(40)])
    assert tiled[:, 0].mean() > 1.7 * once[:, 0].mean(), "27 voxels each"
    assert tiled[:, 1].max() == 0, "crops on no embolus are left whole"


def test_slices_can_be_concatenated_too(make_case: MakeCase) -> None:
    options = CropOptions(concatenate_share=1.0)
    images, targets = SliceSource([make_case()], (32, 32), 4, 1.0, seed=0, options=options).batch(0)
    assert images.shape == (4, 5, 32, 32)
    assert float(targets.sum()) > 4 * 9


@pytest.mark.parametrize("options", [CropOptions(concatenate_share=0.5), CropOptions(copy_paste_share=0.5)])
def test_synthesis_depends_on_seed_and_step_alone(make_case: MakeCase, options: CropOptions) -> None:
    one, other = (BlockSource([make_case()], (16, 24, 24), 4, 0.5, seed=3, options=options) for _ in range(2))
    one.batch(0)
    for ours, theirs in zip(one.batch(5), other.batch(5), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
