"""`embolens convert`: NIfTI to a DICOM series and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_SUFFIXES = (".nii", ".nii.gz")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", exists=True, help="A NIfTI or NRRD, or a folder or zip of one DICOM CT series."
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="A new folder for DICOM; a .nii or .nii.gz file for NIfTI.")
    ],
    patient_id: Annotated[str | None, typer.Option(help="In the DICOM files; default: derived from the image.")] = None,
    patient_name: Annotated[str, typer.Option(help="In the DICOM files, e.g. Doe^Jane.")] = "",
    rounded: Annotated[
        bool,
        typer.Option(
            "--round",
            help="Take HU as segment does: whole, and -1024 where lower or padding. Otherwise they stay as they are, "
            "and those that are not whole or do not fit 16 bits are refused.",
        ),
    ] = False,
) -> None:
    """Convert a CT from NIfTI to a DICOM series or back, HU and geometry exact (read back and compared)."""
    from cli.segment import files_of
    from cli.stage_bars import StageBars
    from services.dicom.conversion import dicom_to_nifti, nifti_to_dicom
    from services.dicom.input_reader import is_nifti
    from services.dicom.nrrd_reader import is_nrrd

    from_nifti = source.is_file() and is_nifti(source)
    to_nifti = output.name.endswith(_SUFFIXES)
    from_nrrd = source.is_file() and is_nrrd(source)  # becomes either
    if from_nifti == to_nifti and not from_nrrd:
        kind = "NIfTI" if from_nifti else "DICOM"
        raise typer.BadParameter(
            f"{source.name} is {kind} and so would {output.name} be: the output is a .nii.gz file for DICOM, "
            "a folder for NIfTI"
        )
    if not to_nifti and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise typer.BadParameter(f"{output} is there already: a series needs a folder of its own")
    with StageBars() as bars, files_of(source) as files:
        report = partial(bars, "convert")
        if to_nifti:
            series = source if source.is_dir() else files
            warnings = dicom_to_nifti(series, output, rounded=rounded, on_progress=report)
        else:
            warnings = nifti_to_dicom(
                source,
                output,
                patient_id=patient_id,
                patient_name=patient_name,
                rounded=rounded,
                on_progress=report,
            )
    for reason in warnings:
        typer.echo(f"{reason.text} [{reason.code}]", err=True)
    typer.echo(str(output))
