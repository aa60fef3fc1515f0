"""`embolens package`: from the trained networks of a recipe to a model package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def package(
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The recipe they were trained by.")],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder of the package; made if need be.")],
    anatomies: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Label maps, as the training had them.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Test phantoms to judge it on, for its card.")] = 12,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 1,
    save_path: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where embolens train saved them; default: save_models."),
    ] = None,
) -> None:
    """Put trained networks into a package: fusion and thresholds fitted, judged on test phantoms, with its card."""
    import json

    from training.package import assemble
    from training.recipe import Recipe
    from training.train import SAVE_FOLDER

    figures = assemble(
        Recipe.read(recipe),
        output,
        save_folder=save_path or SAVE_FOLDER,
        anatomies=anatomies,
        test_cases=cases,
        threads=threads,
    )
    typer.echo(json.dumps(figures, indent=1))
    typer.echo(f"{output}: embolens models use {output}")
