from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from imaging.findings import Outcome
from imaging.volume import CtVolume
from services.dicom.picture_panels import CANDIDATE_RGB, EMBOLUS_RGB, PANEL_PX, _draw_outline
from services.dicom.preview import TITLE_PX, preview_picture
from tests.services.dicom.made_series import axial_affine, counting_volume, made_result


def embolus_pixels(path: Path) -> np.ndarray:
    picture = np.asarray(Image.open(path))
    assert picture.shape == (PANEL_PX + TITLE_PX, 2 * PANEL_PX, 3)
    return np.argwhere((picture[TITLE_PX:] == EMBOLUS_RGB).all(axis=2))


@pytest.mark.parametrize("emboli", [0, 1])
def test_emboli_are_marked_in_both_panels(tmp_path: Path, emboli: int) -> None:
    volume = counting_volume((40, 40, 40))
    preview_picture(volume, made_result(volume, emboli=emboli)).save(tmp_path / "preview.png")
    columns = embolus_pixels(tmp_path / "preview.png")[:, 1]
    assert (columns < PANEL_PX).any() == bool(emboli)
    assert (columns > PANEL_PX).any() == bool(emboli)


def test_the_patients_right_is_on_the_left_and_the_head_is_up(tmp_path: Path) -> None:
    # The made embolus lies at the start of all axes: right, anterior, inferior
    volume = counting_volume((40, 40, 40), axial_affine((1, 1, 1)))
    preview_picture(volume, made_result(volume, emboli=1)).save(tmp_path / "preview.png")
    pixels = embolus_pixels(tmp_path / "preview.png")
    axial, coronal = pixels[pixels[:, 1] < PANEL_PX], pixels[pixels[:, 1] >= PANEL_PX] - (0, PANEL_PX)
    assert (axial < PANEL_PX / 3).all()
    assert (coronal[:, 0] > 2 * PANEL_PX / 3).all()
    assert (coronal[:, 1] < PANEL_PX / 3).all()


def test_another_axis_order_gives_the_same_picture(tmp_path: Path) -> None:
    volume = counting_volume((40, 40, 40))
    result = made_result(volume)
    preview_picture(volume, result).save(tmp_path / "a.png")
    turned_affine = volume.affine_lps[:, [2, 0, 1, 3]]
    turned = CtVolume(np.ascontiguousarray(volume.hu.transpose(2, 0, 1)), turned_affine)
    turned_result = type(result)(
        result.embolus_labelmap.transpose(2, 0, 1), result.artery.transpose(2, 0, 1), result.findings
    )
    preview_picture(turned, turned_result).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_candidates_are_not_drawn_as_emboli(tmp_path: Path) -> None:
    volume = counting_volume((40, 40, 40))
    made = made_result(volume, emboli=1)
    findings = replace(made.findings, outcome=Outcome.NO_EMBOLUS, score_threshold=0.95)
    preview_picture(volume, replace(made, findings=findings)).save(tmp_path / "preview.png")
    panels = np.asarray(Image.open(tmp_path / "preview.png"))[TITLE_PX:]
    assert (panels == CANDIDATE_RGB).all(axis=2).any()
    assert not (panels == EMBOLUS_RGB).all(axis=2).any()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_an_outline_is_what_an_erosion_takes_away(width: int) -> None:
    mask = np.zeros((40, 50), dtype=bool)
    mask[:12, :9] = mask[20:33, 15:50] = mask[37, 4] = True
    panel = np.zeros((40, 50, 3), dtype=np.uint8)
    _draw_outline(panel, mask, (9, 9, 9), width=width)
    np.testing.assert_array_equal(panel[..., 0] == 9, mask & ~binary_erosion(mask, iterations=width))
