from __future__ import annotations

import torch
from torch import Tensor, nn

from models.xnet import XNet


def _sizes(network: XNet, x: Tensor) -> dict[str, int]:
    sizes = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, inputs, out, name=name: sizes.update({name: out.shape[-1]}))
    network(x)
    return sizes


def test_the_first_u_comes_back_to_half_resolution_and_the_second_to_the_whole() -> None:
    sizes = _sizes(XNet(1, 1, 4), torch.rand(1, 1, 32, 32))
    assert [sizes[f"first_{name}"] for name in ("full", "half", "quarter", "eighth", "up_quarter", "up_half")] == [
        32, 16, 8, 4, 8, 16,
    ]  # fmt: skip
    assert [sizes[f"second_{name}"] for name in ("half", "quarter", "eighth", "up_half", "up_full")] == [
        16, 8, 4, 16, 32,
    ]  # fmt: skip


def test_fine_detail_passes_by_both_encoder_decoders() -> None:
    torch.manual_seed(0)
    network = XNet(1, 1, 4).eval()
    norm = network.second_up_half[1]
    nn.init.zeros_(norm.weight)
    with torch.inference_mode():
        one, other = network(torch.rand(1, 1, 16, 16)), network(torch.rand(1, 1, 16, 16))
    assert not torch.allclose(one, other)
