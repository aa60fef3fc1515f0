"""Why an instance was not taken in, as the Standard numbers it: C-STORE statuses are STOW-RS failure reasons too."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from imaging.errors import EmbolensError, InputError

# PS3.4 B.2.3, PS3.7 Annex C and PS3.18 I.2.2
SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122

MISMATCH = "input.identifier_mismatch"
UNSUPPORTED_SOP_CLASS = "input.unsupported_sop_class"
UNSUPPORTED_TRANSFER_SYNTAX = "input.unsupported_transfer_syntax"
_STATUS_OF_CODE = {
    MISMATCH: DATA_SET_DOES_NOT_MATCH,
    UNSUPPORTED_SOP_CLASS: SOP_CLASS_NOT_SUPPORTED,
    UNSUPPORTED_TRANSFER_SYNTAX: TRANSFER_SYNTAX_NOT_SUPPORTED,
}


def storage_status(error: EmbolensError | SQLAlchemyError | OSError) -> int:
    """The error tree as a C-STORE status (PS3.4 Table B.2-1). A7xx asks the peer to come again."""
    if isinstance(error, InputError):
        return _STATUS_OF_CODE.get(error.code, CANNOT_UNDERSTAND)
    return OUT_OF_RESOURCES
