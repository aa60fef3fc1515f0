"""Which worklists are worked on: the [[worklists]] tables of deploy/destinations.toml."""

from __future__ import annotations

from pydantic import Field

from services.toml_file import TomlTable


class Code(TomlTable):
    """A coded concept (PS3.3 section 8.8)."""

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


COMPUTER_AIDED_DETECTION = Code(value="110004", scheme="DCM", meaning="Computer Aided Detection")  # CID 9231


class Worklist(TomlTable):
    """One [[worklists]] table; see deploy/destinations.toml.

    Attributes:
        server: name of the [[dicomweb]] service whose /workitems are worked on.
        station: as which we are scheduled, and perform.
        unassigned: whether workitems scheduled for no station are taken too.
        at_once: workitems held at once.
        retrieve_from: who is asked for inputs that are not here, where a workitem names nobody known.
        requester_in_path: whether our AE title stands behind `/state`, as dcm4chee-arc has it.
    """

    name: str = Field(min_length=1, max_length=64)
    server: str = Field(min_length=1, max_length=64)
    station: Code
    unassigned: bool = False
    workitem_codes: tuple[Code, ...] = Field((COMPUTER_AIDED_DETECTION,), min_length=1)
    worklist_label: str | None = Field(None, min_length=1, max_length=64)
    poll_s: float = Field(10.0, gt=0)
    progress_s: float = Field(10.0, gt=0)
    at_once: int = Field(2, ge=1, le=100)
    retrieve_from: str | None = Field(None, min_length=1, max_length=128)
    requester_in_path: bool = False
