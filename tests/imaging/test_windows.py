from __future__ import annotations

import numpy as np

from imaging.windows import aanet_input, roi_input, unet_channel_stack, unet_channels


def test_aanet_input_maps_the_embolus_window_to_unit_range_and_clips() -> None:
    hu = np.array([-3024, -100, 200, 500, 3071], dtype=np.int16)
    np.testing.assert_allclose(aanet_input(hu), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_unet_channels_show_neighbouring_slices_and_three_windows() -> None:
    hu = np.stack([np.full((2, 3), value, dtype=np.int16) for value in (-100, 50, 200)])
    channels = unet_channels(hu, 1)
    assert channels.shape == (5, 2, 3)
    np.testing.assert_allclose(channels[:, 0, 0], [0, 0.25, 0.5, 1050 / 1200, 0.5], atol=1e-6)


def test_first_and_last_slices_repeat_where_there_is_no_neighbour() -> None:
    hu = np.arange(4, dtype=np.int16)[:, None, None] * 100 * np.ones((1, 2, 2), dtype=np.int16)
    stack = unet_channel_stack(hu, range(4))
    np.testing.assert_array_equal(stack[0, 0], stack[0, 1])
    np.testing.assert_array_equal(stack[3, 2], stack[3, 1])
    np.testing.assert_array_equal(stack[2], unet_channels(hu, 2))


def test_roi_input_averages_areas_when_shrinking_and_keeps_the_mean() -> None:
    hu = np.array([[-1000, 400], [400, -1000]], dtype=np.int16).repeat(4, 0).repeat(4, 1)
    small = roi_input(hu, (2, 2))
    np.testing.assert_allclose(small, [[0, 1], [1, 0]], atol=1e-6)
    rng = np.random.default_rng(0)
    noise = rng.integers(-1000, 400, (50, 70)).astype(np.int16)
    assert abs(roi_input(noise, (13, 17)).mean() - (noise.mean() + 1000) / 1400) < 1e-3
