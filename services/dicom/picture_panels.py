"""A panel of a picture: an axial slice or a coronal projection, with the outlines of what was found in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imaging.volume import CtVolume, Mask

PANEL_PX = 640
# The window radiologists read pulmonary emboli in: level 100, width 700 HU
WINDOW_HU = (-250.0, 450.0)
ARTERY_RGB = (86, 156, 214)
EMBOLUS_RGB = (255, 82, 64)
CANDIDATE_RGB = (255, 190, 64)
TEXT_RGB = (235, 235, 235)
MUTED_RGB = (160, 165, 170)
BACKGROUND_RGB = (16, 18, 20)
Rgb = NDArray[np.uint8]


def axial_panel(volume: CtVolume, artery: Mask, labels: NDArray[Any], emboli: Sequence[int], index: int) -> Image.Image:
    _, row_mm, column_mm = volume.spacing_zyx_mm
    fit = _Fit(volume.shape_zyx[1] * row_mm, volume.shape_zyx[2] * column_mm)
    grey = fit.image(_windowed(volume.hu[index].astype(np.float32), *WINDOW_HU), Image.Resampling.BICUBIC)
    panel = np.repeat(grey[:, :, None], 3, axis=2)
    _draw_outline(panel, fit.mask(artery), ARTERY_RGB, width=1)
    _draw_lesions(panel, fit, labels, emboli, width=2)
    height_mm = volume.point_lps_mm((index, 0, 0))[2]
    image = _annotated(panel, f"axial slice {index + 1} of {volume.shape_zyx[0]}, z {height_mm:.1f} mm")
    for label in np.unique(labels[labels > 0]):
        fit.write_number(image, int(label), labels == label, _colour(label, emboli))
    return image


def coronal_panel(volume: CtVolume, artery: Mask, labels: NDArray[Any], emboli: Sequence[int]) -> Image.Image:
    slice_mm, _, column_mm = volume.spacing_zyx_mm
    fit = _Fit(volume.shape_zyx[0] * slice_mm, volume.shape_zyx[2] * column_mm)
    # Mean along the beam as in a radiograph, superior up; slice by slice, without a float copy of the volume
    mean_hu = np.stack([plane.mean(axis=0, dtype=np.float32) for plane in volume.hu])[::-1]
    low, high = np.percentile(mean_hu, (2, 99))
    grey = fit.image(_windowed(mean_hu, float(low), float(high) + 1.0) * 0.75, Image.Resampling.BICUBIC)
    panel = np.repeat(grey[:, :, None], 3, axis=2)
    depth = np.stack([plane.view(np.uint8).sum(axis=0, dtype=np.uint16) for plane in artery])[::-1].astype(np.float32)
    opacity = (
        fit.image(np.clip(depth / max(1.0, float(depth.max())) * 2.0, 0, 1) * 160, Image.Resampling.BILINEAR) / 255.0
    )
    panel = (panel * (1 - opacity[..., None]) + np.array(ARTERY_RGB) * opacity[..., None]).astype(np.uint8)
    projected = labels.max(axis=1)[::-1]
    _draw_lesions(panel, fit, projected, emboli, width=3)
    image = _annotated(panel, "coronal projection")
    for label in np.unique(projected[projected > 0]):
        fit.write_number(image, int(label), projected == label, _colour(label, emboli))
    return image


class _Fit:
    """Scales an image of known extent into a square panel, in the middle, in true proportions."""

    def __init__(self, height_mm: float, width_mm: float) -> None:
        scale = PANEL_PX / max(height_mm, width_mm)
        self._size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
        self._left, self._top = (PANEL_PX - self._size[0]) // 2, (PANEL_PX - self._size[1]) // 2

    def image(self, values: NDArray[Any], resampling: Image.Resampling) -> NDArray[np.uint8]:
        panel = Image.new("L", (PANEL_PX, PANEL_PX))
        scaled = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).resize(self._size, resampling)
        panel.paste(scaled, (self._left, self._top))
        return np.asarray(panel).copy()

    def mask(self, mask: Mask) -> Mask:
        return self.image(mask.astype(np.uint8) * 255, Image.Resampling.NEAREST) > 127

    def write_number(self, image: Image.Image, number: int, mask: Mask, colour: tuple[int, int, int]) -> None:
        """The number to the right of its mask."""
        rows, columns = np.nonzero(mask)
        x = self._left + (columns.max() + 1) / mask.shape[1] * self._size[0] + 6
        y = self._top + (rows.mean() + 0.5) / mask.shape[0] * self._size[1] - 10
        ImageDraw.Draw(image).text((x, y), str(number), fill=colour, font=ImageFont.load_default(18))


def _windowed(hu: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    return np.asarray(np.clip((hu - low) / (high - low), 0, 1) * 255, dtype=np.float32)


def _draw_outline(panel: Rgb, mask: Mask, colour: tuple[int, int, int], *, width: int) -> None:
    inner = mask
    for _ in range(width):
        inner = _eroded(inner)
    panel[mask & ~inner] = colour


def _eroded(mask: Mask) -> Mask:
    """The pixels whose four neighbours are set too; outside the panel nothing is."""
    inner = np.zeros_like(mask)
    across = mask[1:-1, :-2] & mask[1:-1, 2:]
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & across
    return inner


def _draw_lesions(panel: Rgb, fit: _Fit, labels: NDArray[Any], emboli: Sequence[int], *, width: int) -> None:
    """Emboli over the candidates below the threshold, which have a colour of their own."""
    found = np.isin(labels, emboli)
    _draw_outline(panel, fit.mask((labels > 0) & ~found), CANDIDATE_RGB, width=width)
    _draw_outline(panel, fit.mask(found), EMBOLUS_RGB, width=width)


def _colour(label: int, emboli: Sequence[int]) -> tuple[int, int, int]:
    return EMBOLUS_RGB if label in emboli else CANDIDATE_RGB


def _annotated(panel: Rgb, caption: str) -> Image.Image:
    image = Image.fromarray(panel)
    draw = ImageDraw.Draw(image)
    draw.text((10, PANEL_PX - 26), caption, fill=MUTED_RGB, font=ImageFont.load_default(15))
    # Seen from the feet, or from the front: the patient's right is on the left in both
    draw.text((10, PANEL_PX // 2 - 10), "R", fill=TEXT_RGB, font=ImageFont.load_default(18))
    draw.text((PANEL_PX - 22, PANEL_PX // 2 - 10), "L", fill=TEXT_RGB, font=ImageFont.load_default(18))
    return image
