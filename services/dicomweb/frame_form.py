"""In which form frames are given: decoded, or compressed as they are stored (PS3.18 section 8.7.3.5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from services.dicomweb.accept import MediaRange, NotAcceptable
from services.dicomweb.frames import Frames

OCTET_STREAM = "application/octet-stream"
# PS3.18 Table 8.7.3-5
_COMPRESSED: dict[str, str] = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), "image/jpeg"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "image/jls"),
    **dict.fromkeys((JPEG2000Lossless, JPEG2000), "image/jp2"),
    **dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "image/jphc"),
    RLELossless: "image/dicom-rle",
}


@dataclass(frozen=True, slots=True)
class FrameForm:
    """Frames of one instance in one media type."""

    frames: Frames
    media_type: str
    is_decoded: bool

    @property
    def content_type(self) -> str:
        syntax = ExplicitVRLittleEndian if self.is_decoded else self.frames.transfer_syntax_uid
        return f"{self.media_type}; transfer-syntax={syntax}"

    def content(self, index: int) -> bytes:
        return self.frames.decoded(index) if self.is_decoded else self.frames.stored(index)


def frame_form(frames: Frames, ranges: list[MediaRange], index: int) -> FrameForm:
    """The form that the client likes best of those in which the frame can be given.

    Raises:
        NotAcceptable: in none.
        NotFound: there is no such frame.
    """
    why = NotAcceptable(
        f"frames in {UID(frames.transfer_syntax_uid).name} are not given in any accepted form",
        remedy=f'accept multipart/related; type="{OCTET_STREAM}"; transfer-syntax=*',
    )
    for form in _wanted_forms(frames, ranges):
        try:
            form.content(index)
        except NotAcceptable as error:
            why = error
        else:
            return form
    raise why


def _wanted_forms(frames: Frames, ranges: list[MediaRange]) -> Iterator[FrameForm]:
    stored_type = _COMPRESSED.get(frames.transfer_syntax_uid)
    decoded = FrameForm(frames, OCTET_STREAM, is_decoded=True)
    stored = None if stored_type is None else FrameForm(frames, stored_type, is_decoded=False)
    for wanted in ranges:
        if not wanted.multipart:
            continue
        syntax = wanted.transfer_syntax_uid
        if wanted.takes(OCTET_STREAM):
            if syntax in (None, ExplicitVRLittleEndian):
                yield decoded
            elif syntax == "*" or syntax == frames.transfer_syntax_uid:
                yield stored or decoded
        if stored is not None and wanted.takes(stored.media_type) and syntax in (None, "*", frames.transfer_syntax_uid):
            yield stored
