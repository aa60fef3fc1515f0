"""How good a package is on phantoms nothing was trained on.

`python -m training.evaluate --recipe R --package DIR [--anatomies DIR] [--cases N]` writes `figures.json` into the
package: what its model card states.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imaging.metrics import match_lesions, voxel_dice
from imaging.phantom import Phantom
from models.cascade import Cascade
from models.darknet.network import DarknetNetwork
from models.packages import ModelPackage, load_network
from models.roi import RoiSettings, find_lungs
from training.cases import held_out_specs
from training.phantoms import acquire_phantom
from training.recipe import Recipe

SIZE_CLASSES_ML = ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0), (1.0, 10.0), (10.0, float("inf")))


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """One phantom: volumes of its emboli (found and missed, ml), scores of false lesions, Dice, seconds."""

    name: str
    found_ml: tuple[float, ...]
    missed_ml: tuple[float, ...]
    false_scores: tuple[float, ...]
    embolus_dice: float
    artery_dice: float
    roi_recall: float
    seconds: float


def evaluate_case(cascade: Cascade, phantom: Phantom, name: str) -> CaseFigures:
    """Runs the cascade on a phantom and compares with the truth."""
    result = cascade.segment(phantom.volume)
    truth = phantom.embolus_labelmap
    match = match_lesions(truth, result.embolus_labelmap)
    sizes_ml = np.bincount(truth.ravel()) * (phantom.volume.voxel_volume_mm3 / 1000.0)
    lesions = {lesion.id: lesion for lesion in result.findings.lesions}
    return CaseFigures(
        name=name,
        found_ml=tuple(float(sizes_ml[label]) for label in match.found),
        missed_ml=tuple(float(sizes_ml[label]) for label in match.missed),
        false_scores=tuple(lesions[label].score for label in match.false),
        embolus_dice=voxel_dice(truth, result.embolus_labelmap),
        artery_dice=voxel_dice(phantom.artery, result.artery),
        roi_recall=_roi_recall(cascade.package, phantom),
        seconds=sum(result.stage_seconds.values()),
    )


def _roi_recall(package: ModelPackage, phantom: Phantom) -> float:
    """Share of the emboli's voxels that lies inside the region of interest; 1.0 without emboli."""
    detector = load_network(package, "roi")
    assert isinstance(detector, DarknetNetwork)
    region = find_lungs(detector, phantom.volume, RoiSettings(**package.settings["roi"]), lambda fraction: None)
    embolus = phantom.embolus_labelmap > 0
    total = int(np.count_nonzero(embolus))
    return int(np.count_nonzero(embolus[region.box.slices])) / total if total else 1.0


def summary(cases: Sequence[CaseFigures]) -> dict[str, Any]:
    """Figures over all cases; sensitivity as [found, inserted] for each size class."""
    sensitivity = {}
    for low, high in SIZE_CLASSES_ML:
        found = sum(low <= ml < high for case in cases for ml in case.found_ml)
        missed = sum(low <= ml < high for case in cases for ml in case.missed_ml)
        sensitivity[f"{low:g}-{high:g} ml"] = [found, found + missed]
    with_emboli = [case for case in cases if case.found_ml or case.missed_ml]
    return {
        "scans": len(cases),
        "emboli": sum(len(case.found_ml) + len(case.missed_ml) for case in cases),
        "lesion_sensitivity_by_size": sensitivity,
        "false_positives_per_scan": round(sum(len(case.false_scores) for case in cases) / len(cases), 2),
        "voxel_dice_mean": _mean([case.embolus_dice for case in with_emboli]),
        "artery_dice_mean": _mean([case.artery_dice for case in cases]),
        "roi_recall_min": round(min(case.roi_recall for case in cases), 4),
        "seconds_median": round(float(np.median([case.seconds for case in cases])), 1),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def evaluate(recipe: Recipe, package: Path, anatomies: Path | None, count: int, threads: int = 1) -> dict[str, Any]:
    """Figures on `count` test phantoms: all of them, the grown ones, and those on held-out anatomies."""
    cascade = Cascade.load(package, device="cpu", threads=threads)
    cases: dict[str, list[CaseFigures]] = {"grown": [], "anatomies": []}
    for spec in held_out_specs(recipe.data, anatomies, count):
        figures = evaluate_case(cascade, acquire_phantom(recipe.data, spec.seed, spec.anatomy), spec.name)
        cases["anatomies" if spec.anatomy else "grown"].append(figures)
        print(json.dumps(asdict(figures)), flush=True)
    everything = [*cases["grown"], *cases["anatomies"]]
    return {"all": summary(everything), **{kind: summary(some) for kind, some in cases.items() if some}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Judge a package on test phantoms")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--anatomies", type=Path)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    figures = evaluate(
        Recipe.read(options.recipe), options.package, options.anatomies, options.cases, threads=options.threads
    )
    (options.package / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
