"""What each measure of training adds: short trainings that differ in one thing, judged on the same validation cases.

`python -m training.measure_ablation --recipe R [--anatomies DIR] --network attention_unet --steps 400 --output FOLDER`
leaves `<network>.json`, which the report reads (see training/ablation.py). A training that was cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from imaging.bootstrap import Estimate, Weights, estimates, weighted_mean
from models.network_spec import build_network
from training.ablation import TrainingResult
from training.cases import CaseSpec, TrainingCase, make_cases, open_cases, training_specs
from training.distributed import Place, joined
from training.networks import VOLUME_KIND, network_spec
from training.recipe import DataRecipe, NetworkRecipe, Recipe
from training.scans import CaseScore, score_case, segment_case
from training.train import Run, Split, phantom_split, train_network

REFERENCE = "as the recipe says"
LAST_WEIGHTS = "last weights in place of their EMA"
EMBOLUS_SHARE_BY_CHANCE = 0.05

MEASURES: Mapping[str, Mapping[str, Any]] = {
    REFERENCE: {},
    "crops on emboli hardly more often than chance": {"embolus_share": EMBOLUS_SHARE_BY_CHANCE},
    "small emboli not drawn more often": {"balanced_sizes": False},
    "a quarter of the crops on emboli concatenated": {"concatenate_share": 0.25},
    "a quarter of the crops with a copied embolus": {"copy_paste_share": 0.25},
    "crops neither turned nor recoloured": {"turned_share": 0.0, "variation": 0.0},
}
LUNG_BOX = "few phantoms, crops from the lungs' box"
WHOLE_SCAN = "the same few, crops from the whole scan"
WHOLE_SCAN_MARGIN_MM = 1000.0
LOSSES = ("dice", "focal")

# AANet's objective goes with its heads: it is compared with the published design instead.
NO_VEIN_HEAD: Mapping[str, Any] = {"veins": False}
OVERLAP_ALONE: Mapping[str, Any] = {"bce_weight": 0.0}
METRICS = ("lesion sensitivity", "false positives per scan", "voxel Dice")


def variants(recipe: NetworkRecipe) -> dict[str, NetworkRecipe]:
    """The trainings by the name of what differs: measures and losses of a 2D network, the design of AANet."""
    if recipe.kind == VOLUME_KIND:
        overlap = {**recipe.options, **OVERLAP_ALONE}
        return {
            REFERENCE: recipe,
            "no vein head": replace(recipe, parameters={**recipe.parameters, **NO_VEIN_HEAD}),
            "overlap loss alone": replace(recipe, options=overlap),
            "published widths, heads and loss": replace(recipe, parameters={}, options=overlap),
        }
    by_option = {name: replace(recipe, options={**recipe.options, **changed}) for name, changed in MEASURES.items()}
    return by_option | {f"{loss} loss alone": replace(recipe, loss=loss) for loss in LOSSES}


def compared(scores: Sequence[CaseScore], reference: Sequence[CaseScore] | None) -> list[tuple[str, Estimate]]:
    """The figures of `scores`, or how far they lie from those of `reference`, which are of the same cases."""
    suffix = "" if reference is None else ", difference"

    def statistic(weights: Weights) -> list[float]:
        one = _figures(scores, weights)
        other = [0.0] * len(one) if reference is None else _figures(reference, weights)
        return [a - b for a, b in zip(one, other, strict=True)]

    measured = zip(METRICS, estimates(statistic, len(scores)), strict=True)
    return [(metric + suffix, value) for metric, value in measured]


def _figures(scores: Sequence[CaseScore], weights: Weights) -> list[float]:
    emboli = np.array([score.emboli for score in scores])
    found = np.array([score.found for score in scores])
    inserted = float((emboli * weights).sum())
    return [
        float((found * weights).sum()) / inserted if inserted else float("nan"),
        weighted_mean([score.false_positives for score in scores], weights),
        weighted_mean([score.voxel_dice for score in scores], weights, emboli > 0),
    ]


def lung_crop_variants(recipe: NetworkRecipe) -> dict[str, NetworkRecipe]:
    """Two trainings on cases that hold whole scans."""
    return {LUNG_BOX: recipe, WHOLE_SCAN: replace(recipe, options={**recipe.options, "lung_crop": False})}


def whole_scans(data: DataRecipe, specs: Sequence[CaseSpec]) -> list[TrainingCase]:
    """Cases that hold all that was scanned, not only the lungs' box; made where they are not there yet."""
    whole = replace(data, margin_mm=WHOLE_SCAN_MARGIN_MM, folder=data.folder.with_name(f"{data.folder.name}-whole"))
    make_cases(whole, specs)
    return open_cases(whole, specs)


def measure(
    trainings: Mapping[str, NetworkRecipe], seed: int, split: Split, folder: Path, run: Run, place: Place
) -> list[TrainingResult]:
    """Trains every variant of one network and judges each on the validation cases of `split`, the others by how far
    they lie from the first."""
    results: list[TrainingResult] = []
    reference: list[CaseScore] | None = None
    for name, variant in trainings.items():
        started = time.perf_counter()
        own = folder / name.replace(" ", "-")
        weights = load_file(train_network(variant, seed, split, own, run, place))
        seconds = time.perf_counter() - started
        scores = _scores(variant, weights, split.validation)
        results += _rows(name, scores, reference, variant.steps, seconds)
        if reference is None:
            reference = scores
        if name == REFERENCE:
            last = torch.load(own / "checkpoint.pt", weights_only=True)["network"]
            results += _rows(LAST_WEIGHTS, _scores(variant, last, split.validation), reference, variant.steps, seconds)
        print("\n".join(f"{row.name}: {row.metric} {row.value:.3f}" for row in results[-len(METRICS) :]), flush=True)
    return results


def _rows(
    name: str, scores: Sequence[CaseScore], reference: Sequence[CaseScore] | None, steps: int, seconds: float
) -> list[TrainingResult]:
    return [
        TrainingResult(name, metric, value.value, (value.low, value.high), steps, seconds)
        for metric, value in compared(scores, reference)
    ]


def _scores(recipe: NetworkRecipe, weights: Mapping[str, Tensor], cases: Sequence[TrainingCase]) -> list[CaseScore]:
    network = build_network(network_spec(recipe))
    network.load_state_dict(weights)
    network.eval()
    return [score_case(case, segment_case(network, recipe, case)) for case in cases]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.measure_ablation", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--anatomies", type=Path, help="folder of label maps (*.nii.gz); without it all are grown")
    parser.add_argument("--network", default="attention_unet")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--whole_scans", "--whole-scans", type=int, default=0, help="training phantoms made whole, for the lung crop"
    )
    parser.add_argument("--output", type=Path, default=Path("training/ablations"))
    parser.add_argument("--save_path", "--save-path", type=Path, default=Path("save_models/ablation"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    recipe = Recipe.read(options.recipe)
    network = replace(recipe.networks[options.network], steps=options.steps, validate_every=options.steps)
    run = Run(resume=True, threads=options.threads)
    with joined(run.device) as place:
        split = replace(phantom_split(recipe.data, options.anatomies, place), test=())
        results = measure(variants(network), recipe.seed, split, options.save_path / network.name, run, place)
        if options.whole_scans:
            specs = training_specs(recipe.data, options.anatomies)[: options.whole_scans]
            whole = replace(split, train=whole_scans(recipe.data, specs))
            folder = options.save_path / f"{network.name}-whole"
            results += measure(lung_crop_variants(network), recipe.seed, whole, folder, run, place)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = json.dumps([asdict(result) for result in results], indent=1)
    (options.output / f"{options.network}.json").write_text(rows + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
