"""The report for people: one A4 page with the answer, what was measured, pictures, warnings and what made it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from imaging.findings import RESEARCH_USE_ONLY, Findings
from services.dicom.identity import ResultIdentity
from services.dicom.result_object import content_date_time
from services.dicom.result_wording import headline, reason_line

_DOTS_PER_INCH = 150
_PAGE_PX = (1240, 1754)  # A4
_MARGIN_PX = 60
_INK_RGB, _MUTED_RGB, _WARNING_RGB, _PAPER_RGB = (20, 20, 20), (95, 95, 95), (176, 32, 32), (255, 255, 255)
_LINE_PX, _BOTTOM_PX = 28, 1600  # of a table's row; where there is room for nothing more than what made the page
_MOST_LINES = 8  # of reasons, so that the pictures fit below them
_ELSEWHERE = "The structured report has the rest."
_COLUMNS = ("embolus", "artery level", "volume ml", "long axis mm", "mean HU", "score")


def report_pdf(findings: Findings, pictures: Sequence[Image.Image], source: Dataset, identity: ResultIdentity) -> bytes:
    """The page as PDF; the same bytes for the same arguments.

    Args:
        pictures: the overview first, then up to three more, which stand side by side.
        source: clean header of the (first) source image.
    """
    page = _Page()
    page.line("Embolens: pulmonary embolism in CT pulmonary angiography", 30)
    page.line(RESEARCH_USE_ONLY, 24, _WARNING_RGB)
    page.line(_whose(source), 20, _MUTED_RGB)
    page.space(16)
    page.line(headline(findings), 32)
    lines = [line for reason in findings.reasons for line in textwrap.wrap(reason_line(reason), 105)]
    for line in lines[:_MOST_LINES]:
        page.line(line, 20)
    if len(lines) > _MOST_LINES:
        page.line(_ELSEWHERE, 18, _MUTED_RGB)
    page.space(12)
    page.pictures(pictures[:1], columns=1)
    page.pictures(pictures[1:4], columns=3)
    page.table(_COLUMNS, _rows(findings))
    page.at_the_bottom(_who_made_it(identity))
    date, moment = content_date_time(source)
    return page.pdf(time.strptime(f"{date} {str(moment)[:6]:0<6}", "%Y%m%d %H%M%S"))


def _whose(source: Dataset) -> str:
    """In ASCII, which the font has; the name stands in the object's header and in the viewer."""
    said = {
        "patient ID": source.PatientID,
        "accession number": source.AccessionNumber,
        "study date": source.StudyDate,
    }
    line = ", ".join(f"{name} {value}" for name, value in said.items() if value)
    return line.encode("ascii", "backslashreplace").decode()


def _rows(findings: Findings) -> list[tuple[str, ...]]:
    return [
        (
            str(lesion.id),
            lesion.artery_level.value,
            f"{lesion.volume_ml:.2f}",
            f"{lesion.max_diameter_mm:.1f}",
            f"{lesion.mean_hu:.0f}",
            f"{lesion.score:.2f}",
        )
        for lesion in findings.reported
    ]


def _who_made_it(identity: ResultIdentity) -> list[str]:
    return [
        f"Embolens {identity.software_version}, model package {identity.package_name} {identity.package_version}",
        f"package SHA-256 {identity.package_sha256}",
        f"configuration SHA-256 {identity.configuration_sha256}",
    ]


class _Page:
    """Filled from the top downwards."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", _PAGE_PX, _PAPER_RGB)
        self._draw = ImageDraw.Draw(self._image)
        self._y = _MARGIN_PX

    def space(self, height_px: int) -> None:
        self._y += height_px

    def line(self, text: str, size_px: int, colour: tuple[int, int, int] = _INK_RGB) -> None:
        self._draw.text((_MARGIN_PX, self._y), text, fill=colour, font=ImageFont.load_default(size_px))
        self._y += round(size_px * 1.4)

    def pictures(self, pictures: Sequence[Image.Image], *, columns: int) -> None:
        """Of one shape, side by side."""
        width = (_PAGE_PX[0] - 2 * _MARGIN_PX) // columns
        for number, picture in enumerate(pictures):
            scaled = picture.resize((width - 8, round((width - 8) * picture.height / picture.width)))
            self._image.paste(scaled, (_MARGIN_PX + number * width, self._y))
        if pictures:
            self._y += scaled.height + 12

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """As many rows as there is room for."""
        room = (_BOTTOM_PX - self._y) // _LINE_PX - 2
        if rows:
            self._row(columns, _MUTED_RGB)
        for cells in rows[:room]:
            self._row(cells, _INK_RGB)
        if len(rows) > room:
            self.line(_ELSEWHERE, 18, _MUTED_RGB)

    def _row(self, cells: Sequence[str], colour: tuple[int, int, int]) -> None:
        width = (_PAGE_PX[0] - 2 * _MARGIN_PX) // len(cells)
        for number, cell in enumerate(cells):
            place = (_MARGIN_PX + number * width, self._y)
            self._draw.text(place, cell, fill=colour, font=ImageFont.load_default(20))
        self._y += _LINE_PX

    def at_the_bottom(self, lines: Sequence[str]) -> None:
        self._y = _PAGE_PX[1] - _MARGIN_PX - 24 * len(lines)
        for text in lines:
            self.line(text, 17, _MUTED_RGB)

    def pdf(self, made_at: time.struct_time) -> bytes:
        written = BytesIO()
        self._image.save(
            written,
            format="PDF",
            resolution=_DOTS_PER_INCH,
            quality=90,
            title="Embolens report, research use only",
            creationDate=made_at,
            modDate=made_at,
        )
        return written.getvalue()
