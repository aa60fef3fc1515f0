"""`embolens rules`: what the intake rules make of DICOM files, before a scanner's are judged by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from services.dicom.series_reader import SeriesInfo
    from services.ingest.intake_rules import IntakeRules

rules = typer.Typer(no_args_is_help=True, help="Intake rules: which series are segmented.")


@rules.callback()
def _group() -> None:
    """Keeps `test` a subcommand while it is the only one."""


@rules.command("test")
def judge(
    folder: Annotated[Path, typer.Argument(exists=True, help="DICOM files of a study, a zip of them, or one file.")],
    file: Annotated[
        Path | None, typer.Option("--rules", exists=True, dir_okay=False, help="Rules to try; default: those in use.")
    ] = None,
    calling_ae_title: Annotated[str, typer.Option(help="The sender to judge them as.")] = "",
) -> None:
    """Judge every series in a folder as if a scanner had sent it: taken or set aside, its points, and why."""
    from rich.console import Console

    from cli.segment import files_of
    from services.dicom.series_reader import inspect_headers
    from services.ingest.intake_rules import IntakeRules
    from services.ingest.upload import dicom_files
    from services.settings import settings

    used = IntakeRules.load(file or settings().intake_rules)
    with files_of(folder) as files:
        summary = inspect_headers(dicom_files(files))
    Console(width=160).print(_table(summary.series, used, calling_ae_title))


def _table(series: tuple[SeriesInfo, ...], used: IntakeRules, calling_ae_title: str) -> Table:
    """Best first; what the rules set aside comes after what they take."""
    from rich.table import Table

    from services.ingest.series_selection import ranked

    table = Table("series", "slices", "segmented", "points", "why")
    table.columns[0].no_wrap = True
    scored = [(one, used.judge(one.series, calling_ae_title)) for one in ranked(series, used.selection)]
    taken = [one for one, verdict in scored if not verdict.reasons]
    for one, verdict in sorted(scored, key=lambda entry: bool(entry[1].reasons)):
        weaker = used.best_of_study and taken and one.points < taken[0].points
        answer = "no" if verdict.reasons else "if it comes first" if weaker else f"yes, {verdict.priority.value}"
        why = "; ".join([*(f"{reason.code}: {reason.text}" for reason in verdict.reasons), one.because])
        table.add_row(one.series.series_instance_uid, str(one.series.count), answer, f"{one.points:g}", why)
    return table
