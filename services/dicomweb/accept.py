"""Content negotiation of DICOMweb: media ranges with their parameters, as a client ranks them (PS3.18 section 8.7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from imaging.errors import EmbolensError

DICOM_JSON = "application/dicom+json"
_ELEMENT = re.compile(r"""(?:[^,"]|"(?:[^"\\]|\\.)*")+""")
_PARAMETER = re.compile(r""";\s*([^\s=;,"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))""")


class NotAcceptable(EmbolensError):
    """None of what the client takes can be given (HTTP 406)."""

    default_code = "dicomweb.not_acceptable"


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One element of an Accept header.

    Attributes:
        media_type: in lower case; of a multipart/related range that of its parts (its `type` parameter).
        single / multipart: whether a plain body of it is taken, and a multipart/related one with parts of it.
        parameters: the others, such as `transfer-syntax`; names in lower case.
    """

    media_type: str
    single: bool = True
    multipart: bool = False
    quality: float = 1.0
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def transfer_syntax_uid(self) -> str | None:
        return self.parameters.get("transfer-syntax")

    def takes(self, media_type: str) -> bool:
        """Whether a part or body of this media type is within the range."""
        kind, _, _ = media_type.partition("/")
        return self.media_type in (media_type, f"{kind}/*", "*/*")


def media_ranges(accept: str) -> list[MediaRange]:
    """The ranges of an Accept header, what the client likes best first; nothing said is "anything".

    What cannot be parsed is no range, as if it were not there.
    """
    ranges = [found for element in _ELEMENT.findall(accept) if (found := _range(element)) is not None]
    if not ranges and not accept.strip():
        return [MediaRange("*/*", multipart=True)]
    return sorted((one for one in ranges if one.quality > 0), key=lambda one: -one.quality)


def _range(element: str) -> MediaRange | None:
    name = element.partition(";")[0].strip().lower()
    if not re.fullmatch(r"[^\s/]+/[^\s/]+", name):
        return None
    found = _PARAMETER.findall(element)
    parameters = {key.lower(): (re.sub(r"\\(.)", r"\1", quoted) or plain).strip() for key, quoted, plain in found}
    try:
        quality = min(1.0, max(0.0, float(parameters.pop("q", "1"))))
    except ValueError:
        return None
    if name in ("multipart/related", "multipart/*"):
        return MediaRange(parameters.pop("type", "*/*").lower(), False, True, quality, parameters)
    return MediaRange(name, True, name == "*/*", quality, parameters)


def check_takes(accept: str, *media_types: str) -> str:
    """The first of our media types (of a body that is not multipart) that the client takes.

    Raises:
        NotAcceptable: none of them.
    """
    for wanted in media_ranges(accept):
        for media_type in media_types:
            if wanted.single and wanted.takes(media_type):
                return media_type
    raise not_acceptable(accept, media_types)


def not_acceptable(accept: str, media_types: tuple[str, ...]) -> NotAcceptable:
    return NotAcceptable(
        f"nothing of what is accepted ({accept[:200]!r}) can be given", remedy=f"accept {' or '.join(media_types)}"
    )
