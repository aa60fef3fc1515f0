"""The tables of docs/dicom-conformance.md, made from what the code really offers: `python -m cli.conformance`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when the module is loaded
    LabelMapSegmentationStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from api.app import create_app
from imaging.errors import EmbolensError, InputError, StorageFull
from services.delivery import availability, storage_commitment
from services.delivery.dicom_node import proposed_for
from services.dicom import result_codes
from services.dicom.result_kind import ResultKind
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES, CT_STORAGE_SOP_CLASSES
from services.ingest.storage_status import (
    MISMATCH,
    UNSUPPORTED_SOP_CLASS,
    UNSUPPORTED_TRANSFER_SYNTAX,
    storage_status,
)
from services.ingest.store_scp import supported_contexts
from services.retrieve.dicom_archive import requested_contexts
from services.settings import Settings
from services.settings_table import with_generated
from services.transport_security import TLS_1_2_SUITES

STATEMENT = Path(__file__).resolve().parents[1] / "docs" / "dicom-conformance.md"

# The transfer syntax is the one that an object is written in; it is sent in others where a node does not take that one.
PRODUCED: Mapping[ResultKind, Sequence[tuple[UID, UID]]] = {
    ResultKind.SEG: [
        (SegmentationStorage, ExplicitVRLittleEndian),
        (UID(LabelMapSegmentationStorage), ExplicitVRLittleEndian),
    ],
    ResultKind.SR: [(Comprehensive3DSRStorage, ExplicitVRLittleEndian)],
    ResultKind.KEY_IMAGES: [(SecondaryCaptureImageStorage, ExplicitVRLittleEndian)],
    ResultKind.REPORT: [(EncapsulatedPDFStorage, ExplicitVRLittleEndian)],
}
_SETTINGS = (
    "ae_title",
    "dicom_host",
    "dicom_port",
    "max_associations",
    "network_timeout_s",
    "instance_max_bytes",
    "series_quiet_s",
    "series_released_quiet_s",
    "series_longest_wait_s",
    "tls_certificate",
    "tls_key",
    "tls_trusted",
    "seg_type",
    "seg_artery",
    "delivery_first_backoff_s",
    "delivery_max_backoff_s",
    "delivery_park_after_s",
)
_REFUSALS: Mapping[str, EmbolensError] = {
    "not one of the CT storage classes": InputError("", code=UNSUPPORTED_SOP_CLASS),
    "a transfer syntax that is not read (STOW-RS; an association does not get so far)": InputError(
        "", code=UNSUPPORTED_TRANSFER_SYNTAX
    ),
    "the data set is not the instance that the request names": InputError("", code=MISMATCH),
    "the data set cannot be read, or has no UIDs": InputError("", code="input.unreadable"),
    "the disk is full, or the database does not answer: come again": StorageFull(""),
}


def with_tables(document: str) -> str:
    """The statement with every generated table in its place."""
    for name, text in _tables().items():
        document = with_generated(document, name, text)
    return document


def _tables() -> dict[str, str]:
    find = requested_contexts(StudyRootQueryRetrieveInformationModelFind, with_storage=False)
    move = requested_contexts(StudyRootQueryRetrieveInformationModelMove, with_storage=False)
    get = requested_contexts(StudyRootQueryRetrieveInformationModelGet, with_storage=True)
    return {
        "accepted": _contexts((context, _role(context)) for context in supported_contexts()),
        "ct transfer syntaxes": _table(
            ("transfer syntax", "UID"), ((UID(uid).name, f"`{uid}`") for uid in ACCEPTED_TRANSFER_SYNTAXES)
        ),
        "sent": _table(
            ("object", "SOP class", "UID", "transfer syntaxes, the first where the node takes it"),
            (
                (kind.value, _name(sop_class), f"`{sop_class}`", _names(s for _, s in proposed_for(sop_class, syntax)))
                for kind, written in PRODUCED.items()
                for sop_class, syntax in written
            ),
        ),
        "followed up": _pairs((*storage_commitment.PROPOSED, *availability.PROPOSED)),
        "retrieved": _contexts((context, "SCU") for context in (*find, *move, *get[:1])),
        "retrieved storage": ", ".join(sorted({UID(str(one.abstract_syntax)).name for one in get[1:]})),
        "statuses": _table(
            ("status", "when"), ((f"{storage_status(error):04X}H", why) for why, error in _REFUSALS.items())
        ),
        "dicomweb": _table(("request", "service"), _dicomweb_requests()),
        "cipher suites": _table(("TLS 1.2 cipher suite",), ((f"`{one}`",) for one in TLS_1_2_SUITES.split(":"))),
        "codes": _table(
            ("code value", "meaning"),
            (
                (f"`{code.value}`", code.meaning)
                for code in (
                    result_codes.NOT_ANALYSABLE,
                    result_codes.WHY_NOT_ANALYSABLE,
                    result_codes.NOT_ANALYSED,
                    result_codes.WHY_NOT_ANALYSED,
                    result_codes.WARNING,
                    result_codes.SCORE,
                    result_codes.ARTERY_LEVEL,
                )
            ),
        ),
        "parameters": _table(
            ("setting", "default", "meaning"),
            (
                (f"`EMBOLENS_{name.upper()}`", _default(name), Settings.model_fields[name].description or "")
                for name in _SETTINGS
            ),
        ),
    }


def _dicomweb_requests() -> Iterable[tuple[str, str]]:
    for path, operations in create_app(Settings()).openapi()["paths"].items():
        for method, operation in operations.items():
            if "dicomweb" in operation.get("tags", ()):
                yield f"`{method.upper()} {path}`", operation["summary"]


def _contexts(contexts: Iterable[tuple[PresentationContext, str]]) -> str:
    rows = []
    for context, role in contexts:
        sop_class = UID(str(context.abstract_syntax))
        is_ct = sop_class in CT_STORAGE_SOP_CLASSES.values()
        syntaxes = "the CT transfer syntaxes below" if is_ct else _names(context.transfer_syntax)
        rows.append((sop_class.name, f"`{sop_class}`", role, syntaxes))
    return _table(("SOP class", "UID", "role", "transfer syntaxes"), rows)


def _pairs(presentations: Iterable[tuple[str, str]]) -> str:
    by_class: dict[str, list[str]] = {}
    for sop_class, syntax in presentations:
        by_class.setdefault(sop_class, []).append(syntax)
    rows = [(UID(uid).name, f"`{uid}`", "SCU", _names(syntaxes)) for uid, syntaxes in by_class.items()]
    return _table(("SOP class", "UID", "role", "transfer syntaxes"), rows)


def _role(context: PresentationContext) -> str:
    """Of ours: a context that takes the peer as SCP is one in which we stay the SCU."""
    return "SCU" if context.scp_role else "SCP"


def _names(uids: Iterable[str]) -> str:
    return ", ".join(map(_name, uids))


def _name(uid: str) -> str:
    """As PS3.6 Table A-1 names it; pydicom does not know the newest class."""
    return "Label Map Segmentation Storage" if uid == LabelMapSegmentationStorage else UID(uid).name


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    return "" if default in (None, "") else f"`{default}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    STATEMENT.write_text(with_tables(STATEMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
