"""Delivering a result object into a folder: complete under its name, or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from imaging.errors import DeliveryError
from services.delivery.destinations import Folder
from services.delivery.sent_object import SentObject
from services.store.durability import Durability, sync


def copy_to_folder(folder: Folder, path: Path, sop_instance_uid: str, durability: Durability) -> SentObject:
    """Copy to `<SOP Instance UID>.dcm`; doing it again changes nothing."""
    final = folder.path / f"{sop_instance_uid}.dcm"
    temporary = folder.path / f".{sop_instance_uid}.arriving"
    try:
        shutil.copyfile(path, temporary)
        if durability is Durability.POWER:
            sync(temporary)
        os.replace(temporary, final)
        if durability is Durability.POWER:
            sync(folder.path)
    except OSError as error:
        return SentObject(path, DeliveryError(f"cannot copy to folder {folder.name}: {error.strerror}"))
    return SentObject(path)
