"""The training loop: AdamW, warm-up and cosine, bf16, clipped gradients, averaged weights, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from training.distributed import Place, replicated, synchronise_batch_norm
from training.ema import EqualAverage, WeightAverage, reestimate_batch_norm
from training.recipe import NetworkRecipe
from training.sampling import Batch, BatchSource

Loss = Callable[[nn.Module, Batch], Tensor]
"""Runs the network on a batch and answers how wrong it is: a scalar."""

Validation = Callable[[nn.Module], Mapping[str, float]]
"""Named scores of a network in eval mode."""

Tally = Callable[[list[Tensor], Batch], Mapping[str, float]]
"""Counts of what the network answered to a batch of the training, to be added up between two log entries."""

Rates = Callable[[Mapping[str, float]], Mapping[str, float]]
"""What the counts that a `Tally` gave amount to, by the name to log it under."""

LAST_LEARNING_RATE = 0.02  # share of the peak that the cosine ends at
BATCH_NORM_BATCHES = 50  # at most, to re-estimate the statistics of equally averaged weights


def learning_rate(step: int, recipe: NetworkRecipe) -> float:
    """Linear warm-up to the peak, then half a cosine down."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return recipe.learning_rate * (LAST_LEARNING_RATE + (1 - LAST_LEARNING_RATE) * cosine)


def fit(
    network: nn.Module,
    source: BatchSource,
    loss: Loss,
    recipe: NetworkRecipe,
    folder: Path,
    *,
    validate: Validation | None = None,
    tally: tuple[Tally, Rates] | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    place: Place | None = None,
    data_parallel: bool = False,
    log_folder: Path | None = None,
    workers: int = 0,
) -> dict[str, Tensor]:
    """Trains `network` and returns the averaged weights, which is what ships.

    Args:
        folder: gets `checkpoint.pt`.
        validate: judges the averaged weights, in the first process only.
        tally: counts on the training batches, and what becomes of them in the log.
        stop_after: ends early at that step, as a kill would, with the schedule of the whole training.
        place: the device, and the part of each batch that is this process's; None: this machine's processor.
        data_parallel: spread each batch over all GPUs of this process.
        log_folder: gets the TensorBoard files; None: `folder/log`.
        workers: processes that make batches ahead.
    """
    place = place or Place(torch.device("cpu"))
    network = synchronise_batch_norm(network.to(place.device), place)
    forward = replicated(network, place, data_parallel=data_parallel)
    state = TrainingState(
        network,
        WeightAverage(network, recipe.ema_decay),
        EqualAverage(network, recipe.swa_first_step),
        torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay),
        {},
    )
    config, checkpoint = _config(recipe), folder / "checkpoint.pt"
    restored = resume and checkpoint.exists()
    first = load_checkpoint(checkpoint, config=config, state=state, device=place.device) if restored else 0
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    answers: list[list[Tensor]] = []
    watching = forward.register_forward_hook(lambda module, inputs, outputs: answers.append(outputs))
    network.train()
    with _Log(recipe, log_folder or folder / "log", place, first) as log:
        for step, batch in zip(range(first, last), _batches(source, first, last, workers), strict=True):
            for group in state.optimiser.param_groups:
                group["lr"] = learning_rate(step, recipe)
            torch.manual_seed(_seed(recipe.batch_seed, step, place.rank))  # dropout
            state.optimiser.zero_grad(set_to_none=True)
            for part in _parts(batch, recipe.accumulate, place.device):
                with torch.autocast(place.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
                    value = loss(forward, part) / recipe.accumulate
                value.backward()  # type: ignore[no-untyped-call]
                _add(state.since_log, {"loss": value.item()})
                if tally is not None:
                    _add(state.since_log, tally[0](answers[-1], part))
                answers.clear()
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            state.optimiser.step()
            state.ema.update(network, step)
            state.swa.update(network, step)

            done = step + 1
            if done % recipe.log_every == 0:
                counted = {name: sum_ for name, sum_ in state.since_log.items() if name != "loss"}
                rates = {} if tally is None else tally[1](counted)
                log.training(done, {"loss": state.since_log["loss"] / recipe.log_every, **rates})
                state.since_log.clear()
            if validate is not None and done % recipe.validate_every == 0 and done < recipe.steps:
                log.validation(done, _scores(network, _average(state, recipe).state, validate, place))
            if done % recipe.checkpoint_every == 0 or done == last:
                log.flush()  # what a resumed training will not log again
                if place.is_first:
                    save_checkpoint(checkpoint, config=config, step=done, state=state)
                place.wait()
        watching.remove()
        shipped = _shipped(state, recipe, source, place)
        if validate is not None and last == recipe.steps:
            log.validation(last, _scores(network, shipped, validate, place))
    return shipped


def _average(state: TrainingState, recipe: NetworkRecipe) -> WeightAverage | EqualAverage:
    return state.swa if recipe.average == "swa" else state.ema


def _shipped(state: TrainingState, recipe: NetworkRecipe, source: BatchSource, place: Place) -> dict[str, Tensor]:
    """The chosen average; an equal one with batch statistics of its own."""
    average = _average(state, recipe).state
    if recipe.average != "swa":
        return average
    with _weights(state.network, average):
        inputs = (source.batch(step).input.to(place.device) for step in range(min(BATCH_NORM_BATCHES, recipe.steps)))
        reestimate_batch_norm(state.network, inputs)
        return {name: value.clone() for name, value in state.network.state_dict().items()}


def _scores(
    network: nn.Module, weights: Mapping[str, Tensor], validate: Validation, place: Place
) -> Mapping[str, float]:
    """Scores of `weights`, empty in all processes but the first."""
    scores: Mapping[str, float] = {}
    if place.is_first:
        with _weights(network, weights), torch.inference_mode():
            scores = validate(network.eval())
        network.train()
    place.wait()
    return scores


@contextmanager
def _weights(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """`network` has other weights inside, and its own again afterwards."""
    own = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)
    yield
    network.load_state_dict(own)


class _StepsDataset(Dataset[Batch]):
    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, step: int) -> Batch:
        return self.source.batch(step)


def _batches(source: BatchSource, first: int, last: int, workers: int) -> Iterator[Batch]:
    """The batches of the steps in order, made ahead by `workers` processes."""
    yield from DataLoader(_StepsDataset(source), batch_size=None, sampler=range(first, last), num_workers=workers)


def _parts(batch: Batch, count: int, device: torch.device) -> Iterator[Batch]:
    for images, target in zip(batch.input.chunk(count), batch.target.chunk(count), strict=True):
        yield Batch(images.to(device, non_blocking=True), target.to(device, non_blocking=True))


def _seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 1009 + rank


def _add(sums: dict[str, float], counts: Mapping[str, float]) -> None:
    for name, count in counts.items():
        sums[name] = sums.get(name, 0.0) + count


def _config(recipe: NetworkRecipe) -> dict[str, Any]:
    """The recipe as plain containers, so that a checkpoint loads without running code (`weights_only`)."""
    fields = {**asdict(recipe), "config": str(recipe.config)}
    fields.pop("texture")  # what may come afterwards
    return fields


class _Log:
    """TensorBoard and one line per entry, from the first process. Entries after the resumed step are taken back."""

    def __init__(self, recipe: NetworkRecipe, folder: Path, place: Place, first: int) -> None:
        self.recipe = recipe
        self.writer = SummaryWriter(str(folder), purge_step=first + 1 if first else None) if place.is_first else None
        self.since = time.perf_counter()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *failure: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def training(self, done: int, values: Mapping[str, float]) -> None:
        recipe = self.recipe
        seconds = (time.perf_counter() - self.since) / recipe.log_every
        left = timedelta(seconds=round(seconds * (recipe.steps - done)))
        rate = learning_rate(done - 1, recipe)
        self._write("train", done, {**values, "learning_rate": rate, "seconds_per_step": seconds})
        shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._say(f"{done}/{recipe.steps} {shown} lr {rate:.2e} {seconds:.2f} s/step, {left} left")
        self.since = time.perf_counter()

    def validation(self, done: int, scores: Mapping[str, float]) -> None:
        self._write("validation", done, scores)
        for name, score in scores.items():
            self._say(f"{done}/{self.recipe.steps} validation {name} {score:.4f}")
        self.since = time.perf_counter()

    def flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def _write(self, part: str, done: int, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{part}/{name}", value, done)

    def _say(self, line: str) -> None:
        if self.writer is not None:
            print(f"{self.recipe.name} {line}", flush=True)
