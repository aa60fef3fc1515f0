"""Pictures with burnt-in outlines, for whoever cannot show a SEG: one for each embolus, or why there is none."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from imaging.findings import Findings, Lesion
from imaging.geometry import to_canonical
from imaging.label_areas import label_areas
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from services.dicom.picture_panels import BACKGROUND_RGB, MUTED_RGB, PANEL_PX, TEXT_RGB, axial_panel
from services.dicom.result_wording import NOTICE, headline, lesion_line, reason_line

_TITLE_PX = 72
_LINE_PX = 28


def embolus_pictures(volume: CtVolume, result: SegmentationResult, lesions: Sequence[Lesion]) -> list[Image.Image]:
    """For each of the lesions the axial slice that shows most of it."""
    canonical, order = to_canonical(volume)
    artery = order.apply(result.artery)
    labels = order.apply(result.embolus_labelmap)
    emboli = [lesion.id for lesion in result.findings.reported]
    areas = label_areas(labels)
    pictures = []
    for lesion in lesions:
        index = int(areas[:, lesion.id].argmax())
        picture = _titled(lesion_line(lesion), (PANEL_PX, PANEL_PX + _TITLE_PX))
        picture.paste(axial_panel(canonical, artery[index], labels[index], emboli, index), (0, _TITLE_PX))
        pictures.append(picture)
    return pictures


def overview_picture(preview: Image.Image, findings: Findings) -> Image.Image:
    """The preview with the warnings below it: what it shows must not be taken for more than it is."""
    lines = _reason_lines(findings)
    picture = Image.new("RGB", (preview.width, preview.height + _LINE_PX * len(lines)), BACKGROUND_RGB)
    picture.paste(preview, (0, 0))
    _write_lines(picture, lines, preview.height)
    return picture


def refusal_picture(findings: Findings) -> Image.Image:
    """The reasons why nothing is said, in words; there is no image to show."""
    lines = _reason_lines(findings)
    picture = _titled(headline(findings), (2 * PANEL_PX, _TITLE_PX + max(PANEL_PX // 2, _LINE_PX * len(lines))))
    _write_lines(picture, lines, _TITLE_PX)
    return picture


def _reason_lines(findings: Findings) -> list[str]:
    return [line for reason in findings.reasons for line in textwrap.wrap(reason_line(reason), 110)]


def _write_lines(picture: Image.Image, lines: Sequence[str], top_px: int) -> None:
    for number, line in enumerate(lines):
        place = (14, top_px + _LINE_PX * number)
        ImageDraw.Draw(picture).text(place, line, fill=TEXT_RGB, font=ImageFont.load_default(20))


def _titled(title: str, size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, BACKGROUND_RGB)
    draw = ImageDraw.Draw(picture)
    draw.text((14, 8), title, fill=TEXT_RGB, font=ImageFont.load_default(22))
    draw.text((14, 44), NOTICE, fill=MUTED_RGB, font=ImageFont.load_default(16))
    return picture
