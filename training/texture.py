"""A second training: on phantoms as before, and on the texture of real CT with inserted emboli.

Phantoms alone teach networks that real bone marrow, spleen or bowel look like nothing they know, and some of it like
clot. Crops may be larger than in the first training: small ones show more places in the same time, but what tells an
artery from a vein is often further away than their border.

`python -m training.texture --recipe R [--anatomies DIR]` goes on from the weights of the first training and leaves
`texture/weights.safetensors` beside them, which is what a package then holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from imaging.errors import ConfigurationError
from training.cases import TrainingCase
from training.distributed import joined
from training.loop import fit
from training.networks import VOLUME_KIND, batch_source, make_task
from training.recipe import NetworkRecipe, Recipe, TextureRecipe
from training.sampling import Batch, BatchSource
from training.train import SAVE_FOLDER, Run, Split, phantom_split, save_weights

FOLDER = "texture"
WARMUP_STEPS = 20
SEED_STEP = 1000  # between the seeds of the two trainings and of the two sources


class Mixed:
    """Batches of two sources, one after the other in each."""

    def __init__(self, one: BatchSource, other: BatchSource) -> None:
        self.one, self.other = one, other

    def batch(self, step: int) -> Batch:
        parts = self.one.batch(step), self.other.batch(step)
        return Batch(torch.cat([part.input for part in parts]), torch.cat([part.target for part in parts]))


def texture_cases(folder: Path | None) -> list[TrainingCase]:
    """Raises ConfigurationError where there are none."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder and folder.is_dir() else []
    if not folders:
        raise ConfigurationError(
            f"no cases of real CT in {folder}", code="training.texture", remedy="python -m training.texture_cases"
        )
    return [TrainingCase.open(path) for path in folders]


def train_on_texture(recipe: NetworkRecipe, folder: Path, split: Split, real: Sequence[TrainingCase], run: Run) -> Path:
    """Goes on from `folder/weights.safetensors`; returns the new weights' file.

    Raises:
        ConfigurationError: the recipe has no second training, or the first one is not done.
    """
    texture, first = recipe.texture, folder / "weights.safetensors"
    if texture is None or not first.is_file():
        raise ConfigurationError(
            f"network {recipe.name}: {'no [texture] in the recipe' if texture is None else f'{first} is not there'}",
            code="training.texture",
        )
    torch.set_num_threads(run.threads)
    seed = recipe.batch_seed + SEED_STEP
    again = again_with_texture(recipe, texture)
    from_real = max(1, round(texture.share * again.batch))
    with joined(run.device) as place:
        task = make_task(again, split.train, split.validation)
        task.network.load_state_dict(load_file(first))
        source = Mixed(
            batch_source(replace(again, batch=again.batch - from_real), split.train, seed),
            batch_source(replace(again, batch=from_real), real, seed + SEED_STEP),
        )
        weights = fit(
            task.network,
            source,
            task.loss,
            again,
            folder / FOLDER,
            validate=task.validate,
            tally=task.tally,
            resume=run.resume,
            place=place,
        )
        file = folder / FOLDER / "weights.safetensors"
        if place.is_first:
            save_weights(weights, file)
        place.wait()
    return file


def again_with_texture(recipe: NetworkRecipe, texture: TextureRecipe) -> NetworkRecipe:
    """The recipe of the second training."""
    patch = "patch_zyx" if recipe.kind == VOLUME_KIND else "patch_yx"
    return replace(
        recipe,
        batch=texture.batch or recipe.batch,
        steps=texture.steps,
        learning_rate=texture.learning_rate,
        warmup_steps=WARMUP_STEPS,
        batch_seed=recipe.batch_seed + SEED_STEP,
        options={**recipe.options, patch: texture.patch} if texture.patch else recipe.options,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.texture", description="Go on with the texture of real CT")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--anatomies", type=Path, help="folder of label maps (*.nii.gz); without it all are grown")
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--save_path", "--save-path", type=Path, default=SAVE_FOLDER)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    recipe = Recipe.read(options.recipe)
    run = Run(resume=options.resume, threads=options.threads)
    real = texture_cases(recipe.data.texture_folder)
    with joined(run.device) as place:
        split = phantom_split(recipe.data, options.anatomies, place)
    for name in options.network or [name for name, one in recipe.networks.items() if one.texture is not None]:
        print(train_on_texture(recipe.networks[name], options.save_path / recipe.name / name, split, real, run))


if __name__ == "__main__":
    main()
