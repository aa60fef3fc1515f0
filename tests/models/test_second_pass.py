from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from imaging.errors import ConfigurationError
from imaging.volume import CtVolume, Probability
from models.second_pass import SecondPassSettings, looked_at_again

SETTINGS = SecondPassSettings(spacing_mm=0.5, from_probability=0.3, smallest_mm3=4.0, margin_mm=3.0, share=0.5, most=5)


def _volume() -> CtVolume:
    return CtVolume(np.full((40, 40, 40), 200, np.int16), np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])


def _unheard(fraction: float) -> None:
    """Nobody listens."""


def test_only_the_surroundings_of_candidates_are_looked_at_again() -> None:
    first = np.full((40, 40, 40), 0.01, np.float32)
    first[10:14, 20:24, 30:34] = 0.6
    first[30, 5, 5] = 0.9  # a cubic millimetre is no candidate
    looked: list[tuple[int, ...]] = []

    def sure(hu: NDArray[np.int16]) -> Probability:
        looked.append(hu.shape)
        return np.full(hu.shape, 0.9, np.float32)

    joined = looked_at_again(first, _volume(), sure, SETTINGS, _unheard)
    assert looked == [(20, 20, 20)], "4 mm and 3 mm on both sides, twice as fine"
    odds = (0.6 / 0.4 * 0.9 / 0.1) ** 0.5
    assert joined[12, 22, 32] == pytest.approx(odds / (1 + odds), abs=1e-4)
    outside = np.ones(first.shape, bool)
    outside[7:17, 17:27, 27:37] = False
    assert np.array_equal(joined[outside], first[outside])
    assert first[12, 22, 32] == np.float32(0.6), "the first pass is left as it was"


def test_a_second_look_can_take_a_candidate_back() -> None:
    first = np.full((40, 40, 40), 0.01, np.float32)
    first[10:14, 20:24, 30:34] = 0.6
    doubtful = looked_at_again(first, _volume(), lambda hu: np.full(hu.shape, 0.001, np.float32), SETTINGS, _unheard)
    assert doubtful.max() < 0.1


def test_the_most_probable_candidates_come_first_and_no_more_than_asked_for() -> None:
    first = np.zeros((40, 40, 40), np.float32)
    for number, place in enumerate((2, 14, 26)):
        first[place : place + 3, 20:23, 20:23] = 0.5 + number / 10
    shares: list[float] = []
    two = SecondPassSettings(0.5, 0.3, 4.0, 1.0, 1.0, 2)
    joined = looked_at_again(first, _volume(), lambda hu: np.full(hu.shape, 0.5, np.float32), two, shares.append)
    assert shares == [0.5, 1.0]
    assert joined[3, 21, 21] == np.float32(0.5), "the least probable of three was not looked at"
    assert joined[27, 21, 21] == pytest.approx(0.5, abs=1e-4)


def test_without_candidates_nothing_runs() -> None:
    first = np.zeros((40, 40, 40), np.float32)

    def refuse(hu: NDArray[np.int16]) -> Probability:
        raise AssertionError(hu.shape)

    assert looked_at_again(first, _volume(), refuse, SETTINGS, _unheard) is first


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="second pass"):
        SecondPassSettings(0.5, 0.3, 4.0, 1.0, 1.5, 2)
