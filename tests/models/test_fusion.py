from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from models.cascade_options import Ensemble
from models.fusion import FusionSettings, artery_gate, ensemble_logits, fuse

SETTINGS = FusionSettings(unet_weight=0.5, aanet_weight=1.5, bias=-1.0, gate_reach_voxels=1, gate_open_at=0.5)
SHAPE = (3, 3, 3)


def test_the_three_ways_to_join_two_networks_by_hand() -> None:
    members = [torch.full(SHAPE, 2.0), torch.full(SHAPE, -4.0)]
    assert ensemble_logits(members, [3.0, 1.0])[0, 0, 0] == pytest.approx(0.75 * 2 - 0.25 * 4)
    assert ensemble_logits(members, [3.0, 1.0], Ensemble.LOGIT)[0, 0, 0] == pytest.approx(-1.0)
    mean = (1 / (1 + 2.718281828**-2) + 1 / (1 + 2.718281828**4)) / 2
    joined = ensemble_logits(members, [3.0, 1.0], Ensemble.PROBABILITY)
    assert torch.sigmoid(joined)[0, 0, 0] == pytest.approx(mean)


def test_without_weights_all_members_count_alike() -> None:
    members = [torch.full(SHAPE, 2.0), torch.full(SHAPE, -4.0)]
    assert ensemble_logits(members)[0, 0, 0] == pytest.approx(-1.0)


def test_a_missing_network_leaves_its_weight_to_the_other() -> None:
    logits = torch.full(SHAPE, 0.7)
    both = fuse(logits, logits, None, SETTINGS)
    for alone in (fuse(logits, None, None, SETTINGS), fuse(None, logits, None, SETTINGS)):
        assert torch.allclose(alone, both)
    with pytest.raises(ValueError, match="one network at least"):
        fuse(None, None, None, SETTINGS)


def test_an_artery_gates_what_is_out_of_its_reach() -> None:
    logits = torch.full((1, 1, 5), 3.0)
    artery = torch.tensor([[[0.9, 0.0, 0.0, 0.0, 0.0]]])
    embolus = fuse(logits, logits, artery, SETTINGS)
    assert (embolus[0, 0, :2] > 0.9).all()
    assert (embolus[0, 0, 2:] == 0).all()


@pytest.mark.parametrize("reach", [0, 1, 2, 9])
def test_the_gate_is_the_maximum_of_a_cube(reach: int) -> None:
    artery = torch.rand((5, 12, 9), generator=torch.Generator().manual_seed(3))
    given = artery.clone()
    settings = FusionSettings(0.5, 1.5, -1.0, gate_reach_voxels=reach, gate_open_at=0.7)
    pooled = F.max_pool3d(F.pad(artery, [reach] * 6)[None, None], 2 * reach + 1, stride=1)[0, 0]
    assert torch.equal(artery_gate(artery, settings), (pooled / 0.7).clamp(max=1.0))
    assert torch.equal(artery, given)


def test_fusing_leaves_its_inputs_as_they_were() -> None:
    logits = [torch.full(SHAPE, 0.3), torch.full(SHAPE, -0.8), torch.full(SHAPE, 0.9)]
    given = [one.clone() for one in logits]
    unet, aanet, artery = logits
    for call in ((unet, aanet, artery), (unet, None, artery), (None, aanet, None)):
        fuse(*call, SETTINGS)
    assert all(torch.equal(one, before) for one, before in zip(logits, given, strict=True))
