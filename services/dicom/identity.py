"""Who made a result, out of what: everything its UIDs are derived from, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from services.dicom.uids import derive_uid


@dataclass(frozen=True, slots=True)
class ResultIdentity:
    """Equal identities write byte-identical results; any difference here gives every object a new UID.

    Attributes:
        software_version: version of Embolens.
        package_name / package_version / package_sha256: the model package that made the result.
        configuration_sha256: digest of the settings that influence the result (thresholds, cascade mode).
        input_digest: digest of the source image, by `SourceImage.content_digest()` or the job's own over its files.
    """

    software_version: str
    package_name: str
    package_version: str
    package_sha256: str
    configuration_sha256: str
    input_digest: str

    def uid(self, *role: str) -> str:
        """The UID of the object that plays `role` in this result, e.g. ``("seg", "series")``."""
        return derive_uid(
            "embolens",
            self.software_version,
            self.package_name,
            self.package_version,
            self.package_sha256,
            self.configuration_sha256,
            self.input_digest,
            *role,
        )

    @property
    def device_uid(self) -> str:
        """Of the model package, whatever it was given and whichever software ran it (PS3.3 C.7.5.1, Device UID)."""
        return derive_uid("embolens", "device", self.package_name, self.package_version, self.package_sha256)

    def to_dict(self) -> dict[str, str]:
        return {
            "software_version": self.software_version,
            "package_name": self.package_name,
            "package_version": self.package_version,
            "package_sha256": self.package_sha256,
            "configuration_sha256": self.configuration_sha256,
            "input_digest": self.input_digest,
        }
