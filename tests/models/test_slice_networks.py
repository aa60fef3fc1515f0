"""What every 2D network must do, whatever its build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.network_spec import TORCH_KINDS
from models.unet_blocks import SliceNetwork

KINDS = sorted(set(TORCH_KINDS) - {"aanet"})
BOTH: Mapping[str, Any] = {"attention": True, "recurrent_residual": True}
VARIANTS = [
    *((kind, {}) for kind in KINDS),
    *((kind, {"attention": True}) for kind in ("unet3tiny", "unet2tiny", "unet1tiny")),
    *((kind, BOTH) for kind in ("unet3tiny", "unet2tiny", "unet1tiny")),
    ("unet_plus_plus", {"dense": False}),
    ("unet_plus_plus", {"dense": False, "deep_supervision": False}),
    ("unet_plus_plus", {"levels": 2}),
]


def _build(kind: str, *channels: int, **options: Any) -> SliceNetwork:
    network = TORCH_KINDS[kind](*channels, **options)
    assert isinstance(network, SliceNetwork)
    return network


def _outputs(network: nn.Module, x: Tensor) -> list[Tensor]:
    answer = network(x)
    return [answer] if isinstance(answer, Tensor) else answer


@pytest.mark.parametrize(
    ("kind", "options", "parameters"),
    [
        ("unet", {}, 7_852_578),
        ("attention_unet", {}, 8_202_662),
        ("r2unet", {}, 8_297_698),
        ("attention_r2unet", {}, 8_647_782),
        ("unet3tiny", {}, 1_949_730),
        ("unet3tiny", {"attention": True}, 2_036_645),
        ("unet3tiny", {"recurrent_residual": True}, 2_066_402),
        ("unet3tiny", BOTH, 2_153_317),
        ("unet2tiny", {}, 472_866),
        ("unet1tiny", {}, 103_074),
        ("unet_plus_plus", {}, 9_163_560),
        ("xnet", {}, 3_112_290),
        ("nfn_plus", {}, 1_138_412),
        ("u2net", {}, 44_023_718),
        ("u2netp", {}, 1_134_662),
    ],
)
def test_parameter_count_is_the_published_one(kind: str, options: Mapping[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        network = _build(kind, 3, 2, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_logits_have_the_input_size_and_every_parameter_learns(kind: str, options: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    network = _build(kind, 5, 2, base_width=8, **options)
    outputs = _outputs(network, torch.rand(2, 5, 64, 96))
    assert {output.shape for output in outputs} == {(2, 2, 64, 96)}
    torch.stack([(output * torch.rand(output.shape)).mean() for output in outputs]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:  # a bias before BatchNorm has no effect
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_has_one_answer_however_often_and_beside_whom_it_is_asked(kind: str) -> None:
    torch.manual_seed(0)
    network = _build(kind, 1, 1, base_width=4).eval().double()
    x = torch.rand(2, 1, 32, 64, dtype=torch.float64)
    with torch.inference_mode():
        first, again, alone = _outputs(network, x)[-1], _outputs(network, x)[-1], _outputs(network, x[:1])[-1]
    assert torch.equal(first, again)
    torch.testing.assert_close(alone, first[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_multiples_of_32_at_most_and_others_are_refused(kind: str) -> None:
    network = _build(kind, 1, 1, base_width=4).eval()
    multiple = network.pixel_multiple
    assert 32 % multiple == 0
    with torch.inference_mode():
        assert _outputs(network, torch.rand(1, 1, multiple, 3 * multiple))[-1].shape == (1, 1, multiple, 3 * multiple)
    with pytest.raises(ValueError, match=f"multiples of {multiple}"):
        network(torch.rand(1, 1, 3 * multiple // 2, 2 * multiple))


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_output_layers_say_what_to_expect_at_first(kind: str, options: Mapping[str, Any]) -> None:
    network = _build(kind, 1, 2, base_width=4, **options).eval()
    x = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        before = _outputs(network, x)
        for layer in network.output_layers():
            assert isinstance(layer.bias, Tensor)
            layer.bias -= 3.0
        after = _outputs(network, x)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one - 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_channels_last_stays_close_to_float32(kind: str) -> None:
    torch.manual_seed(0)
    network = _build(kind, 3, 1, base_width=8).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        exact = _outputs(network, x)[-1]
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.autocast("cpu", torch.bfloat16):
            fast = _outputs(network, x.contiguous(memory_format=torch.channels_last))[-1]
    assert (fast.float() - exact).abs().mean() < 0.1 * exact.abs().mean() + 0.01
