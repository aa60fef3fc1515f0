from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.losses import aanet_loss, dice_loss, dice_tversky_loss, focal_loss, focal_tversky_loss, tversky_loss

OVERLAP_LOSSES = [dice_loss, tversky_loss, focal_tversky_loss, dice_tversky_loss]
CERTAIN = 100.0


def logits_of(probabilities: list[float]) -> Tensor:
    """One channel, one sample for each value, a single voxel each."""
    return torch.logit(torch.tensor(probabilities)).view(-1, 1, 1)


def test_dice_of_a_case_worked_by_hand() -> None:
    # Two voxels: p = 0.8 on foreground, 0.3 on background. (2 * 0.8 + 1) / (0.8 + 0.3 + 1 + 1) = 2.6 / 3.1
    logits = torch.logit(torch.tensor([[[0.8, 0.3]]]))
    assert dice_loss(logits, torch.tensor([[[1.0, 0.0]]])).item() == pytest.approx(1 - 2.6 / 3.1, abs=1e-6)


def test_tversky_weighs_false_positives_and_false_negatives_apart() -> None:
    logits = torch.logit(torch.tensor([[[0.8, 0.3]]]))
    target = torch.tensor([[[1.0, 0.0]]])
    # TP 0.8, FP 0.3, FN 0.2: 1.8 / (1.8 + 0.3 * 0.3 + 0.7 * 0.2)
    assert tversky_loss(logits, target, alpha=0.3, beta=0.7).item() == pytest.approx(1 - 1.8 / 2.03, abs=1e-6)


def test_squared_tversky_is_the_one_aanet_was_trained_with() -> None:
    logits = torch.logit(torch.tensor([[[0.8, 0.3]]]))
    target = torch.tensor([[[1.0, 0.0]]])
    # FP 0.3^2 = 0.09, FN 0.2^2 = 0.04: 1.8 / (1.8 + 0.045 + 0.02)
    assert tversky_loss(logits, target, squared=True).item() == pytest.approx(1 - 1.8 / 1.865, abs=1e-6)


def test_batchwise_pools_samples_and_samplewise_skips_those_without_foreground() -> None:
    logits = logits_of([0.8, 0.6])
    target = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    # pooled: TP 0.8, FP 0.6, FN 0.2 ; the second sample alone has no foreground and does not count
    pooled = 1 - 1.8 / (1.8 + 0.5 * 0.6 + 0.5 * 0.2)
    first_only = 1 - 1.8 / (1.8 + 0.5 * 0.2)
    assert tversky_loss(logits, target, batchwise=True).item() == pytest.approx(pooled, abs=1e-6)
    assert tversky_loss(logits, target, batchwise=False).item() == pytest.approx(first_only, abs=1e-6)


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
@pytest.mark.parametrize("batchwise", [True, False])
def test_perfect_answer_costs_nothing_and_the_opposite_much(loss: Callable[..., Tensor], batchwise: bool) -> None:
    target = torch.zeros(2, 1, 4, 4, 4)
    target[:, :, :2] = 1
    right = (2 * target - 1) * CERTAIN
    assert loss(right, target, batchwise=batchwise).item() < 1e-3
    assert loss(-right, target, batchwise=batchwise).item() > 0.9


@pytest.mark.parametrize("loss", OVERLAP_LOSSES)
@pytest.mark.parametrize("batchwise", [True, False])
@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_gradient_is_finite_at_the_extremes(loss: Callable[..., Tensor], batchwise: bool, foreground: float) -> None:
    for certainty in (CERTAIN, -CERTAIN):
        logits = torch.full((2, 1, 2, 2, 2), certainty, requires_grad=True)
        loss(logits, torch.full((2, 1, 2, 2, 2), foreground), batchwise=batchwise).backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


def test_focal_loss_of_a_case_worked_by_hand() -> None:
    # foreground at 0.8: 0.25 * 0.2^2 * -ln 0.8 ; background at 0.3: 0.75 * 0.3^2 * -ln 0.7 ; one foreground voxel
    logits = torch.logit(torch.tensor([[[0.8, 0.3]]]))
    expected = 0.25 * 0.04 * 0.2231436 + 0.75 * 0.09 * 0.3566749
    assert focal_loss(logits, torch.tensor([[[1.0, 0.0]]])).item() == pytest.approx(expected, rel=1e-4)


def test_focal_loss_without_focus_is_weighted_cross_entropy() -> None:
    logits, target = torch.randn(2, 1, 8), torch.ones(2, 1, 8)
    expected = 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(focal_loss(logits, target, alpha=0.5, gamma=0.0), expected)


def test_aanet_objective_is_three_quarters_embolus() -> None:
    target = torch.ones(1, 1, 4, 4, 4)
    right, wrong = target * CERTAIN, -target * CERTAIN
    embolus_wrong = aanet_loss(wrong, right, target, target).item()
    artery_wrong = aanet_loss(right, wrong, target, target).item()
    assert embolus_wrong == pytest.approx(3 * artery_wrong, rel=1e-4)
