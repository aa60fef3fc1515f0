"""The command line of `train.py`: from a few arguments to a recipe, from the recipe to a trained network."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imaging.errors import ConfigurationError
from models.network_spec import DARKNET, TORCH_KINDS
from training.cases import TrainingCase
from training.distributed import joined
from training.networks import VOLUME_KIND
from training.objectives import LOSSES
from training.recipe import AVERAGES, PRECISIONS, NetworkRecipe, Recipe
from training.train import SAVE_FOLDER, Run, Split, phantom_split, train_network

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "phantoms.toml"
WARMUP_EPOCHS = 4  # AANet (Guo et al., MICCAI 2022)
VALIDATIONS = 20
CHECKPOINTS = 100
PUBLISHED_PATCH_ZYX = (96, 96, 96)
PHANTOMS = "phantoms"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train one network on phantoms or a folder of cases. An epoch is as many crops as there are cases.",
    )
    add = parser.add_argument
    add("--epochs", type=int, default=500)
    add("--batch_size", "--batch-size", "-b", type=int, default=8)
    add("--learn_rate", "--learn-rate", "-l", type=float, default=1e-3, help="the peak, after warm-up")
    add("--log_path", "--log-path", "-o", type=Path, default=Path("logs"), help="TensorBoard files")
    add("--save_path", "--save-path", type=Path, default=SAVE_FOLDER, help="checkpoints, weights, test pictures")
    add("--unique_name", "--unique-name", "-u", help="of this training, in both folders; default: the network's kind")
    add("--model", default=VOLUME_KIND, choices=sorted((*TORCH_KINDS, DARKNET)), help="the network's kind")
    add("--width", choices=("light", "published"), default="light", help="of AANet, whose published width wants a GPU")
    add("--loss", choices=sorted(LOSSES), help="default: the objective of the network's kind")
    add(
        "--average", choices=AVERAGES, default="ema", help="of the weights: exponential, or equal over the last quarter"
    )
    add("--data", default=PHANTOMS, help="phantoms, or a folder of cases")
    add("--cases", type=int, help="phantoms to make, those for validation among them")
    add("--anatomies", type=Path, help="label maps (*.nii.gz) for half of the phantoms; without it all are grown")
    add("--little-sample", "--little_sample", type=int, help="learn from so few cases, each varied the more for it")
    add(
        "--num_workers",
        "--num-workers",
        "-w",
        type=int,
        default=0,
        help="processes that make phantoms, and batches ahead",
    )
    add("--seed", type=int, default=1)
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--parallel", choices=("none", "data"), default="none", help="data: nn.DataParallel; or start with torchrun")
    add("--precision", choices=PRECISIONS, default="bf16")
    add("--accumulate", type=int, default=1, help="parts that a batch is run in, to save memory")
    add("--threads", type=int, default=0, help="of each process on a processor; 0: all cores")
    add("--recipe", type=Path, default=DEFAULT_RECIPE, help="what says everything that is not asked here")
    return parser


def main(arguments: Sequence[str] | None = None) -> Path:
    """Trains as the arguments say and returns the file with the weights."""
    options = parser().parse_args(arguments)
    recipe = Recipe.read(options.recipe)
    data = recipe.data
    if options.cases is not None:
        real = options.cases // 2 if options.anatomies else 0
        data = replace(data, grown_cases=options.cases - real, anatomy_cases=real)
    name = options.unique_name or options.model
    with joined(options.device) as place:
        if options.data == PHANTOMS:
            split = phantom_split(data, options.anatomies, place, options.num_workers)
        else:
            split = split_of(cases_in(Path(options.data)), data.validation_cases, data.test_cases)
        file = train_network(
            network_recipe(recipe, options, name, cases=options.little_sample or len(split.train)),
            options.seed,
            split,
            options.save_path / name,
            Run(
                resume=options.resume,
                device=options.device,
                data_parallel=options.parallel == "data",
                workers=options.num_workers,
                threads=options.threads,
            ),
            place,
            options.log_path / name,
            options.little_sample,
        )
        if place.is_first:
            print(file)
    return file


def network_recipe(recipe: Recipe, options: argparse.Namespace, name: str, *, cases: int) -> NetworkRecipe:
    """The recipe's table for the kind asked for, with the arguments in place of its numbers.

    `cases` to learn from make an epoch of `ceil(cases / batch size)` steps.
    """
    base = next((network for network in recipe.networks.values() if network.kind == options.model), None)
    if base is None:
        if "unet" not in recipe.networks:
            raise ConfigurationError(
                f"recipe {recipe.path} has no network of kind {options.model!r} and no [unet] to go by",
                code="training.kind",
                remedy="add a table for it",
            )
        base = replace(recipe.networks["unet"], kind=options.model)
    if options.model == VOLUME_KIND and options.width == "published":
        base = replace(base, parameters={}, options={**base.options, "patch_zyx": PUBLISHED_PATCH_ZYX})
    epoch = math.ceil(cases / options.batch_size)
    steps = options.epochs * epoch
    return replace(
        base,
        name=name,
        batch=options.batch_size,
        steps=steps,
        learning_rate=options.learn_rate,
        warmup_steps=min(WARMUP_EPOCHS * epoch, steps // 10),
        log_every=epoch,
        checkpoint_every=max(epoch, steps // CHECKPOINTS),
        validate_every=max(epoch, steps // VALIDATIONS),
        batch_seed=options.seed,
        loss=options.loss or base.loss,
        average=options.average,
        accumulate=options.accumulate,
        precision=options.precision,
        validation_scans=base.validation_scans,
    )


def cases_in(folder: Path) -> list[TrainingCase]:
    """The prepared cases in `folder`, by name; raises ConfigurationError where there are none."""
    found = sorted(path.parent for path in folder.glob("*/hu.npy") if not path.parent.name.startswith("."))
    if not found:
        raise ConfigurationError(
            f"no training cases in {folder}", code="training.cases", remedy="make them with python -m training.cases"
        )
    return [TrainingCase.open(path) for path in found]


def split_of(cases: Sequence[TrainingCase], validation: int, test: int) -> Split:
    """The last `test` cases to be tested on, `validation` before them to look at, the others to learn from."""
    learnt = len(cases) - validation - test
    if learnt < 1:
        raise ConfigurationError(
            f"{len(cases)} cases are too few: {validation} are for validation, {test} for the test",
            code="training.cases",
            remedy=f"use at least {validation + test + 1}",
        )
    return Split(cases[:learnt], cases[learnt : learnt + validation], cases[learnt + validation :])
