"""The images of a study that could not be analysed, as a result that says so refers to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from imaging.errors import InputError
from services.dicom.headers import is_directory, read_header, text
from services.dicom.reference_headers import without_uids

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def refused_images(paths: Iterable[Path]) -> list[Dataset]:
    """One clean header per instance, each instance once; what is not DICOM or has no UIDs is passed over.

    Empty where there is nothing to refer to, and where the images belong to several patients or studies: an answer
    about them must not end in the record of one.
    """
    images: dict[str, Dataset] = {}
    owners = set()
    for path in paths:
        try:
            header = read_header(path)
        except InputError:
            continue
        uids = {keyword: text(header, keyword) for keyword in _UIDS}
        if is_directory(header) or not all(UID(uid).is_valid for uid in uids.values()):
            continue
        owners.add((text(header, "PatientID"), uids["StudyInstanceUID"]))
        image = without_uids(header)
        for keyword, uid in uids.items():
            setattr(image, keyword, uid)
        images[uids["SOPInstanceUID"]] = image
    return [images[uid] for uid in sorted(images)] if len(owners) == 1 else []
