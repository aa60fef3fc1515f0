"""`embolens convert`: NIfTI to a DICOM series and back, a label map to a DICOM SEG and back."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from services.dicom.conversion_options import Drawn, LabelSegOptions
from services.dicom.seg_options import SegType

_SUFFIXES = (".nii", ".nii.gz")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            exists=True,
            help="A NIfTI or NRRD, a folder or zip of one DICOM CT series, or a DICOM SEG.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="A new folder for a DICOM series; a .nii or .nii.gz file; a .dcm file for a SEG."
        ),
    ],
    series: Annotated[
        Path | None,
        typer.Option(exists=True, help="Folder or zip of the CT series that a label map or SEG lies on."),
    ] = None,
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
    resample: Annotated[
        bool, typer.Option("--resample", help="Take a label map on another grid than the series', the nearest labels.")
    ] = False,
    segment: Annotated[int | None, typer.Option(min=1, help="The one segment of a SEG to take.")] = None,
    seg_type: Annotated[SegType, typer.Option(help="Of the SEG made.")] = SegType.BINARY,
    drawn: Annotated[Drawn, typer.Option(help="What the labels show: the codes of the SEG made.")] = Drawn.TISSUE,
    algorithm: Annotated[str, typer.Option(help="What drew the labels; default: drawn by hand.")] = "",
) -> None:
    """Convert a CT between NIfTI and DICOM, or a label map and a SEG; read back and compared, voxel by voxel."""
    from cli.segment import files_of
    from cli.stage_bars import StageBars
    from services.dicom.conversion import dicom_to_nifti, label_map_to_seg, nifti_to_dicom, seg_to_label_map
    from services.dicom.input_reader import is_volume_file
    from services.dicom.seg_reader import is_seg

    to_nifti, to_seg = output.name.endswith(_SUFFIXES), output.suffix == ".dcm"
    from_volume = source.is_file() and is_volume_file(source)
    from_seg = source.is_file() and not from_volume and is_seg(source)
    _refuse_impossible(source, output, series, from_volume=from_volume, from_seg=from_seg)
    with StageBars() as bars, ExitStack() as unpacked:
        files = source if source.is_dir() else unpacked.enter_context(files_of(source))
        lies_on = None if series is None else unpacked.enter_context(files_of(series))
        report = partial(bars, "convert")
        if to_seg:
            options = LabelSegOptions(seg_type, drawn, algorithm)
            warnings = label_map_to_seg(
                source, lies_on or [], output, options=options, resample=resample, on_progress=report
            )
        elif from_seg:
            warnings = seg_to_label_map(source, output, series=lies_on, only_segment=segment)
        elif to_nifti:
            warnings = dicom_to_nifti(files, output, rounded=rounded, on_progress=report)
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


def _refuse_impossible(source: Path, output: Path, series: Path | None, *, from_volume: bool, from_seg: bool) -> None:
    """Raises BadParameter where input and output do not make a conversion."""
    from services.dicom.nrrd_reader import is_nrrd

    to_nifti, to_seg = output.name.endswith(_SUFFIXES), output.suffix == ".dcm"
    if to_seg and not (from_volume and series):
        raise typer.BadParameter(f"{output.name} would be a SEG: of a NIfTI or NRRD, over the series in --series")
    if series and not (to_seg or from_seg):
        raise typer.BadParameter("--series belongs to a label map or SEG that lies on it")
    if from_seg and not to_nifti:
        raise typer.BadParameter(f"{source.name} is a SEG: the output is a .nii.gz file")
    from_nifti = from_volume and not is_nrrd(source)  # an NRRD becomes either
    if not (to_seg or from_volume) and not to_nifti:
        raise typer.BadParameter(
            f"{source.name} is DICOM and so would {output.name} be: the output is a .nii.gz file for DICOM"
        )
    if from_nifti and to_nifti:
        raise typer.BadParameter(
            f"{source.name} is NIfTI and so would {output.name} be: the output is a folder for NIfTI"
        )
    if not (to_nifti or to_seg) and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise typer.BadParameter(f"{output} is there already: a series needs a folder of its own")
