"""Two real processes of torchrun, talking over the loopback, against one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imaging.errors import ConfigurationError
from training.distributed import Place, WholeBatch, replicated

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("gradients_of_a_batch.py")
TOLERANCE = {  # relative to the largest value of a tensor where that is above 1
    "batch norm and ratios over the batch": 1e-5,
    "batch norm and a named loss": 1e-5,
    "3D, two heads": 1e-5,
    "detector": 5e-5,  # its loss sums over all cells and is in the hundreds
    "curve": 2e-4,  # AdamW makes steps of one size of what rounding leaves of a gradient that is zero
}
Results = Mapping[str, Mapping[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """What one process and what two processes make of the same batches."""
    folder = tmp_path_factory.mktemp("gradients")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # a port that is free
    for arguments, output in (([], "one.pt"), (torchrun, "two.pt")):
        command = [sys.executable, *arguments, str(SCRIPT), str(folder / output)]
        subprocess.run(command, env=environment, cwd=folder, check=True, timeout=110)
    return torch.load(folder / "one.pt"), torch.load(folder / "two.pt")


@pytest.mark.parametrize("case", TOLERANCE)
def test_two_processes_with_half_the_batch_each_equal_one_with_the_whole(
    case: str, results: tuple[Results, Results]
) -> None:
    one, two = (some[case] for some in results)
    assert one.keys() == two.keys()
    for name, value in one.items():
        difference = float((two[name].double() - value.double()).abs().max())
        assert difference <= TOLERANCE[case] * max(1.0, float(value.abs().max())), name


def test_a_batch_that_does_not_divide_is_refused() -> None:
    whole = WholeBatch.__new__(WholeBatch)
    nn.Module.__init__(whole)
    whole.place = Place(torch.device("cpu"), 0, 2)
    with pytest.raises(ConfigurationError, match="batch of 3 does not divide among 2"):
        whole(torch.zeros(3, 1, 8, 8))


def test_data_parallel_inside_torchrun_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="data parallel"):
        replicated(nn.Identity(), Place(torch.device("cpu"), 0, 2), data_parallel=True)


def test_data_parallel_without_a_gpu_answers_as_the_network_does() -> None:
    network = nn.Conv2d(1, 1, 3)
    images = torch.rand(2, 1, 8, 8)
    (output,) = replicated(network, Place(torch.device("cpu")), data_parallel=True)(images)
    assert torch.equal(output, network(images))
