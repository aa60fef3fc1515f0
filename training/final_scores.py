"""What each trained network scored at the end, and where its files lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TEST_CASES, VALIDATION_CASES = "test cases", "validation"
_VALIDATION_TAG = "validation/"
_PLACES = ("weights.safetensors", "checkpoint.pt", "test")


@dataclass(frozen=True, slots=True)
class FinalScores:
    """Figures of one network by name, and the cases they are about.

    Attributes:
        files: those that are there: weights, checkpoint, test pictures and figures, TensorBoard's log.
    """

    network: str
    cases: str
    scores: Mapping[str, float]
    files: tuple[Path, ...]

    @classmethod
    def of(cls, network: str, folder: Path, log_folder: Path | None = None) -> FinalScores:
        """Of the network that `train_network` left in `folder`: on the test cases, or else the last validation."""
        log = log_folder or folder / "log"
        tested = folder / "test" / "scores.json"
        if tested.is_file():
            cases, scores = TEST_CASES, json.loads(tested.read_text(encoding="utf-8"))
        else:
            cases, scores = VALIDATION_CASES, _last_validation(log)
        places = (*(folder / name for name in _PLACES), log)
        return cls(network, cases, scores, tuple(place for place in places if place.exists()))


def _last_validation(log: Path) -> dict[str, float]:
    events = EventAccumulator(str(log)).Reload()
    return {
        tag.removeprefix(_VALIDATION_TAG): float(events.Scalars(tag)[-1].value)
        for tag in events.Tags()["scalars"]
        if tag.startswith(_VALIDATION_TAG)
    }
