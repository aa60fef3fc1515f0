from __future__ import annotations

import pytest
import torch
from torch import nn

from models.unet_family import AttentionUNet, UNet, UNet3Tiny


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (UNet(3, 2), 7_852_578),
        (AttentionUNet(3, 2), 8_202_662),
        (UNet3Tiny(3, 2), 1_949_730),
        (UNet3Tiny(3, 2, attention=True), 2_036_645),
        (UNet3Tiny(3, 2, recurrent_residual=True), 2_066_402),
        (UNet3Tiny(3, 2, attention=True, recurrent_residual=True), 2_153_317),
    ],
    ids=["unet", "attention_unet", "tiny", "tiny-attention", "tiny-r2", "tiny-attention-r2"],
)
def test_parameter_count_is_the_published_one(network: nn.Module, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    "network", [UNet(3, 1, 8), AttentionUNet(3, 1, 8), UNet3Tiny(3, 1, 8, attention=True, recurrent_residual=True)]
)
def test_logits_have_the_input_size_and_every_parameter_learns(network: nn.Module) -> None:
    logits = network(torch.rand(2, 3, 32, 48))
    assert logits.shape == (2, 1, 32, 48)
    (logits**2).mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("network", "size", "multiple"), [(UNet(1, 1, 4), 24, 16), (UNet3Tiny(1, 1, 4), 20, 8)])
def test_size_the_poolings_do_not_divide_is_refused(network: nn.Module, size: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of {multiple}"):
        network(torch.rand(1, 1, size, 32))


def test_recurrent_unit_adds_its_input_before_each_further_pass() -> None:
    torch.manual_seed(0)
    network = UNet3Tiny(1, 1, 4, recurrent_residual=True).eval()
    unit = network.encoder[0].recurrent1
    x = torch.rand(1, 4, 8, 8)
    with torch.inference_mode():
        first = unit.conv(x)
        expected = unit.conv(unit.conv(first + x) + x)
        torch.testing.assert_close(unit(x), expected)


def test_closed_attention_gate_removes_the_skip_connection() -> None:
    torch.manual_seed(0)
    gate = AttentionUNet(1, 1, 4).eval().gates[0]
    nn.init.zeros_(gate.psi.weight)
    nn.init.constant_(gate.psi.bias, -100.0)
    coarse = torch.rand(1, 8, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(gate(torch.rand(1, 4, 16, 16), coarse), gate(torch.rand(1, 4, 16, 16), coarse))


def test_bf16_channels_last_stays_close_to_float32() -> None:
    torch.manual_seed(0)
    network = AttentionUNet(3, 1, 8).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        exact = network(x)
        network = network.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            fast = network(x.contiguous(memory_format=torch.channels_last))
    assert (fast.float() - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.01
