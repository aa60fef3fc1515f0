"""What a result's UIDs depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.dicom.identity import ResultIdentity
from services.dicom.seg_options import SegOptions, SegType
from tests.worker.threshold_worker import Package
from worker.result_identity import identify_result


def identity(package: Package | None = None, digest: str = "a" * 64, **configuration: Any) -> ResultIdentity:
    return identify_result(package or Package(), digest, **({"seg_options": SegOptions()} | configuration))


def test_the_same_inputs_weights_and_settings_give_the_same_uids() -> None:
    assert identity().uid("seg") == identity().uid("seg")


def test_another_input_package_score_mode_or_kind_of_seg_gives_other_uids() -> None:
    identities = [
        identity(),
        identity(digest="b" * 64),
        identity(replace(Package(), sha256="1" * 64)),
        identity(min_score=0.1),
        identity(mode="vessel"),
        identity(seg_options=SegOptions(SegType.LABELMAP)),
        identity(seg_options=SegOptions(artery=False)),
    ]
    assert len({one.uid("seg") for one in identities}) == 7


def test_the_device_is_the_model_package_whatever_it_was_given() -> None:
    assert identity().device_uid == identity(digest="b" * 64, mode="vessel").device_uid
    assert identity().device_uid != identity(replace(Package(), sha256="1" * 64)).device_uid
