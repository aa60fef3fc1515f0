from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.aanet import FOREGROUND_PRIOR, AANet, EmbolusAndArtery

PUBLISHED = Path(__file__).parents[2] / "../shared/data/aanet"
NARROW = {"n_filters": (16, 24, 32, 48), "en_blocks": (1, 1, 1, 1), "de_blocks": (1, 1, 1), "stem": 8, "aspp": 8}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def published_layout() -> dict[str, list[int]]:
    path = PUBLISHED / "state_dict_shapes.json"
    if not path.exists():
        pytest.skip("the published AANet layout (../shared/data/aanet) is not here")
    layout: dict[str, list[int]] = json.loads(path.read_text())
    return layout


def formula_weights(layout: dict[str, list[int]], phase: float) -> dict[str, torch.Tensor]:
    """The weights the reference outputs were made with, from their formula (MANIFEST of the shared data)."""
    weights = {}
    for index, (name, shape) in enumerate(layout.items()):
        t = np.arange(math.prod(shape), dtype=np.float64)
        if len(shape) > 1:
            values = np.sin(1.1 * t + 0.3 * index + phase) * 1.2 * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith("weight"):
            values = 1 + 0.1 * np.sin(0.7 * t + index + phase)
        else:
            values = 0.1 * np.cos(0.9 * t + index + phase)
        weights[name] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    return weights


def formula_input(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    z, y, x = np.meshgrid(*(np.arange(size, dtype=np.float64) for size in shape), indexing="ij")
    values = 0.5 + 0.5 * np.sin(0.21 * z + 0.221 * y + 0.17 * x + phase)
    return torch.from_numpy(values.astype(np.float32))[None, None]


def random_aanet(seed: int = 0, **widths: object) -> AANet:
    """Heads start at zero, so they are drawn too: otherwise every output is the prior."""
    torch.manual_seed(seed)
    network = AANet(**(widths or NARROW)).eval()
    for head in (network.seghead, network.segheadv):
        torch.nn.init.normal_(head.seg_output.weight, std=0.3)
    return network


def test_tensor_names_shapes_and_count_are_the_published_ones() -> None:
    layout = published_layout()
    network = AANet()
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == layout
    assert list(network.state_dict()) == list(layout)


def test_published_constructor_has_14_906_098_parameters() -> None:
    assert sum(parameter.numel() for parameter in AANet().parameters()) == 14_906_098


def test_outputs_equal_the_published_network() -> None:
    """The formula's kernels have rank two, which amplifies rounding enormously: this holds only while the order of the
    float32 arithmetic is the published one (weight standardisation by batch_norm, oneDNN convolutions), and to the last
    digits on one kind of processor alone. The mean difference is below 0.0002 on all that were tried; in float64, that
    is with nothing but the rounding changed, it is 0.024."""
    layout = published_layout()
    reference = np.load(PUBLISHED / "parity.npz")
    phase = float(reference["phase"])
    network = AANet().eval()
    network.load_state_dict(formula_weights(layout, phase))
    with torch.inference_mode():
        outputs = network(formula_input(tuple(reference["shape"]), phase))
    for name in ("segs", "segvs"):
        assert float(np.abs(outputs[name].numpy() - reference[name]).mean()) < 0.001


def test_folded_network_answers_the_same() -> None:
    network = random_aanet()
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        for expected, actual in zip(network.forward_logits(x), network.folded().forward_logits(x), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_folding_leaves_the_original_trainable() -> None:
    network = random_aanet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.folded()
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_fresh_network_predicts_the_foreground_prior_everywhere() -> None:
    with torch.inference_mode():
        outputs = AANet(**NARROW)(torch.rand(1, 1, 16, 16, 16))
    for probabilities in outputs.values():
        torch.testing.assert_close(probabilities, torch.full((1, 1, 16, 16, 16), FOREGROUND_PRIOR))


def test_probabilities_are_the_sigmoid_of_the_logits_and_keep_the_input_size() -> None:
    network = random_aanet()
    x = torch.rand(2, 1, 16, 32, 48)
    with torch.inference_mode():
        embolus, artery = network.forward_logits(x)
        outputs = network(x)
    assert embolus.shape == artery.shape == x.shape
    torch.testing.assert_close(outputs["segs"], torch.sigmoid(embolus))
    torch.testing.assert_close(outputs["segvs"], torch.sigmoid(artery))


def test_embolus_loss_reaches_the_artery_head_through_the_gate() -> None:
    network = random_aanet()
    network.forward_logits(torch.rand(1, 1, 16, 16, 16))[0].sum().backward()
    gradient = network.segheadv.seg_output.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_size_that_is_no_multiple_of_16_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        AANet(**NARROW)(torch.rand(1, 1, 16, 24, 16))


def test_bf16_autocast_stays_close_to_float32() -> None:
    network = random_aanet().folded()
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            fast = network(x)
    for name, probabilities in exact.items():
        assert (fast[name].float() - probabilities).abs().mean() < 0.02


def test_a_third_head_says_what_is_vein_and_changes_nothing_else() -> None:
    torch.manual_seed(1)
    plain, with_veins = AANet(**NARROW), AANet(**NARROW, veins=True)
    missing, unexpected = with_veins.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("segheadvein.") for name in missing)
    x = torch.rand(1, 1, 16, 32, 16)
    with torch.inference_mode():
        embolus, artery, vein = with_veins.forward_logits(x)
        expected = plain.forward_logits(x)
        outputs = with_veins(x)
    torch.testing.assert_close(embolus, expected[0])
    torch.testing.assert_close(artery, expected[1])
    torch.testing.assert_close(outputs["segveins"], torch.sigmoid(vein))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_graph_for_openvino_computes_what_the_network_does() -> None:
    """Its layers are arranged otherwise; in float32 the answers differ by rounding alone."""
    network = EmbolusAndArtery(random_aanet())
    with torch.no_grad():
        graph = torch.jit.trace(network, torch.zeros(1, 1, 32, 32, 32), check_trace=False)
        torch.manual_seed(1)
        x = torch.rand(2, 1, 48, 32, 64)
        expected = network(x)
        torch.testing.assert_close(graph(x), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
