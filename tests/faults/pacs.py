"""Orthanc as the PACS, counting every C-STORE that it receives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.hospital import Orthanc, running_orthanc

# Called for every instance that is received, whether it is new or not.
_COUNT = """
function ReceivedInstanceFilter(dicom, origin, info)
   local file = io.open('{log}', 'a')
   file:write(dicom.SOPInstanceUID, '\\n')
   file:close()
   return true
end
"""


@dataclass
class CountingPacs:
    orthanc: Orthanc
    log: Path

    def received(self) -> Counter[str]:
        """How often each SOP instance was received."""
        return Counter(self.log.read_text().split())

    def modalities(self, study_instance_uid: str) -> list[str]:
        """Of every series that it holds of the study, one entry per instance."""
        return [
            series["MainDicomTags"]["Modality"]
            for series in self._find("Series", study_instance_uid)
            for _ in series["Instances"]
        ]

    def result_uids(self, study_instance_uid: str) -> set[str]:
        return {one["MainDicomTags"]["SOPInstanceUID"] for one in self._find("Instance", study_instance_uid)}

    def _find(self, level: str, study_instance_uid: str) -> list[dict[str, Any]]:
        query = {"Level": level, "Query": {"StudyInstanceUID": study_instance_uid}, "Expand": True}
        found: list[dict[str, Any]] = self.orthanc.http.post("/tools/find", json=query).raise_for_status().json()
        return found


@contextmanager
def running_pacs(directory: Path) -> Iterator[CountingPacs]:
    log, script = directory / "received.log", directory / "count.lua"
    log.touch()
    script.write_text(_COUNT.format(log=log))
    with running_orthanc(directory, LuaScripts=[str(script)]) as orthanc:
        yield CountingPacs(orthanc, log)
