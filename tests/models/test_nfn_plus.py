from __future__ import annotations

import torch
from torch import nn

from models.nfn_plus import NFNPlus


def test_front_answer_comes_first_and_does_not_know_the_followed_network() -> None:
    torch.manual_seed(0)
    network = NFNPlus(1, 1, 4).eval()
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        front, followed = network(x)
        nn.init.zeros_(network.followed_full[0][0].weight)
        same, changed = network(x)
    assert torch.equal(front, same)
    assert not torch.equal(followed, changed)


def test_followed_network_is_fed_at_each_depth_by_the_front_one() -> None:
    torch.manual_seed(0)
    network = NFNPlus(1, 1, 4).eval()
    for features in ("front_up_half", "front_quarter"):
        norm = getattr(network, features)[2][1]
        x = torch.rand(1, 1, 16, 16)
        fed = network.followed_half if features == "front_up_half" else network.followed_quarter
        seen: list[torch.Tensor] = []
        handle = fed.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.inference_mode():
            network(x)
            nn.init.constant_(norm.bias, 5.0)
            network(x)
        handle.remove()
        own = 4 if features == "front_up_half" else 8  # the followed network's own features come last
        assert not torch.equal(seen[0][:, :-own], seen[1][:, :-own])


def test_values_are_left_out_in_training_alone() -> None:
    torch.manual_seed(0)
    network, x = NFNPlus(1, 1, 4), torch.rand(2, 1, 16, 16)
    assert not torch.equal(network(x)[-1], network(x)[-1])
    network.eval()
    assert torch.equal(network(x)[-1], network(x)[-1])


def test_an_answer_can_be_no() -> None:
    torch.manual_seed(0)
    assert (NFNPlus(1, 1, 4)(torch.rand(2, 1, 16, 16))[-1] < 0).any()
