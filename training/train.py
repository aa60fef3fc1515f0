"""Trains the networks of a recipe.

`python -m training.train --recipe R [--network NAME]... [--anatomies DIR] [--resume]`, or under `torchrun` with the
same arguments. `train.py` at the top makes a recipe of its arguments and comes here too.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from imaging.errors import ConfigurationError
from models.network_spec import DARKNET
from training.cases import TrainingCase, held_out_specs, make_cases, open_cases, training_specs
from training.distributed import Place, joined
from training.final_test import print_figures, try_on_cases, write_figures
from training.loop import fit
from training.networks import make_task
from training.recipe import DataRecipe, NetworkRecipe, Recipe

SAVE_FOLDER = Path("save_models")
ENOUGH_CASES = 16  # from so many on, the recipe's own variation of crops will do
STRONGEST_VARIATION = 2.0  # beyond it, crops no longer look like a chest in a scanner
TURNED_SHARE = 0.5  # of the crops, at variation 1


@dataclass(frozen=True, slots=True)
class Split:
    """Cases to learn from, to look at meanwhile, and to be judged on at the end."""

    train: Sequence[TrainingCase]
    validation: Sequence[TrainingCase]
    test: Sequence[TrainingCase] = ()

    def with_few(self, count: int) -> Split:
        """No more than `count` cases to learn from."""
        if not 0 < count <= len(self.train):
            raise ConfigurationError(
                f"{count} training cases of {len(self.train)}", code="training.cases", remedy="choose at least one"
            )
        return replace(self, train=self.train[:count])


@dataclass(frozen=True, slots=True)
class Run:
    """How a training runs, which says nothing about what comes out.

    Attributes:
        resume: go on from the checkpoints in the folders, where there are any.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        data_parallel: spread batches over all GPUs of this process.
        workers: processes that make phantoms, and batches ahead.
        threads: of each process on a processor; 0: all its cores.
    """

    resume: bool = False
    device: str = "auto"
    data_parallel: bool = False
    workers: int = 0
    threads: int = 1


def train(
    recipe_path: Path,
    *,
    networks: Sequence[str] | None = None,
    anatomies: Path | None = None,
    resume: bool = False,
    save_folder: Path = SAVE_FOLDER,
    threads: int = 1,
    run: Run | None = None,
    log_folder: Path | None = None,
    little_sample: int | None = None,
) -> list[Path]:
    """Trains the networks of a recipe one after the other, on cases made first where the cache lacks them.

    Returns the files with the averaged weights, `save_folder/<recipe>/<network>/weights.safetensors`; see
    `train_network` for what lies beside them. `run` replaces `resume` and `threads`.
    """
    recipe = Recipe.read(recipe_path)
    run = run or Run(resume=resume, threads=threads)
    for name in networks or ():
        if name not in recipe.networks:
            raise ConfigurationError(
                f"recipe {recipe_path} has no network {name!r}",
                code="training.recipe",
                remedy=f"it has {', '.join(recipe.networks)}",
            )
    written = []
    with joined(run.device) as place:
        split = phantom_split(recipe.data, anatomies, place, run.workers)
        for name in networks or tuple(recipe.networks):
            folder, logs = save_folder / recipe.name / name, log_folder and log_folder / recipe.name / name
            written.append(
                train_network(recipe.networks[name], recipe.seed, split, folder, run, place, logs, little_sample)
            )
    return written


def phantom_split(data: DataRecipe, anatomies: Path | None, place: Place, workers: int = 0) -> Split:
    """The phantoms of a recipe; those that are not there yet are made, by `workers` processes where that is more than
    one. The test ones have seeds and anatomies of their own."""
    specs = training_specs(data, anatomies)
    tests = held_out_specs(data, anatomies, data.test_cases)
    if place.is_first:
        wanted = [*specs, *tests]
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
                made = [processes.submit(make_cases, data, wanted, shard, workers) for shard in range(workers)]
                for shard in made:
                    shard.result()
        else:
            make_cases(data, wanted)
    place.wait()
    cases, last = open_cases(data, specs), len(specs) - data.validation_cases
    return Split(cases[:last], cases[last:], open_cases(data, tests))


def train_network(
    recipe: NetworkRecipe,
    seed: int,
    split: Split,
    folder: Path,
    run: Run,
    place: Place,
    log_folder: Path | None = None,
    little_sample: int | None = None,
) -> Path:
    """Trains one network into `folder`, which gets

    * `weights.safetensors`: the averaged weights, whose path is returned,
    * `checkpoint.pt`, which `run.resume` goes on from, and TensorBoard's `log/` unless `log_folder` is given,
    * `test/`: a picture of each test case and the figures, where there are test cases.

    `little_sample` trains on so few cases, each varied the more for it.
    """
    torch.set_num_threads(run.threads or len(os.sched_getaffinity(0)))
    if little_sample is not None:
        split = split.with_few(little_sample)
        recipe = varied_for(recipe, little_sample)
    torch.manual_seed(seed)
    task = make_task(recipe, split.train, split.validation)
    weights = fit(
        task.network,
        task.source,
        task.loss,
        recipe,
        folder,
        validate=task.validate,
        tally=task.tally,
        resume=run.resume,
        place=place,
        data_parallel=run.data_parallel,
        log_folder=log_folder,
        workers=run.workers,
    )
    file = folder / "weights.safetensors"
    if place.is_first:
        save_weights(weights, file)
        if split.test:
            task.network.load_state_dict(weights)
            if recipe.kind == DARKNET:
                with torch.inference_mode():
                    figures = make_task(recipe, split.train, split.test).validate(task.network.eval())
                write_figures(figures, folder / "test")
                print_figures(recipe.name, figures)
            else:
                try_on_cases(task.network, recipe, split.test, folder / "test")
    place.wait()
    return file


def varied_for(recipe: NetworkRecipe, cases: int) -> NetworkRecipe:
    """The recipe with crops varied the more, the fewer the `cases` are: once at 16, twice from 4 down."""
    strength = min(STRONGEST_VARIATION, max(1.0, math.sqrt(ENOUGH_CASES / cases)))
    stronger = {"variation": strength, "turned_share": TURNED_SHARE * strength}
    return replace(
        recipe,
        options={**recipe.options, **{key: max(recipe.options.get(key, 0.0), stronger[key]) for key in stronger}},
    )


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Whole or not at all."""
    unfinished = file.with_suffix(".tmp")
    save_file({key: value.cpu().contiguous() for key, value in weights.items()}, unfinished)
    unfinished.replace(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train the networks of a recipe")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--anatomies", type=Path, help="folder of label maps (*.nii.gz); without it all are grown")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--num_workers", "--num-workers", type=int, default=0, help="processes that make cases and batches"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--parallel", choices=("none", "data"), default="none", help="data: nn.DataParallel")
    parser.add_argument("--little-sample", "--little_sample", type=int, help="learn from so few cases")
    parser.add_argument("--save_path", "--save-path", type=Path, default=SAVE_FOLDER)
    parser.add_argument("--log_path", "--log-path", type=Path, help="TensorBoard files; default: beside the checkpoint")
    options = parser.parse_args(arguments)
    for path in train(
        options.recipe,
        networks=options.network,
        anatomies=options.anatomies,
        save_folder=options.save_path,
        run=Run(
            resume=options.resume,
            device=options.device,
            data_parallel=options.parallel == "data",
            workers=options.num_workers,
            threads=options.threads,
        ),
        log_folder=options.log_path,
        little_sample=options.little_sample,
    ):
        print(path)


if __name__ == "__main__":
    main()
