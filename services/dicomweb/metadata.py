"""Everything but the big values of an instance, in the DICOM JSON Model (PS3.18 section 10.4.1.1.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword

from imaging.errors import NotFound
from services.dicom.headers import MALFORMED
from services.dicomweb.frames import Frames
from services.dicomweb.json_model import JsonModel, is_bulk, json_model

_PIXEL_DATA = f"{tag_for_keyword('PixelData'):08X}"
_AVAILABLE_TRANSFER_SYNTAX = f"{tag_for_keyword('AvailableTransferSyntaxUID'):08X}"


def instance_metadata(path: Path, instance_url: str) -> JsonModel:
    """The header; pixel data and other binary values over a kilobyte are named by the URL of their bulk data."""

    def bulk_data_uri(tag: str) -> str:
        return f"{instance_url}/bulkdata/{tag}"

    frames = Frames(path)
    model = json_model(frames.header, bulk_data_uri)
    if frames.count:
        model[_PIXEL_DATA] = {"vr": "OW", "BulkDataURI": bulk_data_uri(_PIXEL_DATA)}
    model[_AVAILABLE_TRANSFER_SYNTAX] = {"vr": "UI", "Value": [str(frames.transfer_syntax_uid)]}
    return model


def bulk_data(path: Path, tag: str) -> Iterator[bytes]:
    """The value that the metadata names by a URL.

    Raises:
        NotFound: there is none under this tag.
    """
    if tag.upper() == _PIXEL_DATA:
        frames = Frames(path)
        if frames.count:
            return frames.whole()
    else:
        try:
            element = dcmread(path, force=True, stop_before_pixels=True, specific_tags=[int(tag, 16)]).get(int(tag, 16))
            if element is not None and is_bulk(element):
                return iter([element.value])
        except MALFORMED:
            pass
    raise NotFound(f"the instance has no bulk data {tag}", remedy="the metadata names what there is")
