"""AANet in windows over a lung box: ours beside MONAI's inferer and the published AANet scheme, same weights."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import flops_of, matrix_flops_per_s, version
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.side_by_side import console, seconds, side_by_side
from imaging.geometry import Box, cropped
from imaging.lesions import FoundLesions, find_lesions
from imaging.metrics import voxel_dice
from imaging.phantom import make_phantom
from imaging.volume import CtVolume, Hu, Mask, Probability
from imaging.windows import aanet_input
from models.aanet import EmbolusAndArtery
from models.cascade import Cascade
from models.sliding_window import fitted_windows

_SHAPE_ZYX = (300, 360, 360)
_LUNG_BOXES_MM = ((177, 169, 217), (226, 202, 262), (282, 239, 316))
_PUBLISHED_WINDOW, _PUBLISHED_OVERLAP, _PUBLISHED_BATCH = 128, 32, 4
_CERTAIN = 1e-6
_OUR_PLACES = "placed the same"
_HOW = """\
A phantom with 5 emboli on the working grid (1 mm, what a 400-slice series is resampled to); the networks look into the
lung box that the shipped detector finds in it, {box} voxels. Timed is half of the box, the right lung's, so that a
round is short; Dice and lesions are of one pass over all of it. All use one AANet (weights phantom-v3, standardised
once, without the vein head) and {threads} threads. Ours is what the cascade runs: windows of at most {window} voxels a
side with at least {overlap:.1%} overlap, fitted to the box, left out where no lung or vessel is, {backend} in bf16.
MONAI's `SlidingWindowInferer` runs eager float32 with the same largest window and overlap ({monai}).
The published scheme is AANet's (window 128, overlap 32, batch 4, weights by the distance to a face), written after its
description, eager float32. The network's FLOPs are {kflop:.0f} k per voxel. A large matrix product is {gain:.1f} times
as fast in bf16 as in float32 on this processor; all else has to come from fewer voxels and less waiting for memory.

Dice and lesions compare what becomes of the box when the rest of the cascade (2D network, fusion, artery gate, lesions
at the default thresholds) is the same. Lesions are the same where there are as many and each overlaps its counterpart.
The network's group norms take their statistics from the whole window, so that windows placed otherwise answer otherwise
in float32 too, and the two float32 ways differ from each other: the others of each row. "Placed the same" is eager
float32 in our own windows, which leaves only the arithmetic.
{graphics} {versions}.
"""

Answer = tuple[Tensor, Tensor]  # embolus and artery logits, (z, y, x)


@dataclass(frozen=True)
class _Scan:
    """A phantom's lung box on the working grid."""

    cascade: Cascade
    part: CtVolume
    embolus: Mask
    unet_logits: Tensor

    @property
    def volume(self) -> Tensor:
        return torch.from_numpy(aanet_input(self.part.hu))

    def ours(self, cascade: Cascade | None = None, half: Hu | None = None) -> Answer:
        """Of the whole box, or of a part of it."""
        hu = self.part.hu if half is None else half
        with torch.inference_mode():
            return (cascade or self.cascade).volume_logits(hu, lambda share: None)

    def emboli(self, answer: Answer) -> tuple[Probability, FoundLesions]:
        """What the cascade makes of AANet's answer."""
        cascade = self.cascade
        artery = torch.sigmoid(answer[1])
        probability = cascade._fused(self.unet_logits, answer[0], artery)
        mask = artery.numpy() > cascade._artery_threshold
        return probability, find_lesions(probability, mask, self.part, cascade._thresholds, min_score=None)


def measure(rounds: int) -> Page:
    scan = _scan()
    cascade = scan.cascade
    aanet = cascade._aanet
    assert aanet is not None
    eager = copy.deepcopy(aanet.network).float()
    window, overlap = cascade._window_zyx, cascade._overlap
    monai, choice = _best_monai(eager, scan.volume, window, overlap)
    half = scan.part.hu[:, :, : scan.part.shape_zyx[2] // 2]
    half_volume = torch.from_numpy(aanet_input(half))
    scan.ours(half=half)  # compiled for its windows
    times = side_by_side(
        {
            "Embolens": seconds(lambda: scan.ours(half=half)),
            "MONAI": seconds(lambda: monai(half_volume)),
            "published scheme": seconds(lambda: _published(half_volume, eager)),
        },
        rounds=rounds,
        warm_up=False,
    )
    answers = {
        "Embolens": scan.ours(),
        "MONAI": _logits(monai(scan.volume)),
        "published scheme": _logits(_published(scan.volume, eager)),
        _OUR_PLACES: scan.ours(_plain(cascade, eager)),
    }
    flops_per_voxel = flops_of(eager, (1, 1, 64, 64, 64)) / 64**3
    bf16_rate = matrix_flops_per_s(torch.bfloat16)
    floor = Floor(
        value=flops_per_voxel * half_volume.numel() / bf16_rate,
        why="FLOPs of the box's voxels, once, over the measured bf16 matrix rate",
    )
    timed = Row(
        what="AANet over the right half of a lung box",
        unit="s",
        higher_is_better=False,
        ours=times.pop("Embolens"),
        others=tuple(times.values()),
        floor=floor,
    )
    goals = [_at_least(timed, name, factor) for name, factor in (("MONAI", 8), ("published scheme", 10))]
    rows = [timed.model_copy(update={"goals": tuple(goals)}), *_agreement(scan, answers)]
    if torch.cuda.is_available():
        rows.append(_on_gpu(scan, eager, rounds))
    how = _HOW.format(
        box=" x ".join(map(str, scan.part.shape_zyx)),
        threads=torch.get_num_threads(),
        window=max(window),
        overlap=overlap,
        backend=aanet.backend,
        monai=choice,
        kflop=flops_per_voxel / 1000,
        gain=bf16_rate / matrix_flops_per_s(torch.float32),
        graphics="" if torch.cuda.is_available() else "This machine has no GPU, so none was measured.",
        versions=", ".join(map(version, ("monai", "torch", "openvino"))),
    )
    title = "Sliding-window inference in 3D"
    return Page(title=title, how=how, rows=tuple(rows), growths=_growths(window, overlap))


def _scan() -> _Scan:
    phantom = make_phantom(100_007, shape_zyx=_SHAPE_ZYX, spacing_zyx_mm=(1.0, 1.0, 1.0), emboli=5)
    cascade = Cascade.load(device="cpu")
    with torch.inference_mode():
        box: Box = cascade._region(phantom.volume, lambda share: None).box
        part = cropped(phantom.volume, box)
        part = CtVolume(np.ascontiguousarray(part.hu), part.affine_lps.copy())
        unet_logits = cascade.unet_logits(cascade.slice_logits(part.hu, lambda share: None))
    return _Scan(cascade, part, phantom.embolus_labelmap[box.slices] > 0, unet_logits)


def _best_monai(
    network: torch.nn.Module, volume: Tensor, window: Sequence[int], overlap: float
) -> tuple[Callable[[Tensor], Tensor], str]:
    """MONAI with the batch and blending that were fastest on two windows, and what those are."""
    sample = volume[: window[0], : window[1], : 2 * window[2] - 16]
    best = (math.inf, 1, "constant")
    for batch, mode in itertools.product((1, 2, 4), ("constant", "gaussian")):
        run = _monai(network, window, overlap, batch, mode)
        took = seconds(lambda run=run: run(sample))()  # type: ignore[misc]
        console.print(f"  MONAI batch {batch}, {mode}: {took:.3g} s", highlight=False)
        best = min(best, (took, batch, mode))
    _, batch, mode = best
    return _monai(network, window, overlap, batch, mode), f"{mode}, sw_batch_size {batch}, the fastest of 1, 2 and 4"


def _monai(
    network: torch.nn.Module, window: Sequence[int], overlap: float, batch: int, mode: str
) -> Callable[[Tensor], Tensor]:
    """(z, y, x) -> probabilities (2, z, y, x)."""
    from monai.inferers.inferer import SlidingWindowInferer  # a peer: of `make bench` alone

    inferer = SlidingWindowInferer(roi_size=window, sw_batch_size=batch, overlap=overlap, mode=mode)

    def run(volume: Tensor) -> Tensor:
        with torch.inference_mode():
            answer = inferer(volume[None, None], lambda windows: torch.sigmoid(network(windows)))
            assert isinstance(answer, Tensor)
            return answer[0]

    return run


def _published(volume: Tensor, network: torch.nn.Module) -> Tensor:
    """AANet's own inference: probabilities (2, z, y, x)."""
    size, step = _PUBLISHED_WINDOW, _PUBLISHED_WINDOW - _PUBLISHED_OVERLAP
    padded = F.pad(volume, [n for extent in reversed(volume.shape) for n in (0, max(size - extent, -extent % 4))])
    z, y, x = (torch.minimum(torch.arange(size), torch.arange(size).flip(0)) for _ in range(3))
    nearest = torch.minimum(torch.minimum(z[:, None, None], y[None, :, None]), x[None, None, :])
    weight = nearest.clamp(max=_PUBLISHED_OVERLAP) / _PUBLISHED_OVERLAP
    total, weights = torch.zeros(2, *padded.shape), torch.full(padded.shape, _CERTAIN)
    places = [
        (slice(None), *(slice(start, start + size) for start in starts))
        for starts in itertools.product(*(_published_starts(extent, size, step) for extent in padded.shape))
    ]
    with torch.inference_mode():
        for chosen in (places[n : n + _PUBLISHED_BATCH] for n in range(0, len(places), _PUBLISHED_BATCH)):
            probabilities = torch.sigmoid(network(torch.stack([padded[None][place] for place in chosen])))
            for place, probability in zip(chosen, probabilities, strict=True):
                total[place] += probability * weight
                weights[place[1:]] += weight
    return (total / weights)[(slice(None), *(slice(0, extent) for extent in volume.shape))]


def _published_starts(extent: int, size: int, step: int) -> Iterator[int]:
    yield from range(0, max(0, extent - size), step)
    yield max(0, extent - size) // 4 * 4


def _logits(probabilities: Tensor) -> Answer:
    logits = torch.logit(probabilities, eps=_CERTAIN)
    return logits[0], logits[1]


def _plain(cascade: Cascade, eager: torch.nn.Module) -> Cascade:
    """The same cascade whose AANet runs eagerly in float32."""
    plain = copy.copy(cascade)
    eager.at_once = 1  # type: ignore[assignment]
    plain._aanet = eager  # type: ignore[assignment]
    return plain


def _at_least(row: Row, name: str, factor: float) -> Goal:
    other = next(figure for figure in row.others if figure.name == name)
    ratio = row.times_better_than(other)
    return Goal(says=f"{factor} x {name} ({ratio:.2f} x)", met=ratio >= factor)


def _agreement(scan: _Scan, answers: dict[str, Answer]) -> Iterator[Row]:
    found = {name: scan.emboli(answer) for name, answer in answers.items()}
    threshold = scan.cascade._thresholds.voxel
    masks = {name: probability >= threshold for name, (probability, _) in found.items()}
    ours = masks.pop("Embolens")
    for name, mask in masks.items():
        dice = voxel_dice(ours, mask)
        row = _counted(f"voxel Dice with {name}", "Dice", dice, (Goal(says="at least 0.99", met=dice >= 0.99),))
        elsewhere = [other for other in masks if other not in (name, _OUR_PLACES)]
        figures = [Figure(name=other, samples=(voxel_dice(masks[other], mask),)) for other in elsewhere]
        yield row.model_copy(update={"others": tuple(figures)})
    against_truth = [Figure(name=name, samples=(voxel_dice(mask, scan.embolus),)) for name, mask in masks.items()]
    truth = _counted("voxel Dice with the inserted emboli", "Dice", voxel_dice(ours, scan.embolus))
    yield truth.model_copy(update={"others": tuple(against_truth)})
    lesions = found.pop("Embolens")[1]
    for name, (_, others) in found.items():
        same = _same_lesions(lesions, others)
        goal = Goal(says=f"the same as {len(others.lesions)} by {name}", met=same == len(others.lesions))
        yield _counted(f"lesions shared with {name}", "lesions", same, (goal,))


def _same_lesions(ours: FoundLesions, theirs: FoundLesions) -> int:
    """Lesions that overlap one counterpart and nothing else; all of them where the lists are the same."""
    both = (ours.labelmap > 0) & (theirs.labelmap > 0)
    pairs = {(int(a), int(b)) for a, b in np.unique(np.stack((ours.labelmap[both], theirs.labelmap[both]), 1), axis=0)}
    alone = [pair for pair in pairs if sum(pair[0] == a or pair[1] == b for a, b in pairs) == 1]
    return len(alone) if len(ours.lesions) == len(theirs.lesions) else min(len(alone), len(theirs.lesions) - 1)


def _counted(what: str, unit: str, value: float, goals: tuple[Goal, ...] = ()) -> Row:
    figure = Figure(name="Embolens", samples=(value,))
    return Row(what=what, unit=unit, higher_is_better=True, ours=figure, goals=goals)


def _on_gpu(scan: _Scan, eager: torch.nn.Module, rounds: int) -> Row:
    """Ours beside MONAI with AMP, the volume and its blending on the GPU."""
    cascade = Cascade.load(device="cuda")
    network = copy.deepcopy(eager).cuda()
    assert isinstance(network, EmbolusAndArtery)
    volume = scan.volume.cuda()

    def on_gpu(run: Callable[[], object]) -> Callable[[], float]:
        def timed() -> float:
            torch.cuda.synchronize()
            begun = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                run()
            torch.cuda.synchronize()
            return time.perf_counter() - begun

        return timed

    ways = {"Embolens": on_gpu(lambda: scan.ours(cascade))}
    for batch in (1, 4, 8):
        run = _monai(network, cascade._window_zyx, cascade._overlap, batch, "constant")
        ways[f"MONAI AMP, {batch} windows at once"] = on_gpu(lambda run=run: run(volume))  # type: ignore[misc]
    times = side_by_side(ways, rounds=rounds)
    row = Row(
        what="AANet over a lung box, GPU",
        unit="s",
        higher_is_better=False,
        ours=times.pop("Embolens"),
        others=tuple(times.values()),
    )
    assert row.best_other is not None
    return row.model_copy(update={"goals": (_at_least(row, row.best_other.name, 3),)})


def _growths(window: Sequence[int], overlap: float) -> tuple[Growth, ...]:
    """Voxels through the network, by the size of the lung box; counted, windows without lung or vessel included."""

    def fitted(box: Sequence[int]) -> float:
        axes = (fitted_windows(extent, size, overlap) for extent, size in zip(box, window, strict=True))
        return math.prod(size * len(starts) for size, starts in axes)

    def fixed(box: Sequence[int], size: int, step: int) -> float:
        return math.prod(size * (math.ceil(max(0, extent - size) / step) + 1) for extent in box)

    schemes: dict[str, Callable[[Sequence[int]], float]] = {
        "fitted windows (ours)": fitted,
        "MONAI, same window and overlap": lambda box: fixed(box, window[0], int(window[0] * (1 - overlap))),
        "published, 128 overlapping by 32": lambda box: fixed(box, 128, 96),
    }
    return tuple(
        Growth(
            what=f"voxels computed, {name}",
            size="million voxels of the lung box",
            unit="million",
            points=tuple((math.prod(box) / 1e6, scheme(box) / 1e6) for box in _LUNG_BOXES_MM),
            explanation="; ".join(f"{scheme(box) / math.prod(box):.2f} x the box" for box in _LUNG_BOXES_MM)
            + ": the 5th, 50th and 95th percentile of each side in 58 patients",
        )
        for name, scheme in schemes.items()
    )
