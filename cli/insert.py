"""`embolens insert`: emboli put into a real CT with contrast, to train and to judge on a patient's texture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from imaging.volume import CtVolume, Mask


def insert(
    path: Annotated[Path, typer.Argument(exists=True, help="DICOM folder, zip, one DICOM file, .nii or .nii.gz.")],
    output: Annotated[Path, typer.Option(help="Folder for ct.nii.gz and embolus.nii.gz.", file_okay=False)],
    emboli: Annotated[int, typer.Option(min=1, max=20, help="How many are put in.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same scan.")] = 0,
    min_ml: Annotated[float, typer.Option(min=0.0, help="No embolus is smaller than this, ml.")] = 0.5,
    package: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Model package that finds the artery.")
    ] = None,
    artery: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="NIfTI mask of the artery, on the CT's grid.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Put emboli into the arteries of a CT; `embolens evaluate --inserted` reads the result.

    Without `--artery` they lie only where a package sees an artery, which favours that package when it is judged on
    them.
    """
    from cli.segment import files_of
    from imaging.vessel_tree import OPACIFIED_HU
    from services.dicom.ct_nifti_writer import write_ct_nifti
    from services.dicom.input_reader import read_input
    from services.dicom.label_nifti import nifti_of, save_nifti
    from services.ingest.upload import inspect_upload
    from training.evaluation_scans import labels_on_grid
    from training.insertion import insert_into_ct

    with files_of(path) as files:
        volume = read_input(inspect_upload(files).files).volume
    given = None if artery is None else labels_on_grid(artery, volume)
    lumen = _artery_seen(volume, package, device) if given is None else given > 0
    lumen &= volume.hu > OPACIFIED_HU
    made = insert_into_ct(volume, lumen, emboli=emboli, seed=seed, min_embolus_ml=min_ml)
    output.mkdir(parents=True, exist_ok=True)
    write_ct_nifti(made.volume, output / "ct.nii.gz")
    save_nifti(nifti_of(made.embolus_labelmap, volume.affine_lps), output / "embolus.nii.gz")
    volumes_ml = [
        round(float((made.embolus_labelmap == label).sum()) * volume.voxel_volume_mm3 / 1000, 3)
        for label in range(1, emboli + 1)
    ]
    (output / "truth.json").write_text(json.dumps({"seed": seed, "emboli_ml": volumes_ml}, indent=2) + "\n")
    typer.echo(f"emboli of {', '.join(f'{ml:g}' for ml in volumes_ml)} ml: {output}")


def _artery_seen(volume: CtVolume, package: Path | None, device: str) -> Mask:
    from cli.stage_bars import StageBars
    from models.cascade import Cascade
    from services.settings import settings

    with StageBars() as bars:
        cascade = Cascade.load(package or settings().resolved_package_dir, device=device)
        return cascade.segment(volume, on_progress=bars).artery
