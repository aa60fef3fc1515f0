"""One picture where people look first: the slice with the most probable embolus, and where all of them lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from imaging.findings import Findings
from imaging.geometry import to_canonical
from imaging.label_areas import label_areas
from imaging.result import SegmentationResult
from imaging.volume import CtVolume, Mask
from services.dicom.picture_panels import (
    ARTERY_RGB,
    BACKGROUND_RGB,
    CANDIDATE_RGB,
    EMBOLUS_RGB,
    MUTED_RGB,
    PANEL_PX,
    TEXT_RGB,
    axial_panel,
    coronal_panel,
)
from services.dicom.result_wording import NOTICE, headline

TITLE_PX = 72


def preview_picture(volume: CtVolume, result: SegmentationResult) -> Image.Image:
    """Two panels: left the axial slice, right the coronal projection with every embolus numbered."""
    canonical, order = to_canonical(volume)
    artery = order.apply(result.artery)
    labels = order.apply(result.embolus_labelmap)
    emboli = [lesion.id for lesion in result.findings.reported]
    index = _slice_to_show(labels, artery)
    picture = Image.new("RGB", (2 * PANEL_PX, PANEL_PX + TITLE_PX), BACKGROUND_RGB)
    picture.paste(axial_panel(canonical, artery[index], labels[index], emboli, index), (0, TITLE_PX))
    picture.paste(coronal_panel(canonical, artery, labels, emboli), (PANEL_PX, TITLE_PX))
    _write_title(picture, result.findings)
    return picture


def _slice_to_show(labels: NDArray[Any], artery: Mask) -> int:
    """The slice that shows most of the first (most probable) embolus; without one, most of the artery."""
    areas = label_areas(labels)
    for area in (areas[:, 1:2].sum(axis=1), areas.sum(axis=1), [np.count_nonzero(plane) for plane in artery]):
        if np.any(area):
            return int(np.argmax(area))
    return len(labels) // 2


def _write_title(picture: Image.Image, findings: Findings) -> None:
    draw = ImageDraw.Draw(picture)
    draw.text((14, 8), headline(findings), fill=TEXT_RGB, font=ImageFont.load_default(26))
    draw.text((14, 44), NOTICE, fill=MUTED_RGB, font=ImageFont.load_default(16))
    legend = [("embolus", EMBOLUS_RGB), ("pulmonary artery", ARTERY_RGB)]
    if len(findings.lesions) > len(findings.reported):
        legend.insert(0, ("candidate", CANDIDATE_RGB))
    right = picture.width - 14
    for name, colour in legend:
        font = ImageFont.load_default(16)
        right -= int(draw.textlength(name, font=font))
        draw.text((right, 44), name, fill=colour, font=font)
        right -= 18
