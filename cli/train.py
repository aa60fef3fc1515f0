"""`embolens train`: the networks of a recipe, one after the other."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.final_scores import FinalScores


class Parallel(StrEnum):
    NONE = "none"
    DATA = "data"


def train(
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The recipe, TOML.")],
    network: Annotated[list[str] | None, typer.Option(help="Only this network; may be repeated.")] = None,
    anatomies: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Label maps (*.nii.gz); without it all anatomies are grown."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 1,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that make phantoms, and batches ahead.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    parallel: Annotated[
        Parallel, typer.Option(help="data: nn.DataParallel. For torchrun start -m training.train.")
    ] = Parallel.NONE,
    little_sample: Annotated[
        int | None, typer.Option(min=1, help="Learn from so few cases, each varied the more for it.")
    ] = None,
    save_path: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Checkpoints, weights, test pictures; default: save_models."),
    ] = None,
    log_path: Annotated[
        Path | None, typer.Option(file_okay=False, help="TensorBoard files; default: beside the checkpoint.")
    ] = None,
) -> None:
    """Train the networks of a recipe; phantoms that are not there yet are made first."""
    from training.final_scores import FinalScores
    from training.recipe import Recipe
    from training.train import SAVE_FOLDER, Run
    from training.train import train as train_networks

    written = train_networks(
        recipe,
        networks=network,
        anatomies=anatomies,
        save_folder=save_path or SAVE_FOLDER,
        run=Run(
            resume=resume,
            device=device,
            data_parallel=parallel is Parallel.DATA,
            workers=num_workers,
            threads=threads,
        ),
        log_folder=log_path,
        little_sample=little_sample,
    )
    folders = [weights.parent for weights in written]
    named = Recipe.read(recipe).name
    _print_table(
        [FinalScores.of(folder.name, folder, log_path and log_path / named / folder.name) for folder in folders]
    )


def _print_table(trained: list[FinalScores]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    table = Table("network", "on", "figure", "value", title="What the networks scored")
    for one in trained:
        for figure, value in one.scores.items():
            table.add_row(one.network, one.cases, figure.replace("_", " "), f"{value:.3f}")
        table.add_section()
    console.print(table)
    for one in trained:
        for file in one.files:
            console.print(str(file), soft_wrap=True)
