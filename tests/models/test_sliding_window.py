from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.sliding_window import Slices, fitted_windows, sliding_window


def twice(windows: Tensor) -> Tensor:
    return torch.cat([windows, 2 * windows], dim=1)


def test_windows_cover_every_voxel_and_overlap_as_asked() -> None:
    for extent in range(1, 400, 7):
        size, starts = fitted_windows(extent, 96, 0.25)
        assert starts[0] == 0
        assert size % 16 == 0
        assert size <= 96
        assert starts[-1] + size >= extent
        assert all(after - before <= size - 24 for before, after in itertools.pairwise(starts))


def test_windows_shrink_to_what_their_number_needs() -> None:
    assert fitted_windows(256, 128, 0.25) == (112, [0, 72, 144])
    assert fitted_windows(70, 96, 0.25) == (80, [0])
    assert fitted_windows(96, 96, 0.25) == (96, [0])


@pytest.mark.parametrize("shape", [(16, 16, 16), (50, 40, 33), (5, 70, 20)])
@pytest.mark.parametrize("batch", [1, 3])
def test_answer_of_a_voxelwise_network_does_not_depend_on_the_windows(shape: tuple[int, int, int], batch: int) -> None:
    volume = torch.rand(shape)
    answer = sliding_window(volume, twice, window_zyx=(32, 32, 32), overlap=0.25, batch=batch)
    torch.testing.assert_close(answer, torch.stack([volume, 2 * volume]))


def test_one_window_is_the_networks_own_answer() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    volume = torch.rand(16, 32, 16)
    with torch.inference_mode():
        answer = sliding_window(volume, network, window_zyx=(16, 32, 16))
        torch.testing.assert_close(answer, network(volume[None, None])[0])


def test_blending_worked_by_hand() -> None:
    """Six voxels in a row, windows of four at 0 and 2; weights 1 2 2 1 along the row, but 1 across (one voxel thick).

    Thickness one makes every distance one, so both windows weigh the same where they overlap.
    """
    answers = iter([10.0, 20.0])
    volume = torch.zeros(1, 1, 6)
    answer = sliding_window(
        volume, lambda window: torch.full_like(window, next(answers)), window_zyx=(1, 1, 4), overlap=0.5, multiple=1
    )
    assert answer.flatten().tolist() == [10.0, 10.0, 15.0, 15.0, 20.0, 20.0]


def test_voxel_near_a_window_face_listens_to_the_other_window() -> None:
    """Cubes of four at 0 and 2 in a row of six: at index 2 the first window's weight is 2, the second's 1 (inside)."""
    answers = iter([10.0, 40.0])
    answer = sliding_window(
        torch.zeros(4, 4, 6),
        lambda window: torch.full_like(window, next(answers)),
        window_zyx=(4, 4, 4),
        overlap=0.5,
        multiple=1,
    )
    assert answer[0, 1, 1].tolist() == [10.0, 10.0, 20.0, 30.0, 40.0, 40.0]


def test_windows_not_kept_are_not_run_and_give_zero() -> None:
    asked: list[Slices] = []
    run: list[int] = []

    def left_half(place: Slices) -> bool:
        asked.append(place)
        return place[2].start == 0

    def ones(windows: Tensor) -> Tensor:
        run.append(len(windows))
        return torch.ones_like(windows)

    answer = sliding_window(torch.rand(16, 16, 40), ones, window_zyx=(16, 16, 32), overlap=0.25, keep=left_half)
    assert [place[2] for place in asked] == [slice(0, 32), slice(8, 40)]
    assert run == [1]
    assert answer[0, :, :, :32].eq(1).all()
    assert answer[0, :, :, 32:].eq(0).all()


def test_nothing_kept_gives_zeros_with_all_channels() -> None:
    answer = sliding_window(torch.rand(16, 16, 40), twice, window_zyx=(16, 16, 32), keep=lambda place: False)
    assert answer.shape == (2, 16, 16, 40)
    assert not answer.any()


def test_progress_ends_at_one_and_never_falls() -> None:
    shares: list[float] = []
    sliding_window(torch.rand(16, 16, 70), twice, window_zyx=(16, 16, 32), batch=2, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_half_precision_predictions_are_added_up_in_float32() -> None:
    answer = sliding_window(
        torch.ones(16, 16, 40), lambda windows: windows.bfloat16(), window_zyx=(16, 16, 32), overlap=0.25
    )
    assert answer.dtype == torch.float32
    assert answer.eq(1).all()


@pytest.mark.parametrize(("window", "overlap"), [(40, 0.25), (0, 0.25), (32, 1.0), (32, -0.1)])
def test_impossible_windows_are_refused(window: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        fitted_windows(100, window, overlap)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 60)] * 3),
    window=st.sampled_from([16, 32]),
    overlap=st.sampled_from([0.0, 0.125, 0.25, 0.5]),
)
def test_every_voxel_of_any_box_is_answered_and_blended_with_weights_that_add_up(
    shape: tuple[int, int, int], window: int, overlap: float
) -> None:
    volume = torch.rand(shape)
    answer = sliding_window(volume, twice, window_zyx=(window,) * 3, overlap=overlap)
    torch.testing.assert_close(answer, torch.stack([volume, 2 * volume]))


@pytest.mark.parametrize(
    ("box_mm", "most", "fixed"),  # each side's 5th, 50th and 95th percentile in 58 patients
    [((177, 169, 217), 1.70, 2.58), ((226, 202, 262), 1.62, 3.16), ((282, 239, 316), 1.56, 2.66)],
)
def test_voxels_computed_for_each_voxel_of_a_lung_box(box_mm: tuple[int, int, int], most: float, fixed: float) -> None:
    """Counted as they are run; `fixed` is what windows of 128 that overlap by 32 would take."""
    computed = 0

    def counting(windows: Tensor) -> Tensor:
        nonlocal computed
        computed += windows.numel()
        return windows

    sliding_window(torch.zeros(box_mm), counting, window_zyx=(128, 128, 128), overlap=0.125)
    voxels = math.prod(box_mm)
    assert computed / voxels <= most
    assert math.prod(128 * (math.ceil((side - 128) / 96) + 1) for side in box_mm) / voxels == pytest.approx(
        fixed, abs=0.01
    )
