"""An Enhanced CT instance of a volume, frames in any order; only what a reader needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, EnhancedCTImageStorage, ExplicitVRLittleEndian

from imaging.volume import CtVolume
from services.dicom.headers import decimal_strings
from services.dicom.uids import derive_uid


def written_multi_frame(
    volume: CtVolume,
    path: Path,
    *,
    frame_order: Sequence[int],
    tilt_degrees: float = 0.0,
    sop_class_uid: UID = EnhancedCTImageStorage,
) -> Path:
    """The volume's slices as frames, each moved along its columns as a tilted gantry would have it."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class_uid
    dataset.SOPInstanceUID = derive_uid("enhanced")
    dataset.StudyInstanceUID = derive_uid("enhanced study")
    dataset.SeriesInstanceUID = derive_uid("enhanced series")
    dataset.FrameOfReferenceUID = derive_uid("enhanced frame of reference")
    dataset.Modality = "CT"
    dataset.PatientID, dataset.PatientName = "PHANTOM-1", "Phantom^One"
    dataset.ContentDate, dataset.ContentTime = "20200101", "120000"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(frame_order)
    dataset.Rows, dataset.Columns = volume.shape_zyx[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = (volume.hu[list(frame_order)].astype(np.int32) + 1024).astype("<u2").tobytes()

    orientation, measures, transformation, shared = Dataset(), Dataset(), Dataset(), Dataset()
    cosines = volume.direction_cosines
    orientation.ImageOrientationPatient = decimal_strings([*cosines[:, 2], *cosines[:, 1]])
    measures.PixelSpacing = decimal_strings(volume.spacing_zyx_mm[1:])
    measures.SliceThickness = "5"
    transformation.RescaleIntercept, transformation.RescaleSlope, transformation.RescaleType = "-1024", "1", "HU"
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    shared.PixelValueTransformationSequence = [transformation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(volume, index, tilt_degrees) for index in frame_order]

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def _frame(volume: CtVolume, index: int, tilt_degrees: float) -> Dataset:
    position, frame = Dataset(), Dataset()
    drift_mm = index * volume.spacing_zyx_mm[0] * np.tan(np.radians(tilt_degrees)) * volume.direction_cosines[:, 1]
    position.ImagePositionPatient = decimal_strings(volume.point_lps_mm((index, 0, 0)) + drift_mm)
    frame.PlanePositionSequence = [position]
    return frame
