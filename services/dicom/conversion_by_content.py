"""Which conversion a heap of files asks for: what they hold decides, never their names.

| files                               | become                                           |
|-------------------------------------|--------------------------------------------------|
| one NIfTI or NRRD                   | a zip of a DICOM CT series                       |
| one CT series                       | a NIfTI                                          |
| one NIfTI or NRRD, and a CT series  | a DICOM SEG of the label map over the series     |
| one DICOM SEG                       | a NIfTI label map                                |
| one DICOM SEG, and its CT series    | a NIfTI label map on the grid of the series      |
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from imaging.errors import InputError
from services.dicom.conversion import dicom_to_nifti, label_map_to_seg, nifti_to_dicom, seg_to_label_map
from services.dicom.conversion_options import ConversionOptions
from services.dicom.conversion_process import Converted
from services.dicom.input_reader import is_volume_file
from services.dicom.seg_reader import is_seg


def convert_by_content(files: Sequence[Path], directory: Path, options: ConversionOptions) -> Converted:
    """Convert the files into one new file in `directory`.

    Raises:
        InputError / NotAnalysable: as the functions of `conversion`; several volumes or SEGs, or a volume beside a SEG.
    """
    volumes = [file for file in files if is_volume_file(file)]
    segs = [file for file in files if file not in volumes and is_seg(file)]
    images = [file for file in files if file not in volumes and file not in segs]
    if len(volumes) + len(segs) > 1:
        raise InputError(
            f"{len(volumes)} NIfTI or NRRD and {len(segs)} SEG in one conversion",
            code="input.several_volumes",
            remedy="send one at a time, beside the CT series that it lies on",
        )
    if segs:
        path = directory / "label_map.nii.gz"
        warnings = seg_to_label_map(segs[0], path, series=images or None, only_segment=options.only_segment)
        return Converted(path, "application/gzip", warnings)
    if volumes and images:
        path = directory / "seg.dcm"
        warnings = label_map_to_seg(volumes[0], images, path, options=options.seg, resample=options.resample)
        return Converted(path, "application/dicom", warnings)
    if volumes:
        series, path = directory / "series", directory / "series.zip"
        warnings = nifti_to_dicom(
            volumes[0],
            series,
            patient_id=options.patient_id,
            patient_name=options.patient_name,
            rounded=options.rounded,
        )
        _zip(series, path)
        return Converted(path, "application/zip", warnings)
    path = directory / "ct.nii.gz"
    return Converted(path, "application/gzip", dicom_to_nifti(images, path, rounded=options.rounded))


def _zip(series: Path, path: Path) -> None:
    """Pack the files of a series; each is removed once it is packed, so that the disk holds them once."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(series.iterdir()):
            archive.write(file, file.name)
            file.unlink()
    shutil.rmtree(series)
