from __future__ import annotations

import numpy as np
import pytest

from imaging.errors import ConfigurationError, NotAnalysable
from imaging.suitability import SuitabilityLimits, check_contrast, check_coverage, check_grid, check_motion
from imaging.volume import CtVolume

LIMITS = SuitabilityLimits()


def _volume(slices: int, spacing_zyx_mm: tuple[float, float, float]) -> CtVolume:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing_zyx_mm)[::-1]
    return CtVolume(np.zeros((slices, 8, 8), dtype=np.int16), affine)


def test_thick_slices_and_a_short_scan_are_both_said() -> None:
    with pytest.raises(NotAnalysable) as refusal:
        check_grid(_volume(4, (8.0, 0.7, 0.7)), LIMITS)
    assert [reason.code for reason in refusal.value.reasons] == ["geometry.slice_spacing", "coverage.too_short"]


def test_a_thin_chest_ct_is_suitable() -> None:
    check_grid(_volume(200, (1.25, 0.7, 0.7)), LIMITS)


def test_low_contrast_is_warned_of_and_none_is_refused() -> None:
    assert check_contrast(200, 320, LIMITS) == ()
    assert check_contrast(200, 180, LIMITS)[0].code == "contrast.suboptimal"
    with pytest.raises(NotAnalysable, match="no contrast"):
        check_contrast(200, 60, LIMITS)
    with pytest.raises(NotAnalysable, match="opacified"):
        check_contrast(1, 300, LIMITS)


def test_partial_coverage_is_warned_of_and_hardly_any_is_refused() -> None:
    assert check_coverage((76, 300, 350), LIMITS)[0].code == "coverage.partial"
    assert check_coverage((250, 300, 350), LIMITS) == ()
    with pytest.raises(NotAnalysable, match="recognised over 20 mm"):
        check_coverage((20, 300, 350), LIMITS)
    with pytest.raises(NotAnalysable, match="at most 600 mm"):
        check_coverage((250, 300, 1500), LIMITS)


def test_a_misspelt_limit_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="min_artery_hounsfield"):
        SuitabilityLimits.from_mapping({"min_artery_hounsfield": 3})


def test_a_jump_of_the_lungs_outline_is_warned_of() -> None:
    assert check_motion(0.25, LIMITS) == ()
    (warning,) = check_motion(0.62, LIMITS)
    assert (warning.code, "jumps by 0.6 mm" in warning.text) == ("motion.breathing", True)
