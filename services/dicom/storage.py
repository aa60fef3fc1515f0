"""What the listener accepts: storage SOP classes (PS3.4 B.5) and transfer syntaxes (PS3.5 section 10)."""

from __future__ import annotations

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)

# By keyword, as the Standard names them (PS3.6 Table A-1).
CT_STORAGE_SOP_CLASSES: dict[str, str] = {
    "CTImageStorage": CTImageStorage,
    "EnhancedCTImageStorage": EnhancedCTImageStorage,
    "LegacyConvertedEnhancedCTImageStorage": LegacyConvertedEnhancedCTImageStorage,
}
MULTI_FRAME_CT_SOP_CLASSES = frozenset({EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})

UNCOMPRESSED_TRANSFER_SYNTAXES: tuple[str, ...] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
# In the order of preference offered to a peer: what needs no decoding first. series_reader reads every one of them.
ACCEPTED_TRANSFER_SYNTAXES: tuple[str, ...] = (
    *UNCOMPRESSED_TRANSFER_SYNTAXES,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGLosslessSV1,
    JPEGLossless,
    RLELossless,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLSNearLossless,
    JPEG2000,
    HTJ2K,
    JPEGExtended12Bit,
    JPEGBaseline8Bit,
)
