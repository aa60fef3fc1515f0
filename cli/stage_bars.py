"""One bar per stage of the work on a study, on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

STAGES = {
    "load": "reading the images",
    "roi": "finding the lungs",
    "unet": "2D networks, slice by slice",
    "aanet": "3D network along the arteries",
    "fuse": "fusing, finding lesions",
    "write": "writing the results",
    "convert": "reading, writing, comparing",
}


class StageBars:
    """Call it with (stage, fraction of the stage); a stage that is called is the current one."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<30}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, fraction: float) -> None:
        """A stage's bar appears when it begins; those before it are then full."""
        if stage not in self._bars:
            for earlier in self._bars.values():
                self._progress.update(earlier, completed=1.0)
            self._bars[stage] = self._progress.add_task(STAGES[stage], total=1.0)
        self._progress.update(self._bars[stage], completed=fraction)

    def finish(self) -> None:
        """Every bar that began is full."""
        for bar in self._bars.values():
            self._progress.update(bar, completed=1.0)
