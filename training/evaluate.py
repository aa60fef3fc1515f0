"""Runs a package on scans nothing was trained on, and writes one JSON line for each; the tables come from those.

`embolens evaluate` is the command. Shards of one evaluation may run at once, and one that was cut short goes on where
it stopped: every line is a scan done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imaging.errors import ConfigurationError, NotAnalysable
from imaging.geometry import Box, to_canonical
from models.cascade import Cascade
from models.darknet.network import DarknetNetwork
from models.packages import ModelPackage, load_network
from models.roi import RoiSettings, find_lungs
from training.case_record import CANDIDATES_FROM, FULL_CASCADE, OVERLAP, CaseRecord, judged, not_analysed
from training.comparison_picture import write_comparison
from training.evaluation_scans import ANATOMIES, GROWN, PHANTOMS, EvaluationScan, PlannedScan, phantom_scans
from training.recipe import Recipe

SIZE_CLASSES_ML = ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0), (1.0, 10.0), (10.0, float("inf")))


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th scan from the `index`-th."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Raises ConfigurationError unless it reads i/n with 0 <= i < n."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigurationError(f"shard {text!r}", code="evaluation.shard", remedy="write 0/3, 1/3, 2/3")
        return cls(int(index), int(count))


def record_scans(
    cascades: Mapping[str, Cascade], planned: Sequence[PlannedScan], folder: Path, *, shard: Shard, pictures: int = 0
) -> None:
    """Runs every cascade (by variant name) on this shard's scans and appends to the shard's file in `folder`.

    Args:
        pictures: of each kind's first scans, the full cascade's result is drawn beside the truth.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cases-{shard.index}-of-{shard.count}.jsonl"
    _drop_unfinished_line(path)
    done = _recorded(folder)
    drawn = {name for kind in {plan.kind for plan in planned} for name in _first_names(planned, kind, pictures)}
    with path.open("a", encoding="utf-8") as file:
        for plan in planned[shard.index :: shard.count]:
            missing = {variant: cascade for variant, cascade in cascades.items() if (variant, plan.name) not in done}
            picture = folder / f"{plan.kind}-{plan.name}.png" if plan.name in drawn else None
            for record in _records_of(plan, missing, picture):
                file.write(record.to_json() + "\n")
                file.flush()
                print(_line(record), flush=True)


def _drop_unfinished_line(path: Path) -> None:
    if path.is_file():
        content = path.read_bytes()
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def _recorded(folder: Path) -> set[tuple[str, str]]:
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text("utf-8").splitlines(keepends=True)]
    contents = [json.loads(line) for line in lines if line.endswith("\n")]
    return {(content["variant"], content["name"]) for content in contents}


def _first_names(planned: Sequence[PlannedScan], kind: str, count: int) -> list[str]:
    return [plan.name for plan in planned if plan.kind == kind][:count]


def _records_of(plan: PlannedScan, cascades: Mapping[str, Cascade], picture: Path | None) -> Iterable[CaseRecord]:
    scan: EvaluationScan | NotAnalysable | None = None
    for variant, cascade in cascades.items():
        if scan is None:
            try:
                scan = plan.load()
            except NotAnalysable as refusal:
                scan = refusal
        if isinstance(scan, NotAnalysable):
            sha256 = cascade.package.sha256
            yield not_analysed(plan.name, plan.kind, scan, package_sha256=sha256, variant=variant)
        else:
            yield evaluate_scan(cascade, scan, variant=variant, picture=picture)


def evaluate_scan(
    cascade: Cascade, scan: EvaluationScan, *, variant: str = FULL_CASCADE, picture: Path | None = None
) -> CaseRecord:
    """Runs a cascade on a scan and compares with what is known about it."""
    sha256 = cascade.package.sha256
    region = region_of_interest(cascade.package, scan) if variant == FULL_CASCADE else None
    try:
        result = cascade.segment(scan.volume, min_score=CANDIDATES_FROM)
    except NotAnalysable as refusal:
        return not_analysed(
            scan.name, scan.kind, refusal, package_sha256=sha256, variant=variant, scan=scan, region=region
        )
    if picture is not None and variant == FULL_CASCADE:
        write_comparison(scan, result, picture)
    return judged(scan, result, region, package_sha256=sha256, variant=variant)


def region_of_interest(package: ModelPackage, scan: EvaluationScan) -> Box | None:
    """Where the package's detector sees the lungs, on the canonical grid; None where it sees none."""
    detector = load_network(package, "roi")
    if not isinstance(detector, DarknetNetwork):
        raise ConfigurationError(f"network roi of {package.name} is a {type(detector).__name__}, not a detector")
    canonical, _ = to_canonical(scan.volume)
    settings = RoiSettings(**package.settings["roi"])
    try:
        return find_lungs(detector.eval(), canonical, settings, lambda fraction: None).box
    except NotAnalysable:
        return None


def _line(record: CaseRecord) -> str:
    if record.scan_probability is None:
        return f"{record.variant}  {record.kind} {record.name}: not analysable ({', '.join(record.reasons)})"
    emboli = "?" if record.lesions is None else str(len(record.lesions))
    dice = "" if record.voxel_dice is None else f", Dice {record.voxel_dice:.3f}"
    artery = "" if record.artery_dice is None else f", artery {record.artery_dice:.3f}"
    return (
        f"{record.variant}  {record.kind} {record.name}: {emboli} emboli, {len(record.reported)} reported of "
        f"{len(record.candidates)} candidates{dice}{artery}, {record.seconds:.0f} s"
    )


def evaluate(recipe: Recipe, package: Path, anatomies: Path | None, count: int, threads: int = 1) -> dict[str, Any]:
    """The model card's figures on `count` test phantoms, one in four of them without emboli."""
    cascade = Cascade.load(package, device="cpu", threads=threads)
    records = []
    for plan in phantom_scans(recipe, anatomies, count - count // 4, count // 4):
        records.append(evaluate_scan(cascade, plan.load()))
        print(_line(records[-1]), flush=True)
    return card_figures(records)


def card_figures(records: Iterable[CaseRecord]) -> dict[str, Any]:
    """`summary` of all phantoms, of the grown ones, and of those on held-out anatomies."""
    phantoms = [record for record in records if record.kind in PHANTOMS and record.variant == FULL_CASCADE]
    kinds = {kind: [record for record in phantoms if record.kind == kind] for kind in (GROWN, ANATOMIES)}
    return {"all": summary(phantoms), **{kind: summary(some) for kind, some in kinds.items() if some}}


def summary(records: Sequence[CaseRecord]) -> dict[str, Any]:
    """Figures at the package's thresholds, lesions matched by overlap; sensitivity as [found, inserted] by size."""
    sensitivity = {}
    for low, high in SIZE_CLASSES_ML:
        inserted = [
            lesion.label in _found_labels(record)
            for record in records
            for lesion in record.lesions or ()
            if low <= lesion.volume_ml < high
        ]
        sensitivity[f"{low:g}-{high:g} ml"] = [sum(inserted), len(inserted)]
    false = [sum(1 for candidate in record.reported if not candidate.hits[OVERLAP]) for record in records]
    return {
        "scans": len(records),
        "emboli": sum(len(record.lesions or ()) for record in records),
        "lesion_sensitivity_by_size": sensitivity,
        "false_positives_per_scan": round(sum(false) / len(records), 2),
        "voxel_dice_mean": _mean([record.voxel_dice for record in records]),
        "artery_dice_mean": _mean([record.artery_dice for record in records]),
        "roi_recall_min": min((r.roi_recall for r in records if r.roi_recall is not None), default=None),
        "seconds_median": round(float(np.median([record.seconds for record in records])), 1),
    }


def _found_labels(record: CaseRecord) -> set[int]:
    return {label for candidate in record.reported for label in candidate.hits[OVERLAP]}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 3) if known else None
