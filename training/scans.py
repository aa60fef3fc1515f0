"""A network judged on whole cases: every voxel of the lungs segmented, emboli counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from imaging.metrics import match_lesions, voxel_dice
from imaging.windows import aanet_input, unet_channel_stack
from models.aanet import VOXEL_MULTIPLE, AANet
from models.sliding_window import sliding_window
from training.cases import ARTERY, TrainingCase
from training.forward import forward_logits
from training.recipe import NetworkRecipe

SMALLEST_LESION_MM3 = 50  # as the packages' smallest finding, 0.05 ml; the cases' voxels are cubes of 1 mm
SLICES_AT_ONCE = 8
PIXEL_MULTIPLE = 32  # of a slice's sides: what the deepest of the 2D networks needs
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class CaseSegmentation:
    """What a network made of a case: masks (z, y, x); `artery` is None where the network has no such head."""

    lesions: NDArray[np.uint32]
    artery: NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class CaseScore:
    """A case's figures; voxels and Dice are of the embolus, artery Dice only where the network has that head."""

    case: str
    emboli: int
    found: int
    false_positives: int
    hit_voxels: int
    false_voxels: int
    missed_voxels: int
    voxel_dice: float
    artery_dice: float | None


@torch.inference_mode()
def segment_case(network: nn.Module, recipe: NetworkRecipe, case: TrainingCase) -> CaseSegmentation:
    """Emboli and artery at probability 0.5, by `network` alone and in eval mode."""
    hu = np.asarray(case.hu)
    probability = (
        volume_probabilities(network, recipe, hu) if isinstance(network, AANet) else _slices(network, recipe, hu)
    )
    mask = probability[0] >= THRESHOLD
    large = cc3d.dust(mask, threshold=SMALLEST_LESION_MM3, connectivity=26)
    pieces = cc3d.connected_components(large, connectivity=26, out_dtype=np.uint32).astype(np.uint32, copy=False)
    return CaseSegmentation(pieces, probability[1] >= THRESHOLD if len(probability) > 1 else None)


@torch.inference_mode()
def volume_probabilities(network: nn.Module, recipe: NetworkRecipe, hu: NDArray[np.int16]) -> NDArray[np.float32]:
    """AANet's answers (targets, z, y, x): embolus, artery and, where it has that head, vein."""
    device = next(network.parameters()).device

    def predict(windows: Tensor) -> Tensor:
        with _autocast(device, recipe):
            return torch.sigmoid(forward_logits(network, windows))

    window = [max(VOXEL_MULTIPLE, side // VOXEL_MULTIPLE * VOXEL_MULTIPLE) for side in recipe.options["patch_zyx"]]
    blended = sliding_window(torch.from_numpy(aanet_input(hu)).to(device), predict, window_zyx=window, batch=4)
    return np.asarray(blended.cpu().numpy(), dtype=np.float32)


def _slices(network: nn.Module, recipe: NetworkRecipe, hu: NDArray[np.int16]) -> NDArray[np.float32]:
    device = next(network.parameters()).device
    depth, height, width = hu.shape
    padding = (0, -width % PIXEL_MULTIPLE, 0, -height % PIXEL_MULTIPLE)
    probability = np.empty((1, *hu.shape), np.float32)
    for start in range(0, depth, SLICES_AT_ONCE):
        slices = range(start, min(depth, start + SLICES_AT_ONCE))
        channels = F.pad(torch.from_numpy(unet_channel_stack(hu, slices)).to(device), padding)
        with _autocast(device, recipe):
            logits = forward_logits(network, channels)[:, 0, :height, :width]
        probability[0, slices.start : slices.stop] = torch.sigmoid(logits).cpu().numpy()
    return probability


def _autocast(device: torch.device, recipe: NetworkRecipe) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16")


def score_case(case: TrainingCase, segmentation: CaseSegmentation) -> CaseScore:
    """Compares with the truth; an embolus is found as `imaging.metrics.match_lesions` says."""
    truth, predicted = np.asarray(case.embolus), segmentation.lesions
    match = match_lesions(truth, predicted)
    artery = segmentation.artery
    return CaseScore(
        case=case.name,
        emboli=len(match.found) + len(match.missed),
        found=len(match.found),
        false_positives=len(match.false),
        hit_voxels=int(np.count_nonzero((truth > 0) & (predicted > 0))),
        false_voxels=int(np.count_nonzero((truth == 0) & (predicted > 0))),
        missed_voxels=int(np.count_nonzero((truth > 0) & (predicted == 0))),
        voxel_dice=voxel_dice(truth, predicted),
        artery_dice=None if artery is None else voxel_dice(np.asarray(case.anatomy) == ARTERY, artery),
    )


def summary(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Figures over cases: `voxel_f1` over all their voxels, Dice as the mean of the cases that hold an embolus."""
    emboli, found = sum(score.emboli for score in scores), sum(score.found for score in scores)
    false = sum(score.false_positives for score in scores)
    hit = sum(score.hit_voxels for score in scores)
    wrong = sum(score.false_voxels + score.missed_voxels for score in scores)
    artery = [score.artery_dice for score in scores if score.artery_dice is not None]
    figures = {
        "lesion_sensitivity": found / max(1, emboli),
        "false_positives_per_scan": false / max(1, len(scores)),
        "lesion_f1": 2 * found / max(1, emboli + found + false),
        "voxel_f1": 2 * hit / max(1, 2 * hit + wrong),
        "voxel_dice": _mean([score.voxel_dice for score in scores if score.emboli]),
    }
    return figures | ({"artery_dice": _mean(artery)} if artery else {})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def scan_scores(network: nn.Module, recipe: NetworkRecipe, cases: Sequence[TrainingCase]) -> Mapping[str, float]:
    """`summary` of whole cases, as `scan_<figure>`; what is already said per scan keeps its name."""
    figures = summary([score_case(case, segment_case(network, recipe, case)) for case in cases])
    return {name if name.endswith("per_scan") else f"scan_{name}": value for name, value in figures.items()}
