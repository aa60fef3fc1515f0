from __future__ import annotations

import numpy as np

from training.cases import ARTERY, UNKNOWN_VESSELS, Block
from training.crop_variation import Turn, mirrored, recoloured

SHAPE = (24, 40, 40)


def _rod(shape: tuple[int, int, int]) -> Block:
    """A rod of clot along x through the middle, in soft tissue."""
    hu = np.full(shape, 40, np.int16)
    anatomy = np.zeros(shape, np.uint8)
    embolus = np.zeros(shape, bool)
    z, y, x = (n // 2 for n in shape)
    rod = np.s_[z - 3 : z + 4, y - 3 : y + 4, x - 12 : x + 13]
    hu[rod], anatomy[rod], embolus[rod] = 300, ARTERY, True
    return Block(hu, anatomy, embolus)


def test_no_turn_and_no_zoom_leave_a_block_as_it_is() -> None:
    turn = Turn(0.0, (1.0, 1.0, 1.0))
    block = _rod(SHAPE)
    block.hu[:] = np.random.default_rng(0).integers(-1000, 1000, SHAPE)
    turned = turn.apply(block, SHAPE)
    assert turn.source_shape(SHAPE) == SHAPE
    for ours, theirs in zip(turned, block, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_quarter_turn_lays_a_rod_along_the_other_axis() -> None:
    turn = Turn(90.0, (1.0, 1.0, 1.0))
    turned = turn.apply(_rod(turn.source_shape(SHAPE)), SHAPE)
    extent = np.ptp(np.argwhere(turned.embolus), axis=0) + 1
    assert extent[2] <= 8 < 24 <= extent[1] <= 26


def test_a_zoom_makes_things_larger_along_its_axis() -> None:
    turn = Turn(0.0, (1.0, 1.0, 1.15))
    turned = turn.apply(_rod(turn.source_shape(SHAPE)), SHAPE)
    extent = np.ptp(np.argwhere(turned.embolus), axis=0) + 1
    assert 27 <= extent[2] <= 30  # 25 voxels before
    assert extent[1] == 7


def test_image_and_labels_turn_together() -> None:
    for seed in range(5):
        turn = Turn.draw(np.random.default_rng(seed))
        turned = turn.apply(_rod(turn.source_shape(SHAPE)), SHAPE)
        assert (turned.embolus & (turned.hu > 170)).sum() > 0.75 * turned.embolus.sum()
        assert bool((turned.hu[~turned.embolus] < 300).all())
        assert bool((turned.anatomy[turned.embolus] == ARTERY).all())


def test_a_turned_crop_has_no_border_from_beyond_its_source() -> None:
    """Linear HU come out linear everywhere, which a repeated border would break."""
    for seed in range(5):
        turn = Turn.draw(np.random.default_rng(seed), 2.0)
        shape = turn.source_shape(SHAPE)
        ramp = np.broadcast_to(np.arange(shape[2]) * 10, shape).astype(np.int16)
        turned = turn.apply(Block(ramp, np.zeros(shape, np.uint8), np.zeros(shape, bool)), SHAPE)
        second = np.diff(turned.hu.astype(int), n=2, axis=2)
        assert np.abs(second).max() <= 2, "rounding only"


def test_unknown_vessels_stay_unknown() -> None:
    block = _rod((30, 60, 60))
    unknown = block._replace(anatomy=np.full((30, 60, 60), UNKNOWN_VESSELS, np.uint8))
    turned = Turn(10.0, (1.0, 1.0, 1.0)).apply(unknown, SHAPE)
    assert bool((turned.anatomy == UNKNOWN_VESSELS).all())
    assert bool(turned.embolus.any())


def test_a_mirror_exchanges_left_and_right_only() -> None:
    block = _rod(SHAPE)
    block.hu[0, 0, 0] = 7
    assert mirrored(block).hu[0, 0, -1] == 7


def test_recolouring_varies_contrast_noise_and_kernel_within_its_strength() -> None:
    edge = np.full((8, 48, 48), 40, np.int16)
    edge[..., 24:] = 440
    steps, noises = [], []
    for seed in range(60):
        varied = recoloured(edge, np.random.default_rng(seed)).astype(float)
        left, right = varied[..., 4:20], varied[..., 28:44]
        steps.append(right.mean() - left.mean())
        noises.append(left.std())
        assert abs(left.mean() - 40) < 16
    assert 340 < min(steps) < 370 < 430 < max(steps) < 460
    assert min(noises) < 4
    assert 12 < max(noises) < 32
    np.testing.assert_array_equal(recoloured(edge, np.random.default_rng(0), 0.0), edge)


def test_a_stronger_variation_varies_more() -> None:
    edge = np.full((8, 32, 32), 440, np.int16)
    spread = [
        np.std([recoloured(edge, np.random.default_rng(seed), strength).mean() for seed in range(40)])
        for strength in (0.5, 1.0, 2.0)
    ]
    assert spread[0] < 0.7 * spread[1] < 0.49 * spread[2]
