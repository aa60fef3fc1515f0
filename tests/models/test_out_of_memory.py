"""Too little memory: less is done at once, with the same answer; at last it is said that there is too little."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from imaging.errors import OutOfMemory
from imaging.geometry import Box, WorkingGrid
from imaging.phantom import make_phantom
from imaging.volume import CtVolume
from models.cascade import Cascade
from models.cascade_options import CascadeOptions
from models.compiled_network import InferenceBackend
from models.packages import default_package_directory
from models.sliding_window import sliding_window
from tests.models.made_package import make_package
from worker.bounded_memory import bound_memory


def room_for(voxels: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that says what torch says of a GPU when a network is given more than this."""

    def check(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel() > voxels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return check


def _cascade(options: CascadeOptions | None = None) -> Cascade:
    return Cascade.load(
        default_package_directory(), device="cpu", threads=1, options=options, backend=InferenceBackend.TORCH
    )


def test_fewer_windows_at_once_give_the_same_answer() -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1)
    volume = torch.rand(48, 48, 48)
    sizes = []

    def predict(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        answer: Tensor = network(windows)
        return answer

    with torch.inference_mode():
        plain = sliding_window(volume, predict, window_zyx=(16, 16, 16), batch=8)
        sizes.clear()
        network.register_forward_pre_hook(room_for(3 * 16**3))
        frugal = sliding_window(volume, predict, window_zyx=(16, 16, 16), batch=8)

    assert torch.equal(frugal, plain)
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[2:]) <= {1, 2}


def test_a_window_that_does_not_fit_alone_is_the_gpus_want_of_memory() -> None:
    network = nn.Conv3d(1, 2, 3, padding=1)
    network.register_forward_pre_hook(room_for(0))
    with pytest.raises(OutOfMemory) as refusal:
        sliding_window(torch.rand(32, 32, 32), network, window_zyx=(16, 16, 16), batch=4)
    assert refusal.value.code == "out_of_gpu_memory"


def test_an_error_that_is_not_for_want_of_memory_is_no_reason_to_try_again() -> None:
    def predict(windows: Tensor) -> Tensor:
        raise RuntimeError(f"{len(windows)} windows")

    with pytest.raises(RuntimeError, match="8 windows"):
        sliding_window(torch.rand(32, 32, 32), predict, window_zyx=(16, 16, 16), batch=8)


def test_fewer_slices_at_once_give_the_same_answer() -> None:
    cascade = _cascade(CascadeOptions(aanet=False))
    hu = np.random.default_rng(3).integers(-900, 400, (6, 64, 64)).astype(np.int16)
    with torch.inference_mode():
        plain = cascade.slice_logits(hu, lambda fraction: None)
        for network in cascade._unets:
            network.network.register_forward_pre_hook(room_for(5 * 64 * 64))  # one slice with its neighbours
        frugal = cascade.slice_logits(hu, lambda fraction: None)
    for one, other in zip(frugal, plain, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


@pytest.mark.fault(
    "poison studies",
    "the GPU has room for windows of a third of their size (torch's own error, raised above that size)",
    "smaller windows find the same embolus (Dice above 0.9)",
)
def test_smaller_windows_find_the_same_embolus() -> None:
    phantom = make_phantom(
        100_500, shape_zyx=(96, 240, 240), spacing_zyx_mm=(2.5, 1.4, 1.4), emboli=2, min_embolus_ml=2.0
    )
    cascade = _cascade(CascadeOptions(unets=()))
    grid = WorkingGrid.over(phantom.volume, Box((0, 0, 0), phantom.volume.shape_zyx), 1.4)
    hu = grid.resample(phantom.volume.hu)
    centre = np.argwhere(grid.resample((phantom.embolus_labelmap == 1).astype(np.int16)) > 0).mean(axis=0)
    z, y, x = (max(0, int(place) - 48) for place in centre)
    block = np.ascontiguousarray(hu[z : z + 96, y : y + 96, x : x + 96])
    with torch.inference_mode():
        plain, _ = cascade.volume_logits(block, lambda fraction: None)
        _out_of_memory_above(64**3, cascade)
        frugal, _ = cascade.volume_logits(block, lambda fraction: None)
    found, meant = (frugal > 0).numpy(), (plain > 0).numpy()
    assert np.count_nonzero(meant) > 100
    assert 2 * np.count_nonzero(found & meant) / (np.count_nonzero(found) + np.count_nonzero(meant)) > 0.9


def test_a_result_of_smaller_windows_says_so_and_the_next_scan_has_its_full_ones(tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    settings = {**package.settings, "input": {"spacing_mm": 1.5}, "window": {"size_zyx": [96, 96, 96], "overlap": 0.25}}
    cascade = Cascade(
        replace(package, settings=settings),
        torch.device("cpu"),
        CascadeOptions(lung_roi=False),
        InferenceBackend.TORCH,  # whose modules can be made to want memory
    )
    hu = np.random.default_rng(3).integers(-900, 400, (96, 96, 96)).astype(np.int16)
    volume = CtVolume(hu, np.array([[0, 0, 1.5, 0], [0, 1.5, 0, 0], [1.5, 0, 0, 0], [0, 0, 0, 1]]))
    plain = cascade.segment(volume)
    hook = _out_of_memory_above(64**3, cascade)

    frugal = cascade.segment(volume)

    (reason,) = set(frugal.findings.reasons) - set(plain.findings.reasons)
    assert reason.code == "compute.smaller_windows"
    assert "64 x 64 x 64 voxels instead of 96 x 96 x 96" in reason.text
    hook.remove()
    assert cascade.segment(volume).findings == plain.findings
    _out_of_memory_above(1000, cascade)
    with pytest.raises(OutOfMemory) as refusal:
        cascade.segment(volume)
    assert refusal.value.code == "out_of_gpu_memory"


def _out_of_memory_above(voxels: int, cascade: Cascade) -> RemovableHandle:
    """Of windows that AANet is given."""
    assert cascade._aanet is not None
    first = next(module for module in cascade._aanet.network.modules() if isinstance(module, nn.Conv3d))
    return first.register_forward_pre_hook(room_for(voxels))


@pytest.mark.fault(
    "poison studies",
    "a process that may take 150 MB more runs windows that need 450 MB (RLIMIT_DATA, torch's own error)",
    "fewer windows at once give the answer that all at once gave before",
)
def test_memory_that_really_runs_out_on_the_cpu_makes_fewer_windows_at_once() -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run_in_little_memory)
    process.start()
    process.join(timeout=90)
    assert process.exitcode == 0


def _run_in_little_memory() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Conv3d(1, 64, 3, padding=1), nn.Conv3d(64, 1, 1))
    volume = torch.rand(96, 96, 96)
    sizes = []

    def predict(windows: Tensor) -> Tensor:
        sizes.append(len(windows))
        answer: Tensor = network(windows)
        return answer

    with torch.inference_mode():
        plain = sliding_window(volume, predict, window_zyx=(48, 48, 48), overlap=0.0, batch=8)
        assert sizes == [8]
        bound_memory(150_000_000)
        frugal = sliding_window(volume, predict, window_zyx=(48, 48, 48), overlap=0.0, batch=8)
    assert sizes[1:3] == [8, 4]
    torch.testing.assert_close(frugal, plain)
