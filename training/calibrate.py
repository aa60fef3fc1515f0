"""Fits what makes probabilities and decisions out of trained networks: fusion weights and thresholds.

All on validation cases, which no network was trained on, and none of which is ever tested on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from imaging.errors import ConfigurationError
from imaging.lesions import LesionThresholds, find_lesions
from imaging.metrics import match_lesions, voxel_dice
from imaging.volume import CtVolume
from models.cascade import Cascade
from models.fusion import FusionSettings, artery_gate, ensemble_logits, fuse
from training.cases import ARTERY, TrainingCase

NEGATIVES_PER_CASE = 200_000
SMALLEST_CLAIMED_ML = 0.1  # emboli smaller than this count neither way when the score threshold is chosen
FALSE_LESION_COST = 1.0  # of what finding an embolus is worth


@dataclass(frozen=True, slots=True, eq=False)
class CaseLogits:
    """What the networks say of a case on the working grid; `unets` one for each 2D network, all (z, y, x)."""

    case: TrainingCase
    unets: Sequence[Tensor]
    aanet: Tensor
    artery: Tensor


def calibrated(
    cascade: Cascade, cases: Sequence[TrainingCase], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The `ensemble`, `fusion` and `thresholds` tables of a package, fitted on `cases`.

    Raises:
        ConfigurationError: the cascade leaves out 2D networks of the package, which could then get no weight.
    """
    with torch.inference_mode():
        logits = [_case_logits(cascade, case) for case in cases]
    members = settings["ensemble"]["members"]
    if any(len(one.unets) != len(members) for one in logits):
        raise ConfigurationError(
            f"of {', '.join(members)} only {len(logits[0].unets)} run",
            code="calibrate.members",
            remedy="name them all in CascadeOptions.unets",
        )
    weights, fusion = fit_fusion(logits, FusionSettings(**settings["fusion"]))
    probabilities = [
        fuse(ensemble_logits(one.unets, weights), one.aanet, torch.sigmoid(one.artery), fusion).numpy()
        for one in logits
    ]
    voxel = best_voxel_threshold(probabilities, cases)
    given = dict(settings["thresholds"])
    artery_threshold = float(given.pop("artery"))
    thresholds = LesionThresholds(**(given | {"voxel": voxel, "score": voxel}))
    score = _best_score_threshold(probabilities, cases, thresholds)
    return {
        "ensemble": {**settings["ensemble"], "weights": [round(weight, 4) for weight in weights]},
        "fusion": {
            **settings["fusion"],
            "unet_weight": round(fusion.unet_weight, 4),
            "aanet_weight": round(fusion.aanet_weight, 4),
            "bias": round(fusion.bias, 4),
        },
        "thresholds": {**given, "voxel": voxel, "score": score, "artery": artery_threshold},
    }


def _case_logits(cascade: Cascade, case: TrainingCase) -> CaseLogits:
    hu = np.ascontiguousarray(case.hu)
    unets = cascade.slice_logits(hu, _silent)
    aanet, artery = cascade.volume_logits(hu, _silent)
    return CaseLogits(case, unets, aanet, artery)


def _silent(fraction: float) -> None:
    """Nobody watches."""


def fit_fusion(logits: Sequence[CaseLogits], start: FusionSettings) -> tuple[tuple[float, ...], FusionSettings]:
    """Logistic regression of embolus voxels on all logits; weights kept positive, so that more evidence is more.

    Returns:
        The weights of the 2D networks relative to each other, summing to 1, and the fusion with all of them together.
    """
    samples = [sample for one in logits for sample in _sampled(one, start)]
    evidence = torch.cat([sample.evidence for sample in samples], dim=1)
    truth = torch.cat([sample.truth for sample in samples])
    weight = torch.cat([sample.weight for sample in samples])
    members = len(evidence) - 1
    begin = [start.unet_weight / members] * members + [start.aanet_weight]
    log_weights = torch.log(torch.tensor(begin)).requires_grad_()
    bias = torch.tensor(start.bias).requires_grad_()
    optimiser = torch.optim.LBFGS([log_weights, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        combined = torch.tensordot(log_weights.exp(), evidence, dims=1) + bias
        loss = F.binary_cross_entropy_with_logits(combined, truth, weight, reduction="sum") / weight.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    *unets, aanet = log_weights.detach().exp().tolist()
    together = sum(unets)
    fitted = replace(start, unet_weight=together, aanet_weight=aanet, bias=bias.item())
    return tuple(one / together for one in unets), fitted


class _Sample(NamedTuple):
    """`evidence` (networks, n): logits, AANet's last; `truth` and `weight` (n,)."""

    evidence: Tensor
    truth: Tensor
    weight: Tensor


def _sampled(one: CaseLogits, settings: FusionSettings) -> Iterator[_Sample]:
    """All embolus voxels of a case, and some others where the artery's gate is open."""
    embolus = torch.from_numpy(np.asarray(one.case.embolus) > 0)
    open_gate = artery_gate(torch.sigmoid(one.artery), settings) > 0.5
    others = torch.nonzero((open_gate & ~embolus).ravel())[:, 0]
    generator = torch.Generator().manual_seed(0)
    chosen = others[torch.randperm(len(others), generator=generator)[:NEGATIVES_PER_CASE]]
    positives = torch.nonzero(embolus.ravel())[:, 0]
    for index, truth, weight in ((positives, 1.0, 1.0), (chosen, 0.0, len(others) / max(1, len(chosen)))):
        column = torch.ones(len(index))
        evidence = torch.stack([logits.ravel()[index] for logits in (*one.unets, one.aanet)])
        yield _Sample(evidence, column * truth, column * weight)


def best_voxel_threshold(probabilities: Sequence[NDArray[np.float32]], cases: Sequence[TrainingCase]) -> float:
    """The probability threshold with the best Dice, mean over cases: one large clot must not decide for all."""
    candidates = np.arange(0.3, 0.75, 0.05)
    dice = [
        np.mean([
            voxel_dice(probability >= threshold, np.asarray(case.embolus))
            for probability, case in zip(probabilities, cases, strict=True)
        ])
        for threshold in candidates
    ]  # fmt: skip
    return round(float(candidates[int(np.argmax(dice))]), 2)


def _best_score_threshold(
    probabilities: Sequence[NDArray[np.float32]], cases: Sequence[TrainingCase], thresholds: LesionThresholds
) -> float:
    """The lesion score from which lesions are reported: emboli found less false lesions; the middle of the best."""
    true_scores: list[float] = []
    false_scores: list[float] = []
    for probability, case in zip(probabilities, cases, strict=True):
        volume = CtVolume(np.ascontiguousarray(case.hu), np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
        artery = np.asarray(case.anatomy) == ARTERY
        found = find_lesions(probability, artery, volume, thresholds, min_score=None)
        false = set(match_lesions(np.asarray(case.embolus), found.labelmap).false)
        false_scores += [lesion.score for lesion in found.lesions if lesion.id in false]
        true_scores += [
            lesion.score
            for lesion in found.lesions
            if lesion.id not in false and lesion.volume_ml >= SMALLEST_CLAIMED_ML
        ]
    candidates = np.arange(thresholds.voxel, 0.996, 0.005)
    worth = np.array([
        np.count_nonzero(np.asarray(true_scores) >= score)
        - FALSE_LESION_COST * np.count_nonzero(np.asarray(false_scores) >= score)
        for score in candidates
    ])  # fmt: skip
    print(f"validation lesions: {len(true_scores)} true, {len(false_scores)} false candidates", flush=True)
    return round(float(np.median(candidates[worth == worth.max()])), 3)
