"""`embolens phantom`: a made-up CT pulmonary angiogram with known emboli."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FIELD_OF_VIEW_MM = 360.0
LENGTH_MM = 286.0


def phantom(
    output: Annotated[Path, typer.Option(help="Folder to write into; made if need be.", file_okay=False)],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same phantom.")] = 0,
    dicom: Annotated[bool, typer.Option("--dicom", help="A DICOM series (ct/) instead of ct.nii.gz.")] = False,
    emboli: Annotated[int, typer.Option(min=0, max=20, help="How many emboli are inserted.")] = 3,
    slices: Annotated[int, typer.Option(min=40, max=1000, help="Number of slices; the chest's height stays.")] = 220,
    matrix: Annotated[int, typer.Option(min=128, max=1024, help="Rows and columns.")] = 512,
) -> None:
    """Make a phantom CT pulmonary angiogram and the truth about it (truth.json, emboli.nii.gz, artery.nii.gz, ...)."""
    from cli.phantom_files import write_ct_dicom, write_truth
    from imaging.phantom import make_phantom
    from services.dicom.ct_nifti_writer import write_ct_nifti

    in_plane_mm = FIELD_OF_VIEW_MM / matrix
    made = make_phantom(
        seed,
        shape_zyx=(slices, matrix, matrix),
        spacing_zyx_mm=(LENGTH_MM / slices, in_plane_mm, in_plane_mm),
        emboli=emboli,
    )
    write_truth(made, output, seed=seed)
    if dicom:
        write_ct_dicom(made, output / "ct", seed=seed)
    else:
        write_ct_nifti(made.volume, output / "ct.nii.gz")
    typer.echo(f"{emboli} emboli in {slices} slices of {matrix} x {matrix}: {output}")
