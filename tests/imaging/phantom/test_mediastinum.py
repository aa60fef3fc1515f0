"""What lies beside the arteries never lies in them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from imaging.phantom import Phantom, make_phantom

SHAPE, SPACING_MM = (110, 130, 150), (2.2, 2.2, 2.2)


@pytest.fixture(scope="module", params=(11, 12))
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return make_phantom(request.param, shape_zyx=SHAPE, spacing_zyx_mm=SPACING_MM, emboli=2, slice_thickness_mm=2.2)


def test_no_node_or_wall_reaches_into_the_core_of_an_artery(phantom: Phantom) -> None:
    core = ndimage.binary_erosion(phantom.artery & ~ndimage.binary_dilation(phantom.embolus_labelmap > 0, iterations=2))
    core = ndimage.binary_erosion(core, iterations=1)
    smooth = ndimage.median_filter(phantom.volume.hu, 3)[core]
    blood = np.median(smooth)
    # An interruption of the contrast takes at most half.
    assert (smooth < 0.35 * blood).mean() < 0.01


def test_clot_like_tissue_abounds_outside_the_arteries(phantom: Phantom) -> None:
    like_clot = (phantom.volume.hu > 20) & (phantom.volume.hu < 100) & ~phantom.artery
    assert like_clot.sum() > 20 * (phantom.embolus_labelmap > 0).sum()


def test_bone_is_as_bright_as_contrast(phantom: Phantom) -> None:
    bright = (phantom.volume.hu > 250) & ~phantom.artery & ~phantom.vein & ~phantom.lung
    posterior = bright[:, SHAPE[1] // 2 :].sum()
    assert posterior * np.prod(SPACING_MM) / 1000 > 60


def test_thickness_of_slices_leaves_the_truth_alone() -> None:
    thin, thick = (
        make_phantom(11, shape_zyx=(50, 66, 80), spacing_zyx_mm=(4.0, 4.0, 4.0), emboli=1, slice_thickness_mm=t)
        for t in (1.0, 5.0)
    )
    assert np.array_equal(thin.artery, thick.artery)
    assert np.array_equal(thin.embolus_labelmap, thick.embolus_labelmap)
    steps = [np.abs(np.diff(p.volume.hu.astype(float), axis=0)).mean() for p in (thin, thick)]
    assert steps[1] < steps[0]
