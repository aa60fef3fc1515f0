"""One forward pass of the shipped networks on the CPU: torch in float32, its bf16 autocast, and as a worker runs it."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.page import Floor, Goal, Growth, Page, Row
from benchmarks.side_by_side import seconds, side_by_side
from models.aanet import AANet, EmbolusAndArtery
from models.compiled_network import CompiledNetwork, InferenceBackend
from models.packages import default_package_directory, load_network, load_package
from models.unet_blocks import LastOfDeepSupervision, SliceNetwork

_CPU = torch.device("cpu")
_WINDOW = (1, 1, 112, 112, 112)
_SLICES = (4, 5, 256, 336)
_WINDOW_EDGES = (48, 64, 96, 128)
_OURS, _EAGER, _AUTOCAST = "Embolens", "torch, float32", "torch, bf16 autocast"


def measure(rounds: int) -> Page:
    package = load_package(default_package_directory())
    aanet = load_network(package, "aanet")
    assert isinstance(aanet, AANet)
    window = EmbolusAndArtery(aanet)
    compiled = CompiledNetwork(window, (1, 1, 32, 32, 32), _CPU)
    rows = [_row("AANet, a window of 112 x 112 x 112 voxels", window, compiled, _WINDOW, rounds)]
    for name in package.settings["ensemble"]["members"]:
        network = load_network(package, name)
        assert isinstance(network, SliceNetwork)
        slices = LastOfDeepSupervision(network)
        rows.append(_row(f"{name}, 4 slices of 256 x 336", slices, CompiledNetwork(slices, (1, 5, 32, 32), _CPU),
                         _SLICES, rounds))  # fmt: skip
    growth = Growth(
        what="AANet, one window",
        size="thousand voxels",
        unit="s",
        points=tuple((edge**3 / 1000, _window_seconds(compiled, edge, rounds)) for edge in _WINDOW_EDGES),
    )
    return Page(title="One forward pass of a network", how=_how(compiled), rows=tuple(rows), growths=(growth,))


def _row(what: str, network: nn.Module, compiled: CompiledNetwork, shape: tuple[int, ...], rounds: int) -> Row:
    x = torch.rand(shape)
    autocast = CompiledNetwork(network, (1, 1, *[32] * (len(shape) - 2)), _CPU, InferenceBackend.TORCH)

    def run(forward: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        def once() -> None:
            with torch.inference_mode():
                forward(x)

        return seconds(once)

    figures = side_by_side(
        {_OURS: run(compiled), _EAGER: run(network), _AUTOCAST: run(autocast)}, rounds=rounds, unit="s"
    )
    ours, eager = figures[_OURS], figures[_EAGER]
    flops = machine.flops_of(network, x.shape)
    return Row(
        what=what,
        unit="s",
        higher_is_better=False,
        ours=ours,
        others=(eager, figures[_AUTOCAST]),
        floor=Floor(
            value=flops / machine.matrix_flops_per_s(torch.bfloat16),
            why=f"{flops / 1e9:.1f} GFLOP at the rate of a large bf16 matrix product",
        ),
        goals=(Goal(says="at least 3.4 times as fast as float32", met=eager.median >= 3.4 * ours.median),),
    )


def _window_seconds(compiled: CompiledNetwork, edge: int, rounds: int) -> float:
    x = torch.rand(1, 1, edge, edge, edge)
    compiled(x)
    return median(seconds(lambda: compiled(x))() for _ in range(rounds))


def _how(compiled: CompiledNetwork) -> str:
    return (
        "The shipped weights, weight standardisation folded in for all ways alike, inputs and answers float32 tensors "
        f"of torch; {torch.get_num_threads()} threads. Ours is what a worker runs on this machine: {compiled.backend}. "
        f"{machine.version('torch')}, {machine.version('openvino')}. Inputs are noise: no way skips anything. "
        "Compiling for a new size is not in it (under a second, kept). "
        "The floor counts arithmetic alone: AANet's first and last layers have 8 channels at full resolution and wait "
        "for memory instead."
    )
