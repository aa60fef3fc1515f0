"""Where DICOMweb resources are found (PS3.18 section 10.1)."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "/dicom-web"


@dataclass(frozen=True, slots=True)
class ResourceUrls:
    """URLs below one base, such as ``https://embolens.example``."""

    base: str

    def study(self, study_instance_uid: str) -> str:
        return f"{self.base.rstrip('/')}{PREFIX}/studies/{study_instance_uid}"

    def series(self, study_instance_uid: str, series_instance_uid: str) -> str:
        return f"{self.study(study_instance_uid)}/series/{series_instance_uid}"

    def instance(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> str:
        return f"{self.series(study_instance_uid, series_instance_uid)}/instances/{sop_instance_uid}"
