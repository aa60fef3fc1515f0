from __future__ import annotations

import pytest
import torch
from torch import nn

from models.unet_family import AttentionUNet, UNet1Tiny, UNet2Tiny, UNet3Tiny


def test_recurrent_unit_adds_its_input_before_each_further_pass() -> None:
    torch.manual_seed(0)
    network = UNet3Tiny(1, 1, 4, recurrent_residual=True).eval()
    unit = network.encoder[0].recurrent1
    x = torch.rand(1, 4, 8, 8)
    with torch.inference_mode():
        first = unit.conv(x)
        expected = unit.conv(unit.conv(first + x) + x)
        torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize("network", [AttentionUNet, UNet3Tiny, UNet2Tiny, UNet1Tiny])
def test_closed_attention_gate_removes_the_skip_connection(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    tiny = {} if network is AttentionUNet else {"attention": True}
    gate = network(1, 1, 4, **tiny).eval().gates[0]
    nn.init.zeros_(gate.psi.weight)
    nn.init.constant_(gate.psi.bias, -100.0)
    coarse = torch.rand(1, 8, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(gate(torch.rand(1, 4, 16, 16), coarse), gate(torch.rand(1, 4, 16, 16), coarse))


@pytest.mark.parametrize(("network", "depth"), [(UNet3Tiny, 3), (UNet2Tiny, 2), (UNet1Tiny, 1)])
def test_a_tiny_unet_has_as_many_gates_as_levels(network: type[nn.Module], depth: int) -> None:
    built = network(1, 1, 4, attention=True)
    assert len(built.gates) == len(built.decoder) == depth
    assert built.pixel_multiple == 2**depth


def test_shipped_weights_still_have_their_tensor_names() -> None:
    names = UNet3Tiny(5, 1, attention=True, recurrent_residual=True).state_dict()
    assert {"encoder.0.project.weight", "encoder.3.recurrent2.conv.1.bias", "gates.2.psi.bias", "head.bias"} <= set(
        names
    )
    names = AttentionUNet(5, 1).state_dict()
    assert {"encoder.4.conv1.0.weight", "decoder.0.conv2.1.running_var", "gates.3.output.1.weight"} <= set(names)
