"""What a result was made by: the identity from which its UIDs are derived, and the provenance that people read."""

from __future__ import annotations

import hashlib
import json

from services.dicom.identity import ResultIdentity
from services.dicom.seg_options import SegOptions
from services.version import VERSION
from worker.segmenter import PackageIdentity


def identify_result(
    package: PackageIdentity,
    input_digest: str,
    *,
    min_score: float | None = None,
    mode: str = "volume",
    seg_options: SegOptions,
) -> ResultIdentity:
    """The identity of the result that `package` gives for this input.

    Thresholds are part of the package and so of its SHA-256; what somebody asked for beside it (`min_score`, where the
    cascade looks, what the SEG is like) is the configuration. The device is not part of it: a result is the same
    study's on any machine.
    """
    configuration = json.dumps({"min_score": min_score, "mode": mode, "seg": seg_options.to_dict()}, sort_keys=True)
    return ResultIdentity(
        software_version=VERSION,
        package_name=package.name,
        package_version=package.version,
        package_sha256=package.sha256,
        configuration_sha256=hashlib.sha256(configuration.encode()).hexdigest(),
        input_digest=input_digest,
    )
