"""Figures and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from imaging.bootstrap import Estimate

UNKNOWN = "–"


def with_interval(estimate: Estimate, digits: int = 3, *, signed: bool = False) -> str:
    """`0.912 (0.871 to 0.945)`; a dash where nothing was measured, no brackets where there is no interval."""
    if not estimate.known:
        return UNKNOWN
    form = f"{'+' if signed else ''}.{digits}f"
    if math.isnan(estimate.low):
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
