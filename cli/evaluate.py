"""`embolens evaluate`: how good a package is, and the report that says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.evaluate import Shard
    from training.evaluation_scans import PlannedScan
    from training.recipe import Recipe


def evaluate(
    package: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Model package to judge.")],
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The recipe it was trained by.")],
    anatomies: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Label maps; the recipe's held-out ones are used."),
    ] = None,
    cases: Annotated[int, typer.Option(min=0, help="Phantoms rich in emboli.")] = 40,
    negatives: Annotated[int, typer.Option(min=0, help="Phantoms without emboli.")] = 20,
    real: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Chest CT without known emboli, one entry each.")
    ] = None,
    inserted: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Real CT with inserted emboli: folders of NIfTI.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Real CT with outlined emboli: folders of NIfTI.")
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of one JSON line per scan; what is in it is not redone."),
    ] = None,
    shard: Annotated[str, typer.Option(help="i/n: every n-th scan from the i-th; then --report-only.")] = "0/1",
    report_only: Annotated[bool, typer.Option("--report-only", help="Make the report from the records.")] = False,
    output: Annotated[Path, typer.Option(dir_okay=False, help="The report.")] = Path("docs/accuracy.md"),
    ablations: Annotated[
        Path, typer.Option(file_okay=False, help="Results (*.json) of ablations at training time.")
    ] = Path("training/ablations"),
    seen_in_training: Annotated[
        list[str] | None, typer.Option(help="Name of a real CT whose texture was trained on; may be repeated.")
    ] = None,
    variants: Annotated[
        int, typer.Option(min=0, help="Phantoms on which the cascade also runs with each of its parts switched off.")
    ] = 0,
    pictures: Annotated[int, typer.Option(min=0, help="Scans of each kind to draw.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
) -> None:
    """Judge a model package on scans it was not trained on. An evaluation cut short goes on where it stopped."""
    from training.evaluate import Shard
    from training.recipe import Recipe

    judged_by = Recipe.read(recipe)
    part = Shard.parse(shard)
    folder = records or Path(".training/evaluation") / package.resolve().name
    if not report_only:
        planned = _planned(judged_by, anatomies, cases, negatives, real, inserted, labelled)
        _record(package, planned, folder, part, variants, pictures, device, threads)
    if report_only or part.count == 1:
        _report(package, judged_by, folder, output, ablations, seen_in_training or [])


def _planned(
    recipe: Recipe,
    anatomies: Path | None,
    cases: int,
    negatives: int,
    real: Path | None,
    inserted: Path | None,
    labelled: Path | None,
) -> list[PlannedScan]:
    """Phantoms with emboli first."""
    from training.evaluation_scans import INSERTED, LABELLED, REAL, phantom_scans, scans_in

    folders = ((real, REAL), (inserted, INSERTED), (labelled, LABELLED))
    return [
        *phantom_scans(recipe, anatomies, cases, negatives),
        *(scan for folder, kind in folders if folder is not None for scan in scans_in(folder, kind)),
    ]


def _record(
    package: Path,
    planned: list[PlannedScan],
    records: Path,
    part: Shard,
    variants: int,
    pictures: int,
    device: str,
    threads: int,
) -> None:
    from models.cascade import Cascade
    from training.cascade_variants import cascade_variants
    from training.case_record import FULL_CASCADE
    from training.evaluate import record_scans

    full = Cascade.load(package, device=device, threads=threads)
    record_scans({FULL_CASCADE: full}, planned, records, shard=part, pictures=pictures)
    if variants:
        given = full.package.settings
        chosen = cascade_variants(given["ensemble"]["members"], second_pass="second_pass" in given)
        cascades = {
            name: Cascade.load(package, device=device, threads=threads, options=options)
            for name, options in chosen.items()
        }
        record_scans(cascades, planned[:variants], records, shard=part)


def _report(
    package: Path, recipe: Recipe, records: Path, output: Path, ablations: Path, seen_in_training: list[str]
) -> None:
    import json

    from models.packages import load_package
    from training.accuracy_report import ReportInputs, write_report
    from training.case_record import read_records
    from training.evaluate import card_figures

    measured = read_records(records)
    pictures = sorted(records.glob("*.png"))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_report(ReportInputs(measured, load_package(package), recipe, seen_in_training, pictures, ablations), output)
    figures = records / "figures.json"
    figures.write_text(json.dumps(card_figures(measured), indent=1) + "\n", encoding="utf-8")
    print(f"{output}\n{figures}: what the model card states")
