"""`embolens segment`: one study on this machine, without a server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from imaging.errors import InputError, NotAnalysable, Reason

_RESULT_FILES = (
    *("findings.json", "mask.nii.gz", "artery.nii.gz", "preview.png"),
    *("seg.dcm", "sr.dcm", "key-image-*.dcm", "report.dcm"),
)


def segment(
    path: Annotated[Path, typer.Argument(exists=True, help="DICOM folder, zip or file, .nii, .nii.gz or .nrrd.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; made if need be.", file_okay=False)],
    min_score: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="List candidates down to this score; default: the package's.")
    ] = None,
    package: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Model package; default: the one in use.")
    ] = None,
    mode: Annotated[
        Literal["volume", "vessel"],
        typer.Option(help="volume: all networks; vessel: the 3D network along the vessels of the lungs alone."),
    ] = "volume",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Find emboli in one CT pulmonary angiogram. Exit code 3: the input is not analysable."""
    output.mkdir(parents=True, exist_ok=True)
    asked = _Asked(package, min_score, mode)
    with ExitStack() as unpacked:
        files: list[Path] = []
        try:
            files = unpacked.enter_context(files_of(path))
            findings = _segment(files, output, asked, device)
        except NotAnalysable as refusal:
            _write_not_analysable(output, refusal.reasons, files, asked)
            raise
        except InputError as error:
            _write_not_analysable(output, (Reason(error.code, error.message),), files, asked)
            raise
    _print_table(findings, output)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the identity of a result depends on, beside the input."""

    package: Path | None
    min_score: float | None
    mode: str


def _segment(files: Sequence[Path], output: Path, asked: _Asked, device: str) -> dict[str, Any]:
    from cli.stage_bars import StageBars
    from services.dicom.input_reader import read_input
    from services.dicom.result_files import write_results
    from services.ingest.intake_rules import IntakeRules
    from services.ingest.upload import inspect_upload
    from services.settings import settings

    with StageBars() as bars:
        contents = inspect_upload(files, IntakeRules.load(settings().intake_rules).selection)
        source = read_input(contents.files, on_progress=partial(bars, "load"))
        from models.cascade import Cascade  # torch: not before the input is known to be worth it
        from models.cascade_options import CascadeOptions, Mode
        from models.compiled_network import InferenceBackend
        from worker.result_identity import identify_result

        chosen = asked.package or settings().resolved_package_dir
        cascade = Cascade.load(
            chosen,
            device=device,
            options=CascadeOptions(mode=Mode(asked.mode)),
            backend=InferenceBackend(settings().inference_backend),
        )
        result = cascade.segment(source.volume, on_progress=bars, min_score=asked.min_score)
        result = result.with_reasons(contents.warnings)
        bars("write", 0.0)
        _remove_earlier_result(output)
        seg_options = settings().seg_options
        identity = identify_result(
            cascade.package,
            source.content_digest(),
            min_score=asked.min_score,
            mode=asked.mode,
            seg_options=seg_options,
        )
        written = write_results(source, result, output, identity, seg_options)
        bars("write", 1.0)
    findings: dict[str, Any] = written.findings.to_dict()
    return findings


@contextmanager
def files_of(path: Path) -> Iterator[list[Path]]:
    """The files in a folder or zip, or the one file; what was unpacked is gone afterwards."""
    from tempfile import TemporaryDirectory

    from services.ingest.upload import is_zip, unpack_zip
    from services.settings import settings

    if path.is_dir():
        yield sorted(file for file in path.rglob("*") if file.is_file())
    elif is_zip(path):
        limits = settings()
        with TemporaryDirectory() as directory:
            unpacked = Path(directory)
            yield unpack_zip(path, unpacked, max_bytes=limits.unpacked_max_bytes, max_files=limits.upload_max_files)
    else:
        yield [path]


def _write_not_analysable(output: Path, reasons: tuple[Reason, ...], files: Sequence[Path], asked: _Asked) -> None:
    """Findings and, of DICOM images, the objects that a worker writes of such an ending."""
    from imaging.findings import Findings, Outcome
    from models.packages import default_package_directory, load_package
    from services.dicom.result_files import write_not_analysable
    from services.settings import settings
    from worker.result_identity import identify_result

    package = load_package(asked.package or settings().resolved_package_dir or default_package_directory())
    names_and_sizes = "\n".join(sorted(f"{file.name}:{file.stat().st_size}" for file in files))
    identity = identify_result(
        package,
        hashlib.sha256(names_and_sizes.encode()).hexdigest(),
        min_score=asked.min_score,
        mode=asked.mode,
        seg_options=settings().seg_options,
    )
    _remove_earlier_result(output)
    write_not_analysable(Findings(Outcome.NOT_ANALYSABLE, reasons=reasons), output, identity, files)


def _remove_earlier_result(output: Path) -> None:
    """So that nothing of another study lies beside this one's findings."""
    for file in _result_files(output):
        file.unlink()


def _result_files(output: Path) -> list[Path]:
    return [file for pattern in _RESULT_FILES for file in sorted(output.glob(pattern))]


def _print_table(findings: dict[str, Any], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"[bold]{findings['outcome']}[/bold]  scan probability {findings['scan_probability']:.3f}, "
        f"clot burden {findings['clot_burden_ml']:.2f} ml"
    )
    for reason in findings["reasons"]:
        console.print(f"[yellow]{reason['code']}[/yellow]: {reason['text']}")
    if findings["lesions"]:
        table = Table("id", "score", "volume ml", "diameter mm", "mean HU", "artery", "peak (L, P, S) mm")
        for lesion in findings["lesions"]:
            table.add_row(
                str(lesion["id"]),
                f"{lesion['score']:.3f}",
                f"{lesion['volume_ml']:.2f}",
                f"{lesion['max_diameter_mm']:.1f}",
                f"{lesion['mean_hu']:.0f}",
                lesion["artery_level"],
                ", ".join(f"{value:.1f}" for value in lesion["peak_lps_mm"]),
            )
        console.print(table)
    console.print(f"[dim]{findings['notice']}[/dim]")
    for file in _result_files(output):
        console.print(str(file), highlight=False, soft_wrap=True)
