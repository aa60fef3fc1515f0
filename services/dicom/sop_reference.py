"""How one DICOM object names another."""

from __future__ import annotations

from pydicom.dataset import Dataset


def reference_to(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """An item that names an instance (PS3.3 Table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item
