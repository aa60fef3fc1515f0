from __future__ import annotations

from dataclasses import replace

from pydicom.uid import UID

from services.dicom.uids import derive_uid
from tests.services.dicom.made_series import IDENTITY


def test_a_derived_uid_is_valid_and_depends_on_its_parts_alone() -> None:
    assert derive_uid("a", "b") == derive_uid("a", "b") == "2.25." + derive_uid("a", "b")[5:]
    assert UID(derive_uid("a", "b")).is_valid
    assert len(derive_uid("x" * 1000)) <= 44


def test_parts_cannot_run_into_each_other() -> None:
    assert len({derive_uid("ab", "c"), derive_uid("a", "bc"), derive_uid("abc"), derive_uid("abc", "")}) == 4


def test_any_change_of_identity_gives_new_uids() -> None:
    changed = [replace(IDENTITY, **{field: "other"}) for field in IDENTITY.to_dict()]
    assert len({identity.uid("seg") for identity in [IDENTITY, *changed]}) == 7
