"""What each part adds: the cascade without it, on the same scans.

Parts that are chosen when the cascade runs are switched off (training/cascade_variants.py). What is chosen when a
network is trained (a sampling measure, a loss, an average of weights) is measured by the training that compares it,
which leaves its result in a JSON file: an object, or a list of them, with the fields of `TrainingResult`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imaging.bootstrap import Estimate, Weights, estimates, weighted_mean
from imaging.errors import ConfigurationError
from imaging.froc import Froc
from training.accuracy_figures import FALSE_POSITIVE_RATES, froc_of, labelled, mean_over_scans
from training.case_record import FULL_CASCADE, CaseRecord
from training.evaluation_scans import PHANTOMS
from training.markdown import UNKNOWN, table, with_interval

ENSEMBLE = "UNets together, learnt weights"
UNET_ALONE = "UNet {} alone"
_RATES = (1.0, 2.0)
FEWEST_FOR_A_VERDICT = 10  # scans; an interval over fewer says little


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """One row of an ablation at training time.

    Attributes:
        name: what was done: "without copy-paste", "EMA".
        metric: what was measured: "lesion sensitivity at 2 FP/scan".
        interval: 95 %, None where it was not estimated.
        steps, seconds: of the training, so that a reader sees how small it was.
    """

    name: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    steps: int
    seconds: float


def ablation_section(records: Sequence[CaseRecord], training_results: Path) -> list[str]:
    """The report's section on what each part adds; empty where nothing was measured."""
    lines = [*_cascade_lines(_on_common_scans(records)), *_training_lines(training_results)]
    return ["## What each part adds", "", *lines] if lines else []


def _on_common_scans(records: Sequence[CaseRecord]) -> dict[str, list[CaseRecord]]:
    """By variant the labelled phantoms that every variant was run on, in one order: that makes differences paired."""
    by_variant: dict[str, dict[str, CaseRecord]] = {}
    for record in labelled(records, PHANTOMS):
        by_variant.setdefault(record.variant, {})[record.name] = record
    if FULL_CASCADE not in by_variant or len(by_variant) < 2:
        return {}
    common = sorted(set.intersection(*(set(scans) for scans in by_variant.values())))
    return {variant: [scans[name] for name in common] for variant, scans in by_variant.items()} if common else {}


def _cascade_lines(variants: Mapping[str, Sequence[CaseRecord]]) -> list[str]:
    if not variants:
        return []
    full = variants[FULL_CASCADE]
    rows = []
    for name in sorted(variants, key=lambda variant: (variant != FULL_CASCADE, variant)):
        records = variants[name]
        at_1, at_2, average = _sensitivity_figures(records)
        difference = [UNKNOWN] * 3 if name == FULL_CASCADE else [
            with_interval(value, signed=True) for value in differences(records, full)
        ]  # fmt: skip
        rows.append((
            name,
            *(with_interval(value) for value in (at_1, at_2, average)),
            with_interval(mean_over_scans([record.voxel_dice for record in records])),
            *difference,
            f"{float(np.median([record.seconds for record in records])):.1f}",
        ))  # fmt: skip
    rates = ", ".join(f"{rate:g}" for rate in FALSE_POSITIVE_RATES)
    return [
        f"{len(full)} phantoms with {froc_of(full).lesions} emboli, the same ones for every row. All else is the",
        "package as it is: thresholds and fusion were fitted for the full cascade, so read the columns of sensitivity,",
        f"which need no threshold, before Dice, which does. Mean sensitivity: over {rates} false positives per scan.",
        "Differences are to the full cascade, paired by scan.",
        "",
        *table(
            (
                "", "at 1 FP/scan", "at 2 FP/scan", "mean sensitivity", "voxel Dice",
                "difference at 1", "difference at 2", "difference of the mean", "seconds",
            ),
            rows,
        ),
        *_ensemble_lines(variants),
    ]  # fmt: skip


def _sensitivity_figures(records: Sequence[CaseRecord]) -> tuple[Estimate, ...]:
    froc = froc_of(records)
    return estimates(lambda weights: _at_1_at_2_mean(froc, weights), len(records))


def _at_1_at_2_mean(froc: Froc, weights: Weights) -> list[float]:
    return [*froc.sensitivity_at(_RATES, weights), float(np.mean(froc.sensitivity_at(FALSE_POSITIVE_RATES, weights)))]


def differences(records: Sequence[CaseRecord], reference: Sequence[CaseRecord]) -> tuple[Estimate, ...]:
    """`records` less `reference`, scan by scan the same: sensitivity at 1 and 2 FP per scan, and its mean.

    Raises:
        ConfigurationError: they are not of the same scans.
    """
    if [record.name for record in records] != [record.name for record in reference]:
        raise ConfigurationError("differences need the same scans in the same order", code="evaluation.pairs")
    one, other = froc_of(records), froc_of(reference)

    def difference(weights: Weights) -> list[float]:
        pairs = zip(_at_1_at_2_mean(one, weights), _at_1_at_2_mean(other, weights), strict=True)
        return [a - b for a, b in pairs]

    return estimates(difference, len(records))


def _dice_difference(records: Sequence[CaseRecord], reference: Sequence[CaseRecord]) -> Estimate:
    gains = [
        float("nan") if one.voxel_dice is None or other.voxel_dice is None else one.voxel_dice - other.voxel_dice
        for one, other in zip(records, reference, strict=True)
    ]
    (estimate,) = estimates(lambda weights: [weighted_mean(gains, weights)], len(gains))
    return estimate


def _ensemble_lines(variants: Mapping[str, Sequence[CaseRecord]]) -> list[str]:
    """The claim that an ensemble of two UNets gains 8 to 10 %, answered with what it gains here."""
    together = variants.get(ENSEMBLE)
    head, tail = UNET_ALONE.split("{}")
    members = {name: records for name, records in variants.items() if name.startswith(head) and name.endswith(tail)}
    if together is None or not members:
        return []
    rows = []
    for name, records in members.items():
        gains = (*differences(together, records), _dice_difference(together, records))
        rows.append((f"over {name}", *(with_interval(gain, signed=True) for gain in gains)))
    means = {name: _sensitivity_figures(records)[2].value for name, records in members.items()}
    better = max(means, key=lambda name: means[name])
    gain = differences(together, members[better])[2]
    verdict = "is borne out" if gain.low >= 0.08 else "is not borne out" if gain.high < 0.08 else "is left open"
    if len(together) < FEWEST_FOR_A_VERDICT:
        verdict = f"is left open by {len(together)} phantoms"
    return [
        "",
        "Gain of the two UNets together over each alone, without AANet:",
        "",
        *table(("", "at 1 FP/scan", "at 2 FP/scan", "mean sensitivity", "voxel Dice"), rows),
        "",
        "The claim made for such an ensemble is a gain of 8 to 10 %. Over the better of its members the mean",
        f"sensitivity gains {with_interval(gain, signed=True)} here, and voxel Dice",
        f"{with_interval(_dice_difference(together, members[better]), signed=True)}. A gain in sensitivity of at least",
        f"0.08 {verdict}.",
    ]


def read_training_results(folder: Path) -> dict[str, list[TrainingResult]]:
    """By file name, what each ablation at training time found.

    Raises:
        ConfigurationError: a file is not what this module's head describes.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = content if isinstance(content, list) else [content]
            results[path.stem] = [_training_result(row) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"ablation {path}: {error!r}", code="evaluation.ablation", remedy="see training/ablation.py"
            ) from error
    return results


def _training_result(row: Mapping[str, Any]) -> TrainingResult:
    interval = row["interval"]
    return TrainingResult(
        name=str(row["name"]),
        metric=str(row["metric"]),
        value=float(row["value"]),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        steps=int(row["steps"]),
        seconds=float(row["seconds"]),
    )


def _training_lines(folder: Path) -> list[str]:
    results = read_training_results(folder)
    if not results:
        return []
    rows = [
        (name if index == 0 else "", one.name, one.metric, _measured(one), f"{one.steps}", f"{one.seconds / 60:.0f}")
        for name, some in results.items()
        for index, one in enumerate(some)
    ]
    return [
        "",
        "Measures of training, each judged by a training with it and one without, shorter than those of the package:",
        "",
        *table(("", "", "metric", "value", "steps", "minutes"), rows),
    ]


def _measured(result: TrainingResult) -> str:
    low, high = result.interval or (float("nan"), float("nan"))
    return with_interval(Estimate(result.value, low, high))
