"""The model card: what a package is, how it was made, how good it is on phantoms, and what nobody may conclude."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from imaging.findings import RESEARCH_USE_ONLY
from training.recipe import DataRecipe, Recipe


def model_card(
    recipe: Recipe, figures: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]], *, with_anatomies: bool
) -> str:
    """Markdown for a package's README.md.

    Args:
        figures: what `evaluate` returned.
        settings: the package's tables, fitted fusion and thresholds included.
        with_anatomies: whether real anatomies were used in training.
    """
    data = recipe.data
    real = f"{data.anatomy_cases} on real lung, artery and vein masks" if with_anatomies else "none on real anatomies"
    return "\n".join(
        [
            f"# {recipe.name}, version {recipe.version}",
            "",
            f"**{RESEARCH_USE_ONLY}** {_patients(data)}",
            "The figures below are about phantoms: they say nothing about sensitivity or specificity in patients.",
            "",
            "## What it is",
            "",
            "Four networks for the cascade: a lung detector of the YOLOv4 family (`lung-roi.cfg`, darknet weights),",
            "two 2D networks (UNet3Tiny with attention and recurrent-residual blocks, Attention UNet) and AANet in 3D",
            "(embolus and artery). Segmentation weights are stored in half precision. `package.toml` holds their",
            "construction, SHA-256 of every file, fusion weights and thresholds.",
            "",
            "## How it was made",
            "",
            f"Trained from scratch on {data.grown_cases + data.anatomy_cases} phantoms ({data.grown_cases} with grown",
            f"anatomies, {real}), {data.validation_cases} of them kept for validation. Every number is in",
            f"`training/recipes/{recipe.path.name}`:",
            "",
            "    python -m training.cases --recipe training/recipes/" + recipe.path.name + " --anatomies DIR",
            "    python -m training.train --recipe training/recipes/" + recipe.path.name + " --anatomies DIR",
            *_texture_commands(recipe),
            "    python -m training.package --recipe training/recipes/"
            + recipe.path.name
            + f" --anatomies DIR --output models/weights/{recipe.name}",
            "",
            "The real anatomies are the CAD-PE artery, vein and lung masks published with AANet (Guo et al., MICCAI",
            "2022); only their shapes were used. Shipped weights are moving averages. The weights of the 2D networks",
            "and of the fusion come from a logistic regression on the validation phantoms; the thresholds too:",
            "",
            f"    ensemble   {dict(settings['ensemble'])}",
            f"    fusion     {dict(settings['fusion'])}",
            f"    thresholds {dict(settings['thresholds'])}",
            "",
            "## Figures on test phantoms",
            "",
            f"Seeds from {data.test_seed} on; real anatomies held out from training. A lesion counts as found when a",
            "reported one shares at least a tenth of the smaller one's voxels; everything else reported is false.",
            "",
            *_table(figures),
            "",
            "## Known limits",
            "",
            "- Phantoms are easier than patients: no breathing or heartbeat, no consolidation or effusion unless the",
            "  phantom has them, clots of one texture, arteries whose clot always lies inside the mask.",
            "- Emboli below about 0.1 ml and in subsegmental arteries are often missed, see the table.",
            "- Expect false findings where real scans leave the phantoms' range: lymph nodes, mucus, unopacified",
            "  veins, streaks beside the superior vena cava, consolidated lung.",
            *(f"- {note}" for note in recipe.notes),
            "",
        ]
    )


def _patients(data: DataRecipe) -> str:
    if not data.texture_scans:
        return "No network here has ever seen a patient's images in training."
    return (
        f"Of patients, the networks saw {len(data.texture_scans)} public CT without a known embolus "
        f"({', '.join(data.texture_scans)}), into which emboli were inserted; no embolus of a patient."
    )


def _texture_commands(recipe: Recipe) -> list[str]:
    if not recipe.data.texture_scans:
        return []
    name = f"training/recipes/{recipe.path.name}"
    return [
        f"    python -m training.texture_cases --recipe {name} --real DIR",
        f"    python -m training.texture --recipe {name} --anatomies DIR",
    ]


def _found_of_inserted(size: str, figures: Mapping[str, Any]) -> str:
    found, inserted = figures["lesion_sensitivity_by_size"][size]
    return f"{found} / {inserted}"


def _table(figures: Mapping[str, Any]) -> list[str]:
    kinds = list(figures)
    rows: list[tuple[str, Callable[[Mapping[str, Any]], object]]] = [
        ("scans / emboli inserted", lambda f: f"{f['scans']} / {f['emboli']}"),
        *(
            (f"sensitivity, {size}", partial(_found_of_inserted, size))
            for size in figures["all"]["lesion_sensitivity_by_size"]
        ),
        ("false positives per scan", lambda f: f["false_positives_per_scan"]),
        ("embolus voxel Dice, mean over scans with emboli", lambda f: f["voxel_dice_mean"]),
        ("artery voxel Dice, mean", lambda f: f["artery_dice_mean"]),
        ("embolus voxels inside the ROI, worst scan", lambda f: f["roi_recall_min"]),
        ("seconds per scan, median, CPU", lambda f: f["seconds_median"]),
    ]
    return [
        "| | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
        *(f"| {name} | " + " | ".join(str(cell(figures[kind])) for kind in kinds) + " |" for name, cell in rows),
    ]
