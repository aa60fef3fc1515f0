"""Data sets in the DICOM JSON Model (PS3.18 Annex F), with big values left out and named by a URL."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.valuerep import STANDARD_VR

from services.dicom.headers import MALFORMED

JsonModel = dict[str, Any]
_INLINE_BYTES = 1024
_BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


def dicom_json(dataset: Dataset) -> bytes:
    return as_bytes(json_model(dataset))


def as_bytes(model: Any) -> bytes:
    return json.dumps(model, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_model(dataset: Dataset, bulk_data_uri: Callable[[str], str] | None = None) -> JsonModel:
    """The data set, element by element. An element whose value is malformed is there without a value.

    Args:
        bulk_data_uri: the URL of an element of the top level by its tag, eight digits; where given, binary values over
            a kilobyte are named by it instead of being repeated.
    """
    model: JsonModel = {}
    for tag in sorted(dataset.keys()):
        key = f"{int(tag):08X}"
        try:
            element = dataset[tag]
            if bulk_data_uri is not None and is_bulk(element):
                model[key] = {"vr": element.VR, "BulkDataURI": bulk_data_uri(key)}
            else:
                model[key] = _finite(element.to_json_dict(None, _INLINE_BYTES))
        except (*MALFORMED, OSError):  # pydicom's, without errno: what it says of an element that breaks off
            model[key] = {"vr": _vr_of(dataset, tag)}
    return model


def _vr_of(dataset: Dataset, tag: BaseTag) -> str:
    """Of an element whose value cannot be read; UN where its VR is damaged too."""
    with suppress(*MALFORMED, OSError):
        vr = dataset.get_item(tag).VR
        if vr in STANDARD_VR:
            return str(vr)
    return "UN"


def is_bulk(element: DataElement) -> bool:
    return element.VR in _BULK_VRS and isinstance(element.value, bytes) and len(element.value) > _INLINE_BYTES


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know as the strings that the model has for them (PS3.18 F.2.5)."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value
