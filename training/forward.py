"""A network's answers as logits, whatever its kind: the one way in which losses and scores call it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.aanet import AANet


def forward_outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """(N, C, ...) -> outputs (N, targets, ...) float32, the one that predicts last.

    There is one output (AANet's heads are its channels: embolus, artery, vein), or several where a network is
    supervised at several depths; of darknet, the raw heads.
    """
    if isinstance(network, AANet):
        return [torch.cat(network.forward_logits(images), dim=1).float()]
    if isinstance(network, Outputs) or images.ndim != 4:
        answer = network(images)
    else:
        answer = network(images.contiguous(memory_format=torch.channels_last))
    outputs = [answer] if isinstance(answer, Tensor) else list(answer)
    return [output.float() for output in outputs]


def forward_logits(network: nn.Module, images: Tensor) -> Tensor:
    """(N, C, ...) -> the predicting logits (N, targets, ...) float32: embolus, then what else the network answers."""
    return forward_outputs(network, images)[-1]


class Outputs(nn.Module):
    """`forward_outputs` as a module, so that it can be replicated over devices and watched by hooks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return forward_outputs(self.network, images)
