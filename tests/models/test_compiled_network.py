"""A compiled network gives torch's answer, falls back to torch where it cannot be compiled, and tells nobody."""

from __future__ import annotations

import logging
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imaging.errors import ConfigurationError, OutOfMemory
from models.aanet import AANet, EmbolusAndArtery
from models.compiled_network import CompiledNetwork, InferenceBackend, can_run_openvino
from models.packages import default_package_directory, load_network, load_package
from models.unet_blocks import LastOfDeepSupervision, SliceNetwork
from worker.bounded_memory import bound_memory

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(not can_run_openvino(), reason="OpenVINO is taken on CPUs with bf16 alone")


def shipped_aanet() -> EmbolusAndArtery:
    network = load_network(load_package(default_package_directory()), "aanet")
    assert isinstance(network, AANet)
    return EmbolusAndArtery(network)


def shipped_unet(name: str) -> LastOfDeepSupervision:
    network = load_network(load_package(default_package_directory()), name)
    assert isinstance(network, SliceNetwork)
    return LastOfDeepSupervision(network)


def smooth(*shape: int) -> Tensor:
    """0..1 with structures of some voxels, the last dimensions' sizes multiples of 4."""
    torch.manual_seed(5)
    coarse = torch.rand(*shape[:2], *(size // 4 for size in shape[2:]))
    mode = "trilinear" if len(shape) == 5 else "bilinear"
    return nn.functional.interpolate(coarse, scale_factor=4, mode=mode)


@needs_openvino
@pytest.mark.parametrize("shape", [(1, 1, 48, 64, 32), (2, 1, 32, 32, 48)])
def test_aanet_answers_alike_for_any_window(shape: tuple[int, ...]) -> None:
    network = shipped_aanet()
    compiled = CompiledNetwork(network, (1, 1, 32, 32, 32), CPU)
    assert compiled.backend is InferenceBackend.OPENVINO
    _answers_like_float32(compiled, network, smooth(*shape))


@needs_openvino
@pytest.mark.parametrize("name", ["unet3tiny", "attention_unet"])
def test_2d_networks_answer_alike_for_any_slices(name: str) -> None:
    network = shipped_unet(name)
    compiled = CompiledNetwork(network, (1, 5, 32, 32), CPU)
    for shape in ((4, 5, 64, 96), (1, 5, 48, 32)):
        _answers_like_float32(compiled, network, smooth(*shape))
    assert compiled.backend is InferenceBackend.OPENVINO


def _answers_like_float32(compiled: CompiledNetwork, network: nn.Module, x: Tensor) -> None:
    """No further from it than torch's own bf16, but for chance."""
    with torch.inference_mode():
        exact = torch.sigmoid(network(x))
        got = compiled(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = torch.sigmoid(network(x).float())
    assert got.dtype is torch.float32
    assert got.shape == exact.shape
    error, usual = (torch.sigmoid(got) - exact).abs(), (rounded - exact).abs()
    assert error.mean() < 2 * usual.mean() + 1e-4
    assert error.max() < 2 * usual.max() + 1e-2


@needs_openvino
def test_an_answer_is_not_overwritten_by_the_next() -> None:
    compiled = CompiledNetwork(shipped_unet("attention_unet"), (1, 5, 32, 32), CPU)
    first = compiled(smooth(1, 5, 32, 32))
    kept = first.clone()
    compiled(torch.zeros(1, 5, 32, 32))
    assert torch.equal(first, kept)
    assert torch.equal(compiled(smooth(1, 5, 32, 32)), kept), "the same input gives the same bits"


@needs_openvino
def test_inputs_given_together_are_answered_as_each_alone() -> None:
    torch.set_num_threads(2)
    compiled = CompiledNetwork(shipped_unet("attention_unet"), (1, 5, 32, 32), CPU)
    assert compiled.at_once == 2
    together = smooth(3, 5, 32, 48)
    answers = compiled(together)
    assert torch.equal(answers, torch.cat([compiled(one) for one in together.split(1)]))
    assert not torch.equal(answers[0], answers[1])


@needs_openvino
def test_a_part_of_a_larger_tensor_is_read_where_it_lies() -> None:
    compiled = CompiledNetwork(shipped_unet("attention_unet"), (1, 5, 32, 32), CPU)
    larger = smooth(1, 5, 64, 64)
    part = larger[:, :, 16:48, 8:40]
    assert torch.equal(compiled(part), compiled(part.clone()))


class _NotTraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2.0) if float(x.sum()) > 0 and not torch.jit.is_tracing() else x.sort()[5]


@needs_openvino
def test_what_cannot_be_converted_is_run_by_torch_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        compiled = CompiledNetwork(_NotTraceable(), (1, 1, 4, 4), CPU)
        assert torch.equal(compiled(torch.ones(1, 1, 4, 4)), torch.full((1, 1, 4, 4), 2.0))
        compiled(torch.ones(1, 1, 4, 4))
    assert compiled.backend is InferenceBackend.TORCH
    assert len(caplog.records) == 1


@needs_openvino
def test_a_size_the_network_refuses_is_refused_by_the_network() -> None:
    compiled = CompiledNetwork(shipped_unet("attention_unet"), (1, 5, 32, 32), CPU)
    with pytest.raises(ValueError, match="multiples of 16"):
        compiled(torch.zeros(1, 5, 40, 40))


def test_torch_runs_where_it_is_asked_for() -> None:
    network = shipped_unet("attention_unet")
    plain = CompiledNetwork(network, (1, 5, 32, 32), CPU, InferenceBackend.TORCH)
    assert plain.backend is InferenceBackend.TORCH
    x = smooth(1, 5, 32, 32)
    with torch.inference_mode():
        assert (plain(x).sigmoid() - network(x).sigmoid()).abs().max() < 0.05


def test_openvino_by_name_on_a_device_it_cannot_use_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cuda"):
        CompiledNetwork(nn.Identity(), (1, 1, 4, 4), torch.device("cuda"), InferenceBackend.OPENVINO)


@needs_openvino
def test_nothing_is_sent_and_nothing_is_left_in_the_home_directory(tmp_path: Path) -> None:
    code = """
import socket, sys
def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise AssertionError(f"{event} {arguments}")
sys.addaudithook(forbid)
import torch
from models.compiled_network import CompiledNetwork
network = CompiledNetwork(torch.nn.Conv2d(1, 1, 3, padding=1), (1, 1, 8, 8), torch.device("cpu"))
network(torch.ones(1, 1, 8, 8))
assert network.backend == "openvino", network.backend
loaded = [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert [sys.modules[name] for name in loaded] == [None], loaded
"""
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert not list(tmp_path.iterdir())


@needs_openvino
def test_memory_that_runs_out_is_said_and_smaller_inputs_still_go_to_openvino() -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run_in_little_memory)
    process.start()
    process.join(timeout=90)
    assert process.exitcode == 0


def _run_in_little_memory() -> None:
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Conv3d(1, 64, 3, padding=1), nn.Conv3d(64, 1, 1))
    compiled = CompiledNetwork(network, (1, 1, 8, 8, 8), CPU)
    before = compiled(torch.ones(1, 1, 16, 16, 16))
    bound_memory(150_000_000)
    with pytest.raises(OutOfMemory):
        compiled(torch.ones(1, 1, 160, 160, 160))
    assert torch.equal(compiled(torch.ones(1, 1, 16, 16, 16)), before)
    assert compiled.backend is InferenceBackend.OPENVINO
