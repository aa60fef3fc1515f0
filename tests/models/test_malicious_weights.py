"""Files that call themselves weights and would run code: every way in refuses them, and nothing is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imaging.errors import ConfigurationError
from models.aanet_checkpoint import read_aanet
from models.network_spec import NetworkSpec, build_network
from models.package_import import read_network
from training.checkpoint import load_checkpoint


class _Runs:
    """Unpickled, it makes a file."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._witness),)


def _checkpoint(file: Path) -> None:
    load_checkpoint(file, config={}, state=None, device=torch.device("cpu"))  # type: ignore[arg-type]


WAYS_IN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "import of .pth": ("aanet.pth", lambda file: read_network(file, None)),
    "AANet's checkpoint": ("aanet.pt", read_aanet),
    "import of .safetensors": ("aanet.safetensors", lambda file: read_network(file, None)),
    "weights of a package": (
        "unet.safetensors",
        lambda file: build_network(NetworkSpec("unet", "unet", file, {})),
    ),
    "resumed training": ("checkpoint.pt", _checkpoint),
}


@pytest.mark.fault("Weights", "a pickle that would run code, wherever weights are read", "refused; nothing is run")
@pytest.mark.parametrize("way_in", WAYS_IN)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_malicious_pickle_is_refused(tmp_path: Path, way_in: str, form: str) -> None:
    name, read = WAYS_IN[way_in]
    file, witness = tmp_path / name, tmp_path / "it was run"
    content = {"weight": _Runs(witness)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(ConfigurationError):
        read(file)
    assert not witness.exists()
    pickle.loads(pickle.dumps(content))
    assert witness.exists()  # what it would have done
