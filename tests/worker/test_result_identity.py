"""What a result's UIDs depend on."""

from __future__ import annotations

from dataclasses import replace

from tests.worker.threshold_worker import Package
from worker.result_identity import identify_result


def test_the_same_inputs_weights_and_settings_give_the_same_uids() -> None:
    assert identify_result(Package(), "a" * 64).uid("seg") == identify_result(Package(), "a" * 64).uid("seg")


def test_another_input_package_score_or_mode_gives_other_uids() -> None:
    identities = [
        identify_result(Package(), "a" * 64),
        identify_result(Package(), "b" * 64),
        identify_result(replace(Package(), sha256="1" * 64), "a" * 64),
        identify_result(Package(), "a" * 64, min_score=0.1),
        identify_result(Package(), "a" * 64, mode="vessel"),
    ]
    assert len({identity.uid("seg") for identity in identities}) == 5
