from __future__ import annotations

import torch

from models.aanet import AANet
from training.objectives import artery_aware_loss
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
