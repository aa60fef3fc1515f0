"""`embolens import-cases`: a published data set, or one's own scans, to train on or to judge by."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.data_sets.labelled_scan import ListedScan


class DataSet(StrEnum):
    CAD_PE = "cad-pe"
    FUMPE = "fumpe"
    NIFTI = "nifti"


def import_cases(
    data_set: Annotated[
        DataSet,
        typer.Argument(
            help="cad-pe: images/NNN.nrrd, rs/NNNRefStd.nrrd; fumpe: PATnnn/D0001.dcm, PATnnn.mat; "
            "nifti: image/NAME.nii.gz, label/NAME.nii.gz, or NAME.nii.gz, NAME_label.nii.gz."
        ),
    ],
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Where the data set lies.")],
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder to write into; made if need be.")],
    masks: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Vessels (NAME.nii.gz) and lungs (NAME_lungmask.nii.gz)."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only the scan of this name; may be repeated.")] = None,
    evaluation: Annotated[
        bool,
        typer.Option("--evaluation", help="For embolens evaluate --labelled, not to train on; of CAD-PE 021 to 040."),
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Says how cases are cut; default: train.py's.")
    ] = None,
) -> None:
    """Turn CT with outlined emboli into cases for train.py --data. Exit code 3: scans were left out, with reasons."""
    from imaging.errors import InputError
    from training import imported_cases
    from training.recipe import Recipe

    scans = _listed(data_set, folder, masks, only or [], evaluation=evaluation)
    if evaluation:
        imported = imported_cases.import_for_evaluation(scans, output)
    else:
        imported = imported_cases.import_cases(scans, output, Recipe.read(recipe or _default_recipe()).data)
    left_out = []
    for scan in imported:
        if scan.refusal is None:
            typer.echo(f"{scan.name}: {scan.emboli} emboli")
        else:
            left_out.append(scan.name)
            typer.echo(f"{scan.name} left out: {scan.refusal} [{scan.refusal.code}]", err=True)
    typer.echo(f"{len(scans) - len(left_out)} of {len(scans)} scans are in {output}")
    if left_out:
        raise InputError(f"left out: {', '.join(left_out)}", code="training.left_out", remedy="the reasons stand above")


def _listed(
    data_set: DataSet, folder: Path, masks: Path | None, only: list[str], *, evaluation: bool
) -> list[ListedScan]:
    from training.data_sets import cad_pe, fumpe, nifti_pairs
    from training.data_sets.labelled_scan import only_named
    from training.data_sets.vessel_masks import VesselMasks

    known = VesselMasks.below(masks)
    if data_set is DataSet.FUMPE:
        scans = fumpe.scans(folder, known)
    elif data_set is DataSet.NIFTI:
        scans = nifti_pairs.scans(folder, known)
    elif evaluation:
        scans = cad_pe.held_out_scans(folder, known)
    else:
        cad_pe.refuse_held_out(only)
        scans = cad_pe.training_scans(folder, known)
    return only_named(scans, only)


def _default_recipe() -> Path:
    from importlib.resources import files

    return Path(str(files("training"))) / "recipes/phantoms.toml"
