"""`embolens insert`: emboli put into a real CT with contrast, to train and to judge on a patient's texture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def insert(
    path: Annotated[Path, typer.Argument(exists=True, help="DICOM folder, zip, one DICOM file, .nii or .nii.gz.")],
    output: Annotated[Path, typer.Option(help="Folder for ct.nii.gz and embolus.nii.gz.", file_okay=False)],
    emboli: Annotated[int, typer.Option(min=1, max=20, help="How many are put in.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scan.")] = 0,
    min_ml: Annotated[float, typer.Option(min=0.0, help="No embolus is smaller than this, ml.")] = 0.5,
    package: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Model package that finds the artery.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Put emboli into the arteries that a model package finds in a CT; `embolens evaluate --inserted` reads the result.

    Emboli lie only where the package sees an artery, which favours that package when it is judged on them.
    """
    from cli.segment import files_of
    from cli.stage_bars import StageBars
    from imaging.vessel_tree import OPACIFIED_HU
    from models.cascade import Cascade
    from services.dicom.ct_nifti_writer import write_ct_nifti
    from services.dicom.input_reader import read_input
    from services.dicom.label_nifti import nifti_of, save_nifti
    from services.ingest.upload import inspect_upload
    from services.settings import settings
    from training.insertion import insert_into_ct

    with StageBars() as bars:
        with files_of(path) as files:
            volume = read_input(inspect_upload(files).files).volume
        cascade = Cascade.load(package or settings().resolved_package_dir, device=device)
        result = cascade.segment(volume, on_progress=bars)
    artery = result.artery & (volume.hu > OPACIFIED_HU)
    made = insert_into_ct(volume, artery, emboli=emboli, seed=seed, min_embolus_ml=min_ml)
    output.mkdir(parents=True, exist_ok=True)
    write_ct_nifti(made.volume, output / "ct.nii.gz")
    save_nifti(nifti_of(made.embolus_labelmap, volume.affine_lps), output / "embolus.nii.gz")
    volumes_ml = [
        round(float((made.embolus_labelmap == label).sum()) * volume.voxel_volume_mm3 / 1000, 3)
        for label in range(1, emboli + 1)
    ]
    (output / "truth.json").write_text(json.dumps({"seed": seed, "emboli_ml": volumes_ml}, indent=2) + "\n")
    typer.echo(f"emboli of {', '.join(f'{ml:g}' for ml in volumes_ml)} ml: {output}")
