"""The kinds of DICOM objects that a result is made of; the names an operator chooses by."""

from __future__ import annotations

from enum import StrEnum


class ResultKind(StrEnum):
    SEG = "seg"
    SR = "sr"
    KEY_IMAGES = "key_images"
    REPORT = "report"


# Names of files in a result's folder: one report, and key images numbered from 1.
REPORT_FILE = "report.dcm"
KEY_IMAGE_STEM = "key-image-"
