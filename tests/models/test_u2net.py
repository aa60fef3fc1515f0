from __future__ import annotations

import pytest
import torch
from torch import nn

from models.u2net import FlatResidualU, ResidualU, U2Net, U2NetP


@pytest.mark.parametrize(("network", "parameters"), [(U2Net, 44_009_869), (U2NetP, 1_131_181)])
def test_parameter_count_with_one_output_is_the_paper_s(network: type[nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        built = network(3, 1)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


def test_fused_answer_starts_as_the_mean_of_the_stages_and_comes_last() -> None:
    torch.manual_seed(0)
    network = U2NetP(1, 2, 8).eval()
    with torch.inference_mode():
        *sides, fused = network(torch.rand(1, 1, 64, 64))
    assert len(sides) == 6
    torch.testing.assert_close(fused, torch.stack(sides).mean(dim=0))


def test_sides_come_from_the_coarsest_to_the_finest() -> None:
    torch.manual_seed(0)
    network = U2NetP(1, 1, 8).eval()
    x = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        before = network(x)
        nn.init.zeros_(network.decoder[0].first[1].weight)  # the last stage
        after = network(x)
    changed = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert changed == [False] * 5 + [True, True]


@pytest.mark.parametrize("block", [ResidualU(3, 4, 8, height=5), FlatResidualU(3, 4, 8)])
def test_a_stage_adds_its_u_to_its_first_features(block: nn.Module) -> None:
    block.eval()
    nn.init.zeros_(block.up[0][1].weight)
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), block.first(x))


def test_a_flat_stage_keeps_its_size_by_dilations() -> None:
    block = FlatResidualU(1, 2, 2)
    dilations = [layer[0].dilation[0] for layer in (*block.down, block.bottom, *reversed(block.up))]
    assert dilations == [1, 2, 4, 8, 4, 2, 1]
    assert block(torch.rand(2, 1, 3, 5)).shape == (2, 2, 3, 5)
