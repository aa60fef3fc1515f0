"""Trains the networks of a recipe.

`python -m training.train --recipe R [--network roi|unet3tiny|attention_unet|aanet] [--anatomies DIR] [--resume]`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.cases import make_cases, open_cases, training_specs
from training.loop import fit
from training.networks import make_task
from training.recipe import NETWORKS, Recipe

SAVE_FOLDER = Path("save_models")


def train(
    recipe_path: Path,
    *,
    networks: Sequence[str] | None = None,
    anatomies: Path | None = None,
    resume: bool = False,
    save_folder: Path = SAVE_FOLDER,
    threads: int = 1,
) -> list[Path]:
    """Trains the networks of a recipe one after the other, on cases made first where the cache lacks them.

    Returns the files with the averaged weights, `save_folder/<recipe>/<network>/weights.safetensors`. Beside each lie
    its checkpoint (which `resume` goes on from) and TensorBoard logs.
    """
    recipe = Recipe.read(recipe_path)
    torch.set_num_threads(threads)
    specs = training_specs(recipe.data, anatomies)
    make_cases(recipe.data, specs)
    cases = open_cases(recipe.data, specs)
    split = len(cases) - recipe.data.validation_cases
    written = []
    for name in networks or tuple(recipe.networks):
        torch.manual_seed(recipe.seed)
        task = make_task(recipe.networks[name], cases[:split], cases[split:])
        folder = save_folder / recipe.name / name
        weights = fit(
            task.network,
            task.source,
            task.loss,
            recipe.networks[name],
            folder,
            validate=task.validate,
            resume=resume,
        )
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / "weights.safetensors")
        written.append(folder / "weights.safetensors")
    return written


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train the networks of a recipe")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only this one; may be repeated")
    parser.add_argument("--anatomies", type=Path, help="folder of label maps (*.nii.gz); without it all are grown")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    for path in train(
        options.recipe,
        networks=options.network,
        anatomies=options.anatomies,
        resume=options.resume,
        threads=options.threads,
    ):
        print(path)


if __name__ == "__main__":
    main()
