"""Pictures as Secondary Captures (PS3.3 A.8.1), single-frame and uncompressed: what every archive takes and shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from imaging.findings import RESEARCH_USE_ONLY, Findings
from services.dicom.identity import ResultIdentity
from services.dicom.result_kind import ResultKind
from services.dicom.result_object import SopInstance, plain_object, save_whole
from services.dicom.sop_reference import reference_to


def write_key_images(
    pictures: Sequence[tuple[Image.Image, str | None]],
    source: Dataset,
    findings: Findings,
    directory: Path,
    *,
    identity: ResultIdentity,
) -> tuple[SopInstance, ...]:
    """Write the pictures as one series, ``key-image-1.dcm`` upwards; equal arguments write equal bytes.

    Args:
        pictures: RGB; beside each the SOP Instance UID of the source image it shows, where it is one.
        source: clean header of the (first) source image.
    """
    return tuple(
        save_whole(
            _key_image(picture, shown, source, findings, identity, number),
            source,
            directory / f"key-image-{number}.dcm",
        )
        for number, (picture, shown) in enumerate(pictures, start=1)
    )


def _key_image(
    picture: Image.Image,
    shown_sop_instance_uid: str | None,
    source: Dataset,
    findings: Findings,
    identity: ResultIdentity,
    number: int,
) -> Dataset:
    image = plain_object(SecondaryCaptureImageStorage, ResultKind.KEY_IMAGES, source, findings, identity, number)
    image.Modality = "OT"
    image.BodyPartExamined = "CHEST"  # no paired structure, which would need a laterality (PS3.3 C.7.3.1)
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.PatientOrientation = ""
    image.DerivationDescription = RESEARCH_USE_ONLY
    image.BurnedInAnnotation = "NO"  # none that names the patient (PS3.3 C.7.6.1)
    image.LossyImageCompression = source.get("LossyImageCompression", "00")
    if shown_sop_instance_uid is not None:
        image.SourceImageSequence = [reference_to(source.SOPClassUID, shown_sop_instance_uid)]
    pixels = np.asarray(picture.convert("RGB"))
    image.Rows, image.Columns = pixels.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = pixels.tobytes()
    return image
