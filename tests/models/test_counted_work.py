"""What the networks of a job may cost, counted: calls and FLOPs. Seconds depend on the machine, these do not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.cascade import Cascade
from models.compiled_network import CompiledNetwork, InferenceBackend
from models.packages import default_package_directory

AANET_FLOPS_PER_VOXEL = 55_900  # without the head for veins, which no result shows
ATTENTION_UNET_FLOPS_PER_PIXEL = 62_800


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return Cascade.load(default_package_directory(), device="cpu", threads=1, backend=InferenceBackend.TORCH)


def test_a_slice_goes_once_through_the_one_2d_network_that_has_a_say(cascade: Cascade) -> None:
    (network,) = cascade._unets
    hu = np.random.default_rng(0).integers(-900, 400, (9, 64, 96)).astype(np.int16)
    calls: Counter[tuple[int, ...]] = Counter()
    flops = _flops(lambda: cascade.slice_logits(hu, lambda fraction: None), network, calls)
    assert calls == {(4, 5, 64, 96): 2, (1, 5, 64, 96): 1}
    assert flops <= 9 * 64 * 96 * ATTENTION_UNET_FLOPS_PER_PIXEL


def test_a_window_goes_once_through_aanet_with_its_weights_standardised_before(cascade: Cascade) -> None:
    assert cascade._aanet is not None
    hu = np.random.default_rng(0).integers(-900, 400, (48, 64, 32)).astype(np.int16)
    calls: Counter[tuple[int, ...]] = Counter()
    flops = _flops(lambda: cascade.volume_logits(hu, lambda fraction: None), cascade._aanet, calls)
    assert calls == {(1, 1, 48, 64, 32): 1}
    assert flops <= 48 * 64 * 32 * AANET_FLOPS_PER_VOXEL


def _flops(run: object, network: CompiledNetwork, calls: Counter[tuple[int, ...]]) -> int:
    """FLOPs of one run, 2 for a multiply-add; `calls` gets the shapes the network was given."""
    assert callable(run)
    hook = network.network.register_forward_pre_hook(lambda _, inputs: calls.update([tuple(inputs[0].shape)]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    hook.remove()
    return int(counter.get_total_flops())
