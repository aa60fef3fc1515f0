"""Bones before any scanner: what they are made of, and that a vertebra has its parts in their places."""

from __future__ import annotations

import numpy as np
import pytest

from imaging.phantom.body import Body, build_body, render_body
from imaging.phantom.bone import draw_bone
from imaging.phantom.grid import Field3, Grid
from imaging.phantom.lungs import grow_lungs
from imaging.phantom.spine import CANAL_BEHIND_MM, LEVELS

SEEDS = (1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def spine_view(request: pytest.FixtureRequest) -> tuple[Body, Grid, Field3]:
    """A body seen in the 0.7 mm grid around the middle of its spine, without blur and noise."""
    rng = np.random.default_rng(request.param)
    lungs = grow_lungs(rng)
    whole = Grid.centred((80, 100, 120), (3.0, 3.5, 3.5), (0.0, 0.0, 0.0))
    body = build_body(rng, whole, lungs)
    y, x = (float(v[0]) for v in body.spine.centre_at(np.array([0.0])))
    near = Grid.centred((70, 130, 140), (0.9, 0.7, 0.7), (0.0, y + 15, x))
    hu, _ = render_body(rng, near, body, lungs)
    return body, near, hu


def level_in_view(body: Body, grid: Grid) -> int:
    return int(np.argmin(np.abs(body.spine.centre_z_mm - grid.origin_mm[0] - grid.shape[0] * grid.spacing_mm[0] / 2)))


def around(grid: Grid, hu: Field3, centre: tuple[float, float, float], half_mm: float) -> Field3:
    box = grid.box_around(np.array(centre) - half_mm, np.array(centre) + half_mm)
    assert box is not None
    return hu[box]


def test_marrow_is_cancellous_within_a_shell_of_cortex(spine_view: tuple[Body, Grid, Field3]) -> None:
    body, grid, hu = spine_view
    level = level_in_view(body, grid)
    z = float(body.spine.centre_z_mm[level])
    y, x = (float(v[0]) for v in body.spine.centre_at(np.array([z])))
    marrow = around(grid, hu, (z, y, x), 5.0)
    assert 0 < np.median(marrow) < 320
    assert marrow.std() > 20
    slice_index, row, _ = grid.index(np.array([z, y, x]))
    across = hu[slice_index, row]
    beside = np.abs(grid.axis_mm(2) - x)
    shell = across[(beside > 0.7 * body.spine.radius_mm[level]) & (beside < 1.4 * body.spine.radius_mm[level])]
    assert shell.max() > 350
    assert shell.max() > np.median(marrow) + 150


def test_the_canal_is_soft_and_a_disc_parts_two_bodies(spine_view: tuple[Body, Grid, Field3]) -> None:
    body, grid, hu = spine_view
    level = level_in_view(body, grid)
    z = float(body.spine.centre_z_mm[level])
    y, x = (float(v[0]) for v in body.spine.centre_at(np.array([z])))
    assert 15 < np.median(around(grid, hu, (z, y + CANAL_BEHIND_MM, x), 3.0)) < 70
    between = z - float(body.spine.height_mm[level] + body.spine.pitch_mm[level]) / 4
    disc = np.median(around(grid, hu, (between, y, x), 1.0))
    assert np.abs(body.spine.disc_hu[level] - disc) < 40


def test_ribs_surround_the_chest_and_have_marrow(spine_view: tuple[Body, Grid, Field3]) -> None:
    body, _, _ = spine_view
    grid = Grid.centred((30, 200, 240), (1.5, 1.6, 1.6), (0.0, 0.0, 0.0))
    lungs = grow_lungs(np.random.default_rng(0))
    hu, _ = render_body(np.random.default_rng(0), grid, body, lungs)
    x = grid.axis_mm(2)
    for side in (x < -90, x > 90):
        lateral = hu[:, :, side]
        assert (lateral > 350).sum() > 200
        assert np.isfinite(lateral).all()


def test_age_thins_bone_and_marrow_spans_what_is_met_in_patients() -> None:
    drawn = [draw_bone(np.random.default_rng(seed)) for seed in range(16)]
    marrow = np.array([bone.marrow_hu for bone in drawn])
    age = np.array([bone.age for bone in drawn])
    assert np.corrcoef(age, marrow)[0, 1] < -0.5
    assert marrow.min() < 130
    assert marrow.max() > 190
    assert any((bone.fat > 0.5).mean() > 0.03 for bone in drawn)
    assert all(0 <= bone.fat_hu <= 60 for bone in drawn)


def test_levels_lie_one_below_the_other(spine_view: tuple[Body, Grid, Field3]) -> None:
    spine = spine_view[0].spine
    assert len(spine.centre_z_mm) == LEVELS
    assert (np.diff(spine.centre_z_mm) < -14).all()
    assert (spine.height_mm < spine.pitch_mm).all()
