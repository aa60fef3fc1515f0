"""The running mean of a network's weights, of two kinds: what ships."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _RunningMean:
    """A mean of all floating-point entries of a state dict, batch statistics included."""

    def __init__(self, network: nn.Module) -> None:
        self.state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def share(self, step: int) -> float:
        """Of the weights after `step` in the mean."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        share = self.share(step)
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, share)
            else:
                self.state[name].copy_(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name: value.clone() for name, value in state.items()}


class WeightAverage(_RunningMean):
    """Exponential moving average.

    The decay grows with the steps, min(decay, (1 + step) / (10 + step)), so that a short training is not an average
    with its random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    def share(self, step: int) -> float:
        return 1 - min(self.decay, (1 + step) / (10 + step))


class EqualAverage(_RunningMean):
    """Equal mean over all steps from `first_step` on, before that the latest weights (SWA, Izmailov 2018).

    Its batch statistics are a mean of statistics of other weights: see `reestimate_batch_norm`.
    """

    def __init__(self, network: nn.Module, first_step: int) -> None:
        super().__init__(network)
        self.first_step = first_step

    def share(self, step: int) -> float:
        return 1 / max(1, step - self.first_step + 1)


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Gives `network`'s batch norms the mean statistics over `inputs`, which its present weights have there."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    training = network.training
    network.train()
    for images in inputs:
        network(images)
    network.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
