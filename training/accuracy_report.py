"""`docs/accuracy.md` from the records of an evaluation: nothing in it is written by hand but the sentences."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imaging.bootstrap import RESAMPLES
from imaging.errors import ConfigurationError
from imaging.findings import RESEARCH_USE_ONLY
from imaging.froc import Froc
from models.packages import ModelPackage
from training.ablation import ablation_section
from training.accuracy_figures import (
    FALSE_POSITIVE_RATES,
    LEVEL_CLASSES,
    SIZE_CLASSES,
    Wanted,
    aims,
    at_default_threshold,
    at_least,
    auc,
    exactly,
    false_positives_without_emboli,
    froc_of,
    labelled,
    mean_over_scans,
    sensitivities,
    smaller_than,
    worst,
)
from training.case_record import CANDIDATES_FROM, FULL_CASCADE, OVERLAP, POINT, RULES, CaseRecord, point_rule
from training.evaluation_scans import ANATOMIES, GROWN, INSERTED, LABELLED, PHANTOMS, REAL
from training.froc_picture import write_froc
from training.markdown import UNKNOWN, table, with_interval
from training.recipe import Recipe

# Lesion-level results on real CTPA; what was tested on which scans differs from row to row.
_PUBLISHED = (
    (
        "CAD-PE challenge, best entry (Gonzalez 2020, arXiv 2003.13440)",
        "20 test scans, official labels",
        "0.70 at 1, 0.75 at 2",
    ),
    ("two-stage network (Yang 2019)", "the same scans, own labels, 0 mm", "0.754 at 2"),
    ("end-to-end network (Lin, MICCAI 2019)", "the same scans, 0 mm", "0.789 at 2"),
    ("2.5D network (Cano-Espinosa 2020)", "the same scans", "0.68 at 1"),
    ("AANet (Guo, MICCAI 2022)", "20 of 91 CAD-PE scans", "0.781 / 0.842 / 0.851 at 1 / 2 / 4"),
    (
        "AANet's published predictions, scored again with a second reader's labels",
        "the same 20 scans, 0 and 2 mm",
        "0.61 to 0.66 at 1, 0.72 to 0.75 at 2",
    ),
    ("ResEnc nnU-Net (Zhang 2026)", "60 scans of one hospital", "0.866 at 0.82"),
)


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """What a report is made from.

    Attributes:
        records: of one package.
        seen_in_training: names of real CT whose texture the networks were trained on.
        pictures: PNGs to show, truth beside result.
        ablations: folder of the results of ablations at training time (see training/ablation.py).
    """

    records: Sequence[CaseRecord]
    package: ModelPackage
    recipe: Recipe
    seen_in_training: Sequence[str]
    pictures: Sequence[Path]
    ablations: Path


def write_report(inputs: ReportInputs, path: Path) -> None:
    """Writes the Markdown to `path` and its pictures to `images/` beside it.

    Raises:
        ConfigurationError: the records are of another package; there is not one phantom among them.
    """
    if any(record.package_sha256 != inputs.package.sha256 for record in inputs.records):
        raise ConfigurationError(
            f"the records are not of package {inputs.package.name} version {inputs.package.version} as it is now",
            code="evaluation.records",
            remedy="evaluate this package, into a folder of its own",
        )
    full = [record for record in inputs.records if record.variant == FULL_CASCADE]
    phantoms = labelled(full, PHANTOMS)
    if not phantoms:
        raise ConfigurationError("there is no evaluated phantom among the records", code="evaluation.records")
    images = path.parent / "images"
    write_froc(images / "accuracy-froc.svg", _curves(phantoms))
    for picture in inputs.pictures:
        shutil.copyfile(picture, images / f"accuracy-{picture.name}")
    sections = [
        _opening(inputs, phantoms),
        _aims_section(full),
        _froc_section(phantoms),
        _class_section("By size", "volume", phantoms, SIZE_CLASSES),
        _class_section("By artery", "artery", phantoms, LEVEL_CLASSES),
        _threshold_section(phantoms),
        _picture_section(inputs.pictures),
        _real_section([record for record in full if record.kind == REAL], inputs.seen_in_training),
        _labelled_section("Emboli inserted into real contrast CT", labelled(full, (INSERTED,))),
        _labelled_section("Real CT with outlined emboli", labelled(full, (LABELLED,))),
        ablation_section(inputs.records, inputs.ablations),
        _published_section(phantoms),
        _method_section(inputs, phantoms),
    ]
    path.write_text("\n\n".join("\n".join(section) for section in sections if section) + "\n", encoding="utf-8")


def _curves(phantoms: Sequence[CaseRecord]) -> dict[str, Froc]:
    return {
        "0 mm": froc_of(phantoms),
        "2 mm": froc_of(phantoms, point_rule(2.0)),
        "5 mm": froc_of(phantoms, point_rule(5.0)),
        "0 mm, below 0.3 ml": froc_of(phantoms, POINT, smaller_than(0.3)),
        "masks overlap": froc_of(phantoms, OVERLAP),
    }


def _opening(inputs: ReportInputs, phantoms: Sequence[CaseRecord]) -> list[str]:
    package, data = inputs.package, inputs.recipe.data
    rich = [record for record in phantoms if record.has_emboli]
    emboli = sum(len(record.lesions or ()) for record in rich)
    grown = sum(1 for record in phantoms if record.kind == GROWN)
    built = sum(1 for record in phantoms if record.kind == ANATOMIES)
    return [
        f"# Accuracy of {package.name}, version {package.version}",
        "",
        f"**{RESEARCH_USE_ONLY}** Nearly everything below was measured on phantoms: synthetic CT with emboli in known",
        "places. It says how well the system does what it was built to do, and nothing about sensitivity or",
        "specificity in patients.",
        "",
        f"Measured on {len(phantoms)} phantoms: {len(rich)} with {emboli} emboli, {len(phantoms) - len(rich)} without.",
        f"Anatomies: {grown} grown for the purpose, {built} made of real lung, artery and vein masks that no network",
        f"was trained on. All seeds are new ({data.test_seed} and above).",
        f"Weights and settings: SHA-256 `{package.sha256}`.",
        "",
        "This file is made by",
        "",
        *(f"    {line}" for line in _command(inputs)),
        "",
        "Intervals are 95 % bootstrap intervals over scans.",
    ]


def _command(inputs: ReportInputs) -> list[str]:
    """What makes the records and this report again; folders of the reader's own are named in capitals."""
    full = [record for record in inputs.records if record.variant == FULL_CASCADE]
    phantoms = labelled(full, PHANTOMS)
    rich = sum(record.has_emboli for record in phantoms)
    compared = {record.name for record in inputs.records if record.variant != FULL_CASCADE}
    package, recipe = f"models/weights/{inputs.package.name}", f"training/recipes/{inputs.recipe.path.name}"
    folders = {"--anatomies ANATOMIES": ANATOMIES, "--real CHEST_CT": REAL, "--inserted INSERTED": INSERTED}
    folders["--labelled LABELLED"] = LABELLED
    options = [option for option, kind in folders.items() if any(record.kind == kind for record in full)]
    options += [f"--cases {rich}", f"--negatives {len(phantoms) - rich}"]
    options += [f"--variants {len(compared)}"] if compared else []
    options += [f"--seen-in-training {name}" for name in inputs.seen_in_training]
    return [f"embolens evaluate --package {package} --recipe {recipe} \\", "    " + " ".join(options)]


def _aims_section(full: Sequence[CaseRecord]) -> list[str]:
    rows = [
        (
            aim.what,
            f"{'at most' if aim.is_limit else 'at least'} {aim.bound:g}",
            with_interval(aim.measured, aim.digits),
            aim.verdict,
        )
        for aim in aims(full)
    ]
    return ["## What was aimed at", "", *table(("", "aim", "measured", ""), rows)]


def _rate_head(first: str) -> list[str]:
    return [first, "emboli", *(f"{rate:g} FP/scan" for rate in FALSE_POSITIVE_RATES)]


def _rate_row(name: str, records: Sequence[CaseRecord], rule: str, wanted: Wanted | None = None) -> list[str]:
    measured = sensitivities(records, rule, wanted)
    return [name, str(froc_of(records, rule, wanted).lesions), *(with_interval(value) for value in measured)]


def _froc_section(phantoms: Sequence[CaseRecord]) -> list[str]:
    names = {rule: f"peak within {rule} of an embolus" for rule in RULES if rule != OVERLAP}
    names |= {POINT: "peak inside an embolus (0 mm)", OVERLAP: "masks share a tenth of the smaller one"}
    return [
        "## Lesion sensitivity",
        "",
        "Sensitivity at the lowest threshold that keeps to a rate of false positives (FP) per scan, over all phantoms,",
        "those without emboli included.",
        "",
        *table(_rate_head("a candidate hits when"), [_rate_row(name, phantoms, rule) for rule, name in names.items()]),
        "",
        "![FROC curve](images/accuracy-froc.svg)",
        "",
        "At 2 and 5 mm the emboli are widened before they are compared, and neighbours that run together count as one:",
        "fewer, larger lesions, not the same ones with more tolerance. Rows are not to be subtracted from each other.",
    ]


def _class_section(title: str, first: str, phantoms: Sequence[CaseRecord], classes: Mapping[str, Wanted]) -> list[str]:
    rows = [_rate_row(name, phantoms, POINT, wanted) for name, wanted in classes.items()]
    notes = {
        "artery": "The artery is the one the embolus truly lies in, its level by the calibre of the lumen there.",
        "volume": "False positives are those of all candidates; a candidate in an embolus of another class is none.",
    }
    return [f"## {title}", "", notes[first], "", *table(_rate_head(first), rows)]


def _threshold_section(phantoms: Sequence[CaseRecord]) -> list[str]:
    groups = {
        "all": phantoms,
        "grown anatomies": [record for record in phantoms if record.kind == GROWN],
        "real anatomies": [record for record in phantoms if record.kind == ANATOMIES],
    }
    groups = {name: records for name, records in groups.items() if records}
    refused = [sum(record.scan_probability is None for record in some) for some in groups.values()]
    rows: list[list[str]] = [
        ["scans", *(str(len(some)) for some in groups.values())],
        ["of them without emboli", *(str(sum(not record.has_emboli for record in some)) for some in groups.values())],
        ["of them not analysable, their emboli missed", *(str(count) for count in refused)],
    ]
    for name, rule in (("0 mm", POINT), ("masks overlap", OVERLAP)):
        both = [at_default_threshold(some, rule) for some in groups.values()]
        rows.append([f"lesion sensitivity, {name}", *(with_interval(sensitivity) for sensitivity, _ in both)])
        rows.append([f"false positives per scan, {name}", *(with_interval(false, 2) for _, false in both)])
    measures = (
        ("false positives per embolus-free scan", false_positives_without_emboli, 2),
        ("embolus voxel Dice, mean over scans with emboli", lambda s: mean_over_scans([r.voxel_dice for r in s]), 3),
        ("artery voxel Dice, mean", lambda s: mean_over_scans([r.artery_dice for r in s]), 3),
        ("embolus voxels inside the ROI, worst scan", lambda s: worst([r.roi_recall for r in s], min), 4),
        ("ROI volume / volume of the lungs' box, mean", lambda s: mean_over_scans([r.roi_volume_ratio for r in s]), 3),
        ("ROI volume / volume of the lungs' box, largest", lambda s: worst([r.roi_volume_ratio for r in s], max), 3),
        ("scan AUC", auc, 3),
        ("seconds per scan, median", lambda s: exactly(float(np.median([r.seconds for r in s]))), 1),
    )
    rows += [
        [name, *(with_interval(measure(some), digits) for some in groups.values())]
        for name, measure, digits in measures
    ]
    return ["## At the default threshold", "", *table(["", *groups], rows)]


def _picture_section(pictures: Sequence[Path]) -> list[str]:
    if not pictures:
        return []
    shown = [f"![{picture.stem}](images/accuracy-{picture.name})" for picture in pictures]
    return [
        "## Pictures",
        "",
        "Left the truth (green), right what was found (red; candidates below the threshold amber), each in the slice",
        "with most embolus in it. The first scans of the list, not chosen.",
        "",
        *(line for picture in shown for line in (picture, "")),
    ][:-1]


def _real_section(real: Sequence[CaseRecord], seen_in_training: Sequence[str]) -> list[str]:
    if not real:
        return []
    rows = []
    for record in real:
        analysed = record.scan_probability is not None
        findings = "; ".join(
            f"{candidate.volume_ml:.2f} ml, {candidate.level}, score {candidate.score:.3f} at "
            f"({', '.join(f'{value:.0f}' for value in candidate.peak_lps_mm)})"
            for candidate in record.reported
        )
        rows.append((
            f"`{record.name}`",
            "yes" if record.name in seen_in_training else "no",
            str(len(record.reported)) if analysed else f"not analysable: {', '.join(record.reasons)}",
            UNKNOWN if record.artery_dice is None else f"{record.artery_dice:.3f}",
            UNKNOWN if record.artery_recall is None else f"{record.artery_recall:.3f}",
            findings or UNKNOWN,
        ))  # fmt: skip
    return [
        "## Real chest CT",
        "",
        "Public chest CT without a known embolus: whatever is reported is most likely false. The artery mask compared",
        "with is itself a network's (TotalSegmentator) and ends at the hilum, so that a right branch beyond it counts",
        "against the Dice; the recall is the share of that mask that was found. Positions are patient coordinates",
        "(L, P, S) in mm.",
        "",
        *table(
            ("scan", "texture seen in training", "findings", "artery Dice", "artery recall", "what and where"), rows
        ),
    ]


def _labelled_section(title: str, records: Sequence[CaseRecord]) -> list[str]:
    if not records:
        return []
    classes: dict[str, Wanted | None] = {
        "all": None, "0.5 ml and more": at_least(0.5), "below 0.5 ml": smaller_than(0.5),
    }  # fmt: skip
    sensitivity, false = at_default_threshold(records)
    return [
        f"## {title}",
        "",
        f"{len(records)} scans, {sum(len(record.lesions or ()) for record in records)} emboli. At the default",
        f"threshold sensitivity {with_interval(sensitivity)}, {with_interval(false, 2)} false positives per scan.",
        "",
        *table(_rate_head("volume"), [_rate_row(name, records, POINT, wanted) for name, wanted in classes.items()]),
    ]


def _published_section(phantoms: Sequence[CaseRecord]) -> list[str]:
    at_1, at_2, at_4 = sensitivities(phantoms, rates=(1.0, 2.0, 4.0))
    ours = f"{at_1.value:.3f} / {at_2.value:.3f} / {at_4.value:.3f} at 1 / 2 / 4"
    return [
        "## Published figures",
        "",
        "**The figures here and the published ones are not comparable**: these are of phantoms, those of patients,",
        "whose emboli, anatomy and image quality no phantom matches. They stand side by side so that nobody has to",
        "look them up, not to be ranked.",
        "",
        *table(
            ("", "tested on", "lesion sensitivity at false positives per scan"),
            [*_PUBLISHED, ("this package", "phantoms, 0 mm", ours)],
        ),
    ]


def _method_section(inputs: ReportInputs, phantoms: Sequence[CaseRecord]) -> list[str]:
    seconds = float(np.median([record.seconds for record in phantoms]))
    notes = [f"- {note}" for note in inputs.recipe.notes]
    return [
        "## How it was measured, and what it leaves out",
        "",
        "- Lesions and candidates follow the CAD-PE challenge: a candidate is its most probable voxel and a score; a",
        "  second one in the same embolus counts neither way. Candidates are listed down to a score of "
        f"{CANDIDATES_FROM:g}: a curve",
        "  ends where they end.",
        "- Phantoms for the curves hold more emboli than patients do, so that a few dozen scans measure something.",
        f"- Intervals come from drawing scans anew ({RESAMPLES} times, one fixed seed). They tell how far other",
        "  phantoms of the same kind would move a figure; not how far another training would, nor other patients.",
        "  Where every scan agrees (all found, none false) the interval has no width, which is not certainty.",
        "- The truth of a phantom is exact. The truth in patients is not: two readers of the same CAD-PE scans differ.",
        f"- The cascade took {seconds:.0f} s for a scan (median) on the machine this was run on; making the phantom",
        "  comes on top.",
        *notes,
    ]
