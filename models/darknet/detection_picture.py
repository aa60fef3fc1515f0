"""Detected boxes drawn into a picture: red where the network is unsure, green where it is sure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

ALPHA = 0.8


def draw_box(
    picture: Picture, left: int, top: int, right: int, bottom: int, confidence: float, *, thickness: int, alpha: float
) -> None:
    """Blends the border of a box into `picture`, (rows, columns, RGB), in place.

    Args:
        left, top, right, bottom: pixels the border runs through; parts outside the picture are not drawn.
        thickness: of the border, pixels; an even one reaches further inwards.
        alpha: the border's share of the colour, 0..1.
    """
    outside, inside = (thickness - 1) // 2, thickness // 2
    border = np.zeros(picture.shape[:2], dtype=bool)
    border[_span(top - outside, bottom + outside), _span(left - outside, right + outside)] = True
    border[_span(top + inside + 1, bottom - inside - 1), _span(left + inside + 1, right - inside - 1)] = False
    mixed = alpha * np.array(confidence_colour(confidence)) + (1 - alpha) * picture[border]
    picture[border] = mixed.astype(np.uint8)


def confidence_colour(confidence: float) -> tuple[int, int, int]:
    """RGB of a confidence 0..1."""
    return int(255 * (1 - confidence**2)), int(255 * confidence**2), 0


def _span(first: int, last: int) -> slice:
    """From pixel `first` to `last`, both included, as far as they lie in a picture; empty where last < first."""
    return slice(max(0, first), max(0, last + 1))
