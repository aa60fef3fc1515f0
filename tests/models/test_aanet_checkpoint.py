from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imaging.errors import ConfigurationError
from models.aanet import AANet
from models.aanet_checkpoint import read_aanet
from tests.models.made_package import OTHER_AANET, aanet_state
from tests.models.test_aanet import formula_weights, published_layout

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(content: object, folder: Path) -> Path:
    file = folder / "aanet.pth"
    torch.save(content, file)
    return file


def test_a_checkpoint_of_the_published_layout_is_the_published_network(tmp_path: Path) -> None:
    weights = formula_weights(published_layout(), phase=0.3)
    network, parameters = read_aanet(saved(weights, tmp_path))
    published: dict[str, Any] = {
        "n_filters": [64, 96, 128, 160], "en_blocks": [2, 3, 3, 3], "de_blocks": [1, 2, 2], "stem": 16, "aspp": 32,
        "veins": False,
    }  # fmt: skip
    assert parameters == published
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda state: {"model": state},
        lambda state: {name: tensor.double() for name, tensor in state.items()},
    ],
    ids=["bare", "parallel", "state_dict", "model_state_dict", "model", "double"],
)
def test_any_widths_and_any_wrapping_give_the_same_answer(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    state = aanet_state()
    network, parameters = read_aanet(saved(wrap(state), tmp_path))
    assert parameters == OTHER_AANET
    expected = AANet(**OTHER_AANET).eval()
    expected.load_state_dict(state)
    block = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        for one, other in zip(network.forward_logits(block), expected.forward_logits(block), strict=True):
            assert torch.equal(one, other)


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    save_file(aanet_state(), tmp_path / "aanet.safetensors")
    assert read_aanet(tmp_path / "aanet.safetensors")[1] == OTHER_AANET


def without(state: State, begin: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(begin)}


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda state: without(state, "in_conv."), r"lacks in_conv\.conv\.weight, so it is no AANet"),
        (lambda state: without(state, "seghead.seg_output.bias"), r"lacks 1 tensor \(seghead\.seg_output\.bias\)"),
        (lambda state: without(state, "block22."), r"lacks 9 tensors \(block22\.conv\.0\.conv1\.conv\.weight, "),
        (lambda state: state | {"fc.weight": torch.zeros(2)}, r"1 tensor \(fc\.weight\) which AANet does not have"),
        (
            lambda state: state | {"block1.conv.99999999.x": torch.zeros(2)},
            r"lacks 6 tensors \(block1\.conv\.1\.conv1\.conv\.weight",
        ),
        (
            lambda state: state | {"in_conv.norm.bias": torch.zeros(4)},
            r"tensor in_conv\.norm\.bias is \(4,\), expected \(8,\)",
        ),
        (
            lambda state: state | {"in_conv.conv.weight": torch.zeros(8, 3, 3, 3, 3)},
            r"in_conv\.conv\.weight is \(8, 3, 3, 3, 3\), expected \(8, 1, 3, 3, 3\)",
        ),
        (lambda state: state | {"in_conv.conv.weight": torch.zeros(8)}, r"in_conv\.conv\.weight is \(8,\), not"),
        (lambda state: state | {"in_conv.conv.weight": torch.zeros(2, 1, 3, 3, 3)}, "a multiple of 4"),
        (lambda state: state | {"in_conv.conv.weight": torch.zeros(0, 1, 3, 3, 3)}, "a multiple of 4"),
        (
            lambda state: state | {"block44_aspp.conv.conv.weight": torch.zeros(12, 48, 1, 1, 1)},
            "has 12 filters, no multiple of 8",
        ),
        (
            lambda state: state | {"in_conv.norm.bias": torch.full((8,), float("nan"))},
            r"tensor in_conv\.norm\.bias holds nan, and 8 such values in all",
        ),
        (
            lambda state: state | {"seghead.seg_output.bias": torch.full((1,), float("-inf"))},
            r"seghead\.seg_output\.bias holds -inf",
        ),
        (
            lambda state: state | {"in_conv.norm.weight": torch.full((8,), 3e38)},
            r"answering to air: tensor embolus holds nan",
        ),
        (lambda state: state | {"in_conv.norm.bias": torch.zeros(8, dtype=torch.int8)}, r"is torch\.int8"),
        (lambda state: state | {"in_conv.norm.bias": torch.zeros(8).to_sparse()}, r"torch\.sparse_coo"),
        (lambda state: state | {"epoch": 3}, "epoch is int, not a tensor"),
        (lambda state: [*state.values()], "holds list without tensors"),
        (lambda state: {}, "holds dict without tensors"),
    ],
)  # fmt: skip
def test_what_is_not_exactly_an_aanet_is_refused(spoil: Callable[[State], Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        read_aanet(saved(spoil(aanet_state()), tmp_path))
    assert refused.value.code in ("package.import", "package.not_finite")
    assert refused.value.remedy
    assert refused.value.message.startswith("aanet.pth")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (aanet_state() | {"hook": Malicious()}, AANet(**OTHER_AANET)):
        with pytest.raises(ConfigurationError, match="only its own code could rebuild") as refused:
            read_aanet(saved(content, tmp_path))
        assert "torch.save(network.state_dict(), path)" in refused.value.remedy
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"x" * 300], ids=["none", "zip", "pickle", "text"]
)
def test_a_damaged_file_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"aanet{suffix}"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read as tensors"):
        read_aanet(file)
