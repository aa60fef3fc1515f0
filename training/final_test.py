"""A trained network tried on the test cases: a picture of each, and the figures as a table, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from training.cases import TrainingCase
from training.pictures import write_picture
from training.recipe import NetworkRecipe
from training.scans import CaseScore, score_case, segment_case, summary


def try_on_cases(
    network: nn.Module, recipe: NetworkRecipe, cases: Sequence[TrainingCase], folder: Path
) -> dict[str, float]:
    """Segments `cases` whole and writes `<case>.png`, `scores.csv` (a row per case) and `scores.json` (over all).

    Returns what `scores.json` holds; see `training.scans.summary`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.eval()
    scores = []
    for case in cases:
        segmentation = segment_case(network, recipe, case)
        write_picture(folder / f"{case.name}.png", case, segmentation)
        scores.append(score_case(case, segmentation))
    figures = summary(scores)
    write_figures(figures, folder)
    rows = [asdict(score) for score in scores]
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    Console().print(_table(recipe.name, scores))
    print_figures(recipe.name, figures)
    return figures


def write_figures(figures: Mapping[str, float], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(dict(figures), indent=1) + "\n", encoding="utf-8")


def print_figures(name: str, figures: Mapping[str, float]) -> None:
    table = Table("figure", "value", title=f"{name} on all test cases")
    for figure, value in figures.items():
        table.add_row(figure.replace("_", " "), f"{value:.3f}")
    Console().print(table)


def _table(name: str, scores: Sequence[CaseScore]) -> Table:
    table = Table("case", "emboli found", "false positives", "voxel Dice", "artery Dice", title=f"{name}, case by case")
    for score in scores:
        table.add_row(
            score.case,
            f"{score.found} / {score.emboli}",
            str(score.false_positives),
            f"{score.voxel_dice:.3f}",
            "" if score.artery_dice is None else f"{score.artery_dice:.3f}",
        )
    return table
