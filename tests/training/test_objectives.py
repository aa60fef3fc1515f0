from __future__ import annotations

import pytest
import torch
from torch import nn

from imaging.errors import ConfigurationError
from models.aanet import AANet
from training.objectives import LOSSES, artery_aware_loss, named_loss
from training.sampling import Batch


def _aanet(veins: bool) -> AANet:
    torch.manual_seed(0)
    network = AANet([8, 8, 8, 8], [1, 1, 1, 1], [1, 1, 1], stem=4, aspp=8, veins=veins)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def _targets(count: int) -> torch.Tensor:
    return (torch.rand(2, count, 16, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.2).float()


def test_what_is_unknown_neither_costs_nor_teaches() -> None:
    network, target = _aanet(veins=True), _targets(3)
    assert network.segheadvein is not None
    x = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    target[:, 2] = -1.0
    artery_aware_loss(0.5)(network, Batch(x, target)).backward()
    unknown, known = (head.seg_output.weight.grad for head in (network.segheadvein, network.segheadv))
    assert unknown is not None
    assert known is not None
    assert unknown.abs().sum() == 0
    assert known.abs().sum() > 0


def test_veins_are_learnt_where_there_is_a_head_for_them() -> None:
    network, target = _aanet(veins=True), _targets(3)
    x = torch.rand(2, 1, 16, 16, 16)
    artery_aware_loss(0.5)(network, Batch(x, target)).backward()
    assert network.segheadvein is not None
    gradient = network.segheadvein.seg_output.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_named_loss_falls_along_its_gradient_and_passes_over_the_unknown(name: str, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(2, outputs, 8, 8, generator=generator) < 0.3).float()
    target[:, :, :2] = -1.0
    logits = torch.randn(2, outputs, 8, 8, generator=generator).requires_grad_()
    loss = named_loss(name)
    before = loss(nn.Identity(), Batch(logits, target))
    before.backward()
    assert logits.grad is not None
    assert logits.grad[:, :, :2].abs().sum() == 0
    assert logits.grad[:, :, 2:].abs().sum() > 0
    with torch.no_grad():
        downhill = logits - 0.1 * logits.grad / logits.grad.norm()
        assert loss(nn.Identity(), Batch(downhill, target)) < before


def test_a_loss_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'hausdorff' is not known"):
        named_loss("hausdorff")
