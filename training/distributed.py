"""Training by several processes or several GPUs as if by one.

Every process of `torchrun` has the whole batch of a step, which is a function of (seed, step), and runs its part of
it. The outputs of all parts are gathered before the loss, so any loss, also one that forms its ratio over the batch,
has the value and the gradient that one process with the whole batch would get. Batch norm is synchronised likewise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from imaging.errors import ConfigurationError
from training.forward import Outputs

PATIENCE = timedelta(hours=2)  # the others wait while the first process validates


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many processes this is, and on which device it trains."""

    device: torch.device
    rank: int = 0
    processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.processes > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "auto") -> Iterator[Place]:
    """This process's place: alone, or among those that torchrun started (NCCL on GPUs, gloo on processors).

    `device` is "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N"; under torchrun each process takes the GPU
    of its local rank.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if processes == 1:
        yield Place(torch.device(device))
        return
    chosen = torch.device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Place(chosen, dist.get_rank(), processes)
    finally:
        dist.destroy_process_group()


def replicated(network: nn.Module, place: Place, *, data_parallel: bool = False) -> nn.Module:
    """`network`, already on its device, as training calls it: images of the whole batch in, all outputs out.

    `data_parallel` spreads one process's batch over all GPUs it sees (`nn.DataParallel`).

    Raises:
        ConfigurationError: both ways of using several GPUs at once.
    """
    if place.processes == 1:
        return DataParallel(Outputs(network)) if data_parallel else Outputs(network)
    if data_parallel:
        raise ConfigurationError(
            "data parallel inside torchrun", code="training.parallel", remedy="use one of the two; torchrun is faster"
        )
    return WholeBatch(Outputs(network), place)


def bare(network: nn.Module) -> nn.Module:
    """The network itself, out of whatever `replicated` put around it."""
    while isinstance(network, WholeBatch | DataParallel | DistributedDataParallel | Outputs):
        network = network.network if isinstance(network, Outputs) else network.module
    return network


class WholeBatch(nn.Module):
    """Runs this process's part of a batch and returns the outputs of all parts, each process the same."""

    def __init__(self, outputs: nn.Module, place: Place) -> None:
        super().__init__()
        self.module = DistributedDataParallel(
            outputs, device_ids=None if place.device.type == "cpu" else [place.device]
        )
        self.place = place

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raises ConfigurationError for a batch that does not divide by the number of processes."""
        if len(images) % self.place.processes:
            raise ConfigurationError(
                f"a batch of {len(images)} does not divide among {self.place.processes} processes",
                code="training.parallel",
                remedy="make the batch size a multiple of the processes",
            )
        part = images.chunk(self.place.processes)[self.place.rank]
        return [_gathered(output) for output in self.module(part)]


class _Gathered(torch.autograd.Function):
    """The parts of all processes in rank order. Back goes the own part's gradient, times the processes, because
    DistributedDataParallel will divide by them where the whole batch's gradient is a sum."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own: Tensor = gradient.chunk(dist.get_world_size())[dist.get_rank()]
        return own * dist.get_world_size()


def _gathered(part: Tensor) -> Tensor:
    whole: Tensor = _Gathered.apply(part)  # type: ignore[no-untyped-call]
    return whole


class _Summed(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Summed.apply(values)  # type: ignore[no-untyped-call]
    return total


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over the batch of all processes, of any dimension, on any device.

    As `torch.nn.SyncBatchNorm`, which runs on GPUs only; parameters and statistics have BatchNorm's names.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (N, C, ...)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        values = input.float()
        axes = [axis for axis in range(values.ndim) if axis != 1]
        column = [1, -1] + [1] * (values.ndim - 2)
        own = values.new_full((1,), values.numel() / values.shape[1])
        sums = _summed(torch.cat([values.sum(axes), own]))
        count = sums[-1]
        mean = sums[:-1] / count
        centred = values - mean.view(column)
        variance = _summed(centred.square().sum(axes)) / count
        self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        normalised = centred * torch.rsqrt(variance + self.eps).view(column)
        if self.affine:
            normalised = normalised * self.weight.view(column) + self.bias.view(column)
        out: Tensor = normalised.to(input.dtype)
        return out

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def synchronise_batch_norm(network: nn.Module, place: Place) -> nn.Module:
    """`network` with its batch norms synchronised where there are several processes; tensors keep their names."""
    if place.processes == 1:
        return network
    if place.device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return synchronised
    return _converted(network)


def _converted(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm):
        ours = SynchronisedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        ours.weight, ours.bias = module.weight, module.bias
        ours.running_mean, ours.running_var = module.running_mean, module.running_var
        ours.num_batches_tracked = module.num_batches_tracked
        return ours.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module
