"""What the pipeline asks of the networks. `models.cascade.Cascade` is one; a test may bring another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from imaging.result import SegmentationResult
from imaging.volume import CtVolume

OnProgress = Callable[[str, float], None]


class PackageIdentity(Protocol):
    """Which weights: enough to tell one result from another."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def sha256(self) -> str: ...


class Segmenter(Protocol):
    """A CT volume in, emboli and artery on the same grid out."""

    @property
    def package(self) -> PackageIdentity: ...

    def segment(
        self, volume: CtVolume, *, on_progress: OnProgress | None = None, min_score: float | None = None
    ) -> SegmentationResult:
        """Raises NotAnalysable, and whatever `on_progress` raises."""
        ...
