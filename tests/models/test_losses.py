from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.losses import (
    aanet_loss,
    bce_loss,
    cross_entropy_loss,
    dice_bce_loss,
    dice_loss,
    dice_tversky_loss,
    focal_loss,
    focal_tversky_loss,
    lovasz_hinge_loss,
    lovasz_softmax_loss,
    of_two_classes,
    symmetric_cross_entropy_loss,
    tversky_loss,
)

OVERLAP_LOSSES = [dice_loss, tversky_loss, focal_tversky_loss, dice_tversky_loss, lovasz_hinge_loss]
CLASS_LOSSES = [cross_entropy_loss, symmetric_cross_entropy_loss, lovasz_softmax_loss]
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


def test_binary_cross_entropy_of_a_case_worked_by_hand() -> None:
    # -ln 0.8 on foreground, -ln 0.7 on background at 0.3
    logits, target = torch.logit(torch.tensor([[[0.8, 0.3]]])), torch.tensor([[[1.0, 0.0]]])
    assert bce_loss(logits, target).item() == pytest.approx((0.2231436 + 0.3566749) / 2, rel=1e-5)
    assert dice_bce_loss(logits, target).item() == pytest.approx(1 - 2.6 / 3.1 + 0.2899092, rel=1e-5)


def test_binary_cross_entropy_is_torch_s_of_probabilities() -> None:
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 3, 4, 5)).float()
    expected = torch.nn.functional.binary_cross_entropy(torch.sigmoid(logits), target)
    torch.testing.assert_close(bce_loss(logits, target), expected)


def test_cross_entropy_of_three_classes_worked_by_hand() -> None:
    # one voxel of class 0 at 0.7, one of class 2 at 0.5
    logits = torch.log(torch.tensor([[[0.7, 0.3], [0.2, 0.2], [0.1, 0.5]]]))
    assert cross_entropy_loss(logits, torch.tensor([[0, 2]])).item() == pytest.approx(
        (0.3566749 + 0.6931472) / 2, rel=1e-5
    )


def test_symmetric_cross_entropy_of_a_case_worked_by_hand() -> None:
    # label 0 at 0.7: CE -ln 0.7; reverse: the other 0.3 times -ln 1e-4 = 9.2103404
    logits = torch.log(torch.tensor([[[0.7], [0.2], [0.1]]]))
    label = torch.tensor([[0]])
    assert symmetric_cross_entropy_loss(logits, label).item() == pytest.approx(0.3566749 + 2.7631021, rel=1e-5)
    weighted = symmetric_cross_entropy_loss(logits, label, alpha=0.1, beta=2.0).item()
    assert weighted == pytest.approx(0.0356675 + 5.5262042, rel=1e-5)


def test_reverse_cross_entropy_has_a_bound_where_cross_entropy_has_none() -> None:
    logits = torch.tensor([[[-CERTAIN], [CERTAIN]]])
    label = torch.tensor([[0]])
    assert symmetric_cross_entropy_loss(logits, label, alpha=0.0).item() == pytest.approx(9.2103404, rel=1e-4)
    assert symmetric_cross_entropy_loss(logits, label, beta=0.0).item() == pytest.approx(2 * CERTAIN, rel=1e-4)


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_two_classes_are_a_target_and_its_background(loss: Callable[..., Tensor]) -> None:
    logits, target = torch.randn(2, 2, 3, 4), torch.randint(0, 2, (2, 2, 3, 4)).float()
    expected = []
    for channel in range(2):
        foreground = torch.sigmoid(logits[:, channel])
        probabilities = torch.stack([1 - foreground, foreground], dim=1)
        expected.append(loss(torch.log(probabilities), target[:, channel].long()))
    torch.testing.assert_close(of_two_classes(loss)(logits, target), torch.stack(expected).mean())


def test_cross_entropy_of_two_classes_is_binary_cross_entropy() -> None:
    logits, target = torch.randn(2, 3, 4), torch.randint(0, 2, (2, 3, 4)).float()
    torch.testing.assert_close(of_two_classes(cross_entropy_loss)(logits, target), bce_loss(logits, target))


def mean_jaccard_loss_over_thresholds(errors: list[float], foreground: list[bool]) -> float:
    """The Lovász extension by its other definition: the Jaccard loss of {errors above t}, integrated over t >= 0."""
    total, below = 0.0, 0.0
    truth = {index for index, is_foreground in enumerate(foreground) if is_foreground}
    for level in sorted(set(errors)):
        wrong = {index for index, error in enumerate(errors) if error >= level}
        total += (level - below) * len(wrong) / len(wrong | truth)
        below = level
    return total


def test_lovasz_hinge_of_a_case_worked_by_hand() -> None:
    # errors: 1 - 0.5 on foreground, 1 + 0.2 on background. The worse joins the union: IoU 1/2. Then nothing is left.
    logits, target = torch.tensor([[[0.5, 0.2]]]), torch.tensor([[[1.0, 0.0]]])
    assert lovasz_hinge_loss(logits, target).item() == pytest.approx(1.2 * 0.5 + 0.5 * 0.5)


@pytest.mark.parametrize("seed", range(8))
def test_lovasz_losses_integrate_the_jaccard_loss_over_thresholds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 1, 9, generator=generator)
    truth = torch.rand(1, 1, 9, generator=generator) < 0.4
    truth[..., 0], truth[..., 1] = True, False
    hinge = [max(0.0, 1 - z if t else 1 + z) for z, t in zip(logits.flatten().tolist(), truth.flatten(), strict=True)]
    expected = mean_jaccard_loss_over_thresholds(hinge, truth.flatten().tolist())
    assert lovasz_hinge_loss(logits, truth.float()).item() == pytest.approx(expected, rel=1e-5)

    classes = torch.randn(1, 3, 9, generator=generator)
    labels = torch.randint(0, 2, (1, 9), generator=generator)  # nothing is of class 2
    labels[0, 0], labels[0, 1] = 0, 1
    by_class = []
    for index in range(2):
        is_class = labels[0] == index
        errors = (is_class.float() - torch.softmax(classes, dim=1)[0, index]).abs()
        by_class.append(mean_jaccard_loss_over_thresholds(errors.tolist(), is_class.tolist()))
    assert lovasz_softmax_loss(classes, labels).item() == pytest.approx(sum(by_class) / 2, rel=1e-5)


def test_lovasz_softmax_of_certain_answers_is_the_mean_jaccard_loss() -> None:
    answers, labels = torch.tensor([[0, 0, 1, 1, 1, 2]]), torch.tensor([[0, 1, 1, 1, 2, 2]])
    logits = CERTAIN * torch.nn.functional.one_hot(answers, 3).movedim(-1, 1).float()
    # IoU: 1/2, 2/4, 1/2
    assert lovasz_softmax_loss(logits, labels).item() == pytest.approx(0.5, rel=1e-5)


def test_lovasz_losses_pool_the_batch_or_take_each_sample_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (
        torch.randn(2, 1, 6, generator=generator),
        torch.tensor([[[1.0, 0, 0, 0, 1, 0]], [[0.0, 1, 1, 0, 0, 0]]]),
    )
    joined, joined_target = logits.reshape(1, 1, 12), target.reshape(1, 1, 12)
    torch.testing.assert_close(lovasz_hinge_loss(logits, target), lovasz_hinge_loss(joined, joined_target))
    each = [lovasz_hinge_loss(logits[index : index + 1], target[index : index + 1]) for index in range(2)]
    torch.testing.assert_close(lovasz_hinge_loss(logits, target, batchwise=False), torch.stack(each).mean())

    classes, labels = torch.randn(2, 3, 6, generator=generator), torch.tensor([[0, 1, 1, 0, 0, 0], [2, 2, 1, 0, 0, 0]])
    pooled = lovasz_softmax_loss(classes.transpose(0, 1).reshape(1, 3, 12), labels.reshape(1, 12))
    torch.testing.assert_close(lovasz_softmax_loss(classes, labels), pooled)
    each = [lovasz_softmax_loss(classes[index : index + 1], labels[index : index + 1]) for index in range(2)]
    torch.testing.assert_close(lovasz_softmax_loss(classes, labels, batchwise=False), torch.stack(each).mean())


def test_lovasz_hinge_without_foreground_is_the_worst_voxel() -> None:
    logits = torch.tensor([[[-2.0, 0.3, -0.5]]])
    assert lovasz_hinge_loss(logits, torch.zeros(1, 1, 3)).item() == pytest.approx(1.3)
    assert lovasz_hinge_loss(logits, torch.zeros(1, 1, 3), batchwise=False).item() == 0.0


def test_lovasz_weights_keep_their_precision_among_a_million_voxels() -> None:
    generator, voxels = torch.Generator().manual_seed(0), 2**20
    errors = torch.randperm(voxels, generator=generator) / voxels  # exact in float32, no two alike
    target = (torch.rand(voxels, generator=generator) < 0.01).float()
    logits = ((1 - errors) * (2 * target - 1)).requires_grad_()
    lovasz_hinge_loss(logits[None, None], target[None, None]).backward()
    worst_first = errors.argsort(descending=True)
    wanted = target[worst_first].double()
    jaccard = 1 - (wanted.sum() - wanted.cumsum(0)) / (wanted.sum() + (1 - wanted).cumsum(0))
    growth = torch.diff(jaccard, prepend=torch.zeros(1, dtype=torch.float64))
    growth[-1] = 0.0  # its error is 0, where the hinge has no slope
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad[worst_first].abs().double(), growth, rtol=1e-5, atol=1e-15
    )  # the difference's own rounding


@pytest.mark.parametrize("loss", [bce_loss, dice_bce_loss, *map(of_two_classes, CLASS_LOSSES)])
@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_right_answer_costs_nothing_and_gradients_stay_finite(loss: Callable[..., Tensor], foreground: float) -> None:
    target = torch.full((2, 1, 2, 2, 2), foreground)
    right = ((2 * target - 1) * CERTAIN).requires_grad_()
    wrong = (-(2 * target - 1) * CERTAIN).requires_grad_()
    assert loss(right, target).item() < 1e-3
    assert loss(wrong, target).item() > 0.9
    (loss(right, target) + loss(wrong, target)).backward()
    assert right.grad is not None
    assert wrong.grad is not None
    assert torch.isfinite(right.grad).all()
    assert torch.isfinite(wrong.grad).all()
