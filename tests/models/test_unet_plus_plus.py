from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.unet_plus_plus import UNetPlusPlus

HEAD_PARAMETERS = 32 * 2 + 2


@pytest.mark.parametrize(("levels", "parameters"), [(4, 9_163_560), (3, 2_236_392), (2, 519_336)])
def test_parameter_count_is_the_published_one_but_for_heads_that_never_answered(levels: int, parameters: int) -> None:
    """The counted code has four heads at every depth and uses as many as it has levels; ours has no others."""
    with torch.device("meta"):
        network = UNetPlusPlus(3, 2, levels=levels)
    unused = (4 - levels) * HEAD_PARAMETERS
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters - unused


@pytest.mark.parametrize("levels", [4, 3, 2])
def test_each_level_answers_and_the_shallow_answers_do_not_see_the_deep_levels(levels: int) -> None:
    torch.manual_seed(0)
    network = UNetPlusPlus(1, 1, 16, levels=levels).eval()
    x = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        before = network(x)
        nn.init.zeros_(network.encoder[-1].conv2[1].weight)
        after = network(x)
    assert len(before) == levels
    assert all(torch.equal(one, other) for one, other in zip(before[:-1], after[:-1], strict=True))
    assert not torch.equal(before[-1], after[-1])


def test_without_deep_supervision_the_last_answer_is_the_only_one() -> None:
    torch.manual_seed(0)
    supervised = UNetPlusPlus(1, 1, 4, levels=2).eval()
    alone = UNetPlusPlus(1, 1, 4, levels=2, deep_supervision=False).eval()
    weights = {name: value for name, value in supervised.state_dict().items() if not name.startswith("heads.0")}
    alone.load_state_dict({name.replace("heads.1", "heads.0"): value for name, value in weights.items()})
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        answer = alone(x)
        assert isinstance(answer, Tensor)
        torch.testing.assert_close(answer, supervised(x)[-1])


def test_without_dense_connections_a_node_sees_its_neighbour_alone() -> None:
    dense, sparse = UNetPlusPlus(1, 1, 4), UNetPlusPlus(1, 1, 4, dense=False)
    channels = [network.nodes["x0_4"].conv1[0].in_channels for network in (dense, sparse)]
    assert channels == [4 * 4 + 8, 4 + 8]


def test_a_depth_it_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 5 levels, not 0"):
        UNetPlusPlus(1, 1, levels=0)
