"""The kinds of DICOM objects that a result is made of; the names an operator chooses by."""

from __future__ import annotations

from enum import StrEnum


class ResultKind(StrEnum):
    SEG = "seg"
    SR = "sr"
    KEY_IMAGES = "key_images"
    REPORT = "report"
