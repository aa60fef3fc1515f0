"""Telling a node that another one has a job's objects: Instance Availability Notification (PS3.4 Annex R)."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.sop_class import InstanceAvailabilityNotification  # type: ignore[attr-defined]  # as in store_scp

from imaging.errors import DeliveryError
from services.delivery.association import association_with
from services.delivery.destinations import Node
from services.dicom.headers import MALFORMED
from services.dicom.sop_reference import reference_to

PROPOSED = tuple(
    (InstanceAvailabilityNotification, syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
)
_SUCCESS = 0x0000
_DUPLICATE = 0x0111  # PS3.7 C.5.7: it has this notification


def announce(
    node: Node,
    paths: Sequence[Path],
    retrieve_ae_title: str,
    sop_instance_uid: str,
    *,
    calling_ae_title: str,
    tls: ssl.SSLContext | None = None,
) -> str:
    """N-CREATE of a notification that names these files' objects; returns what there is to say of the answer.

    Raises:
        DeliveryError: the node did not take it.
    """
    notification = _notification(paths, retrieve_ae_title)
    with association_with(node, PROPOSED, calling_ae_title=calling_ae_title, tls=tls) as association:
        try:
            answer, _ = association.send_n_create(notification, InstanceAvailabilityNotification, sop_instance_uid)
        except RuntimeError as error:
            raise DeliveryError(f"{node.ae_title} ended the association") from error
    status = answer.get("Status")
    if status is None:
        raise DeliveryError(f"{node.ae_title} did not answer the availability notification")
    if status not in (_SUCCESS, _DUPLICATE):
        raise DeliveryError(f"{node.ae_title} refused the availability notification (0x{status:04X})")
    return "" if status == _SUCCESS else "which it had already"


def _notification(paths: Sequence[Path], retrieve_ae_title: str) -> Dataset:
    """PS3.4 Table R.3.2-1."""
    try:
        objects = [dcmread(path, stop_before_pixels=True) for path in paths]
    except OSError as error:
        raise DeliveryError(f"cannot read the result files: {error.strerror}") from error
    except MALFORMED as error:
        raise DeliveryError("a result file is not DICOM") from error
    notification = Dataset()
    notification.ReferencedPerformedProcedureStepSequence = []
    notification.StudyInstanceUID = objects[0].StudyInstanceUID
    notification.ReferencedSeriesSequence = []
    by_series = sorted(objects, key=lambda one: str(one.SeriesInstanceUID))
    for series_instance_uid, of_series in groupby(by_series, key=lambda one: str(one.SeriesInstanceUID)):
        series = Dataset()
        series.SeriesInstanceUID = series_instance_uid
        series.ReferencedSOPSequence = []
        for one in of_series:
            item = reference_to(str(one.SOPClassUID), str(one.SOPInstanceUID))
            item.InstanceAvailability = "ONLINE"
            item.RetrieveAETitle = retrieve_ae_title
            series.ReferencedSOPSequence.append(item)
        notification.ReferencedSeriesSequence.append(series)
    return notification
