"""The shipped cascade with its parts switched on and off, on one small phantom."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from imaging.errors import ConfigurationError
from imaging.geometry import Box, WorkingGrid
from imaging.lesions import LesionThresholds, find_lesions
from imaging.phantom import Phantom, make_phantom
from imaging.result import SegmentationResult
from imaging.volume import CtVolume
from imaging.windows import aanet_input
from models.aanet import AANet, EmbolusAndArtery
from models.cascade import Cascade
from models.cascade_options import CascadeOptions, Ensemble, Mode
from models.packages import default_package_directory, load_network, load_package
from models.second_pass import SecondPassSettings

pytestmark = pytest.mark.timeout(300)

_PART_ZYX = (128, 160, 160)
_THRESHOLDS = LesionThresholds(voxel=0.3, score=0.5, min_volume_ml=0.05)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(100_500, shape_zyx=(96, 240, 240), spacing_zyx_mm=(2.5, 1.4, 1.4), emboli=2, min_embolus_ml=2.0)


def _segment(phantom: Phantom, options: CascadeOptions) -> SegmentationResult:
    return Cascade.load(default_package_directory(), device="cpu", threads=1, options=options).segment(phantom.volume)


def test_vessel_mode_finds_along_the_tree_what_the_whole_volume_shows(phantom: Phantom) -> None:
    result = _segment(phantom, CascadeOptions(mode=Mode.VESSEL))
    found = np.unique(phantom.embolus_labelmap[result.embolus_labelmap > 0])
    assert set(found) > {0}, "an embolus of 2 ml or more is found"
    assert result.findings.provenance["mode"] == "vessel"
    assert result.stage_seconds["unet"] < 0.1, "no 2D network runs"
    probability = result.lesion_probability
    assert probability is not None
    assert np.array_equal(probability > 0, result.embolus_labelmap > 0)
    first = probability[result.embolus_labelmap == 1]
    assert first.mean() / 255 <= result.findings.lesions[0].score <= first.max() / 255 + 0.01
    lumen = ndimage.binary_erosion(phantom.artery & (phantom.embolus_labelmap == 0))
    contrast_hu = result.findings.provenance["artery_hu"]
    assert contrast_hu == pytest.approx(float(np.median(phantom.volume.hu[lumen])), rel=0.15)


def test_a_second_pass_runs_that_the_package_does_not_have(phantom: Phantom) -> None:
    finer = SecondPassSettings(
        spacing_mm=0.8, from_probability=0.3, smallest_mm3=50.0, margin_mm=10.0, share=0.5, most=2
    )
    once = _segment(phantom, CascadeOptions(mode=Mode.VESSEL, second_pass=False))
    twice = _segment(phantom, CascadeOptions(mode=Mode.VESSEL, second_pass=finer))
    assert [lesion.score for lesion in twice.findings.lesions] != [lesion.score for lesion in once.findings.lesions]
    assert np.count_nonzero((twice.embolus_labelmap > 0) & (once.embolus_labelmap > 0)) > 0


def test_fitted_windows_in_half_precision_say_what_plain_ones_in_full_precision_say(phantom: Phantom) -> None:
    """Windows of one size at fixed steps, torch in float32, nothing skipped, over a part of the scan."""
    cascade = Cascade.load(default_package_directory(), device="cpu", threads=2)
    emboli = np.argwhere(phantom.embolus_labelmap > 0)
    middle = np.round((emboli.min(axis=0) + emboli.max(axis=0)) / 2 * phantom.volume.spacing_zyx_mm).astype(int)
    whole = Box((0, 0, 0), phantom.volume.shape_zyx)
    grid = WorkingGrid.over(phantom.volume, whole, 1.0)
    start = np.clip(middle - np.array(_PART_ZYX) // 2, 0, np.array(grid.shape_zyx) - _PART_ZYX)
    z, y, x = (slice(begin, begin + count) for begin, count in zip(start, _PART_ZYX, strict=True))
    part = CtVolume(grid.resample(phantom.volume.hu)[z, y, x], np.eye(4))

    fitted, _ = cascade.volume_logits(part.hu, lambda share: None)
    aanet = load_network(cascade.package, "aanet").eval()
    assert isinstance(aanet, AANet)
    network = EmbolusAndArtery(aanet)
    volume = torch.from_numpy(aanet_input(part.hu))
    total, count = torch.zeros(_PART_ZYX), torch.zeros(_PART_ZYX)
    with torch.inference_mode():
        for y_start, x_start in itertools.product((0, _PART_ZYX[1] - 128), (0, _PART_ZYX[2] - 128)):
            window = (slice(None), slice(y_start, y_start + 128), slice(x_start, x_start + 128))
            total[window] += torch.sigmoid(network(volume[window][None, None]))[0, 0]
            count[window] += 1
    plain = (total / count).numpy()

    ours = torch.sigmoid(fitted).numpy()
    found, expected = ours >= _THRESHOLDS.voxel, plain >= _THRESHOLDS.voxel
    assert np.count_nonzero(expected) > 500, "there is something to find"
    assert 2 * np.count_nonzero(found & expected) / (np.count_nonzero(found) + np.count_nonzero(expected)) > 0.95
    everywhere = np.ones(_PART_ZYX, dtype=bool)
    listed, meant = (find_lesions(one, everywhere, part, _THRESHOLDS, min_score=None).lesions for one in (ours, plain))
    assert len(listed) == len(meant) > 0


def test_without_the_3d_network_no_artery_is_claimed_and_contrast_is_said_not_to_be_known(phantom: Phantom) -> None:
    result = _segment(phantom, CascadeOptions(aanet=False))
    assert "contrast.not_measured" in {reason.code for reason in result.findings.reasons}
    assert result.findings.provenance["artery_hu"] is None
    reported = sum(lesion.score >= result.findings.score_threshold for lesion in result.findings.lesions)
    assert np.array_equal(result.artery, (result.embolus_labelmap > 0) & (result.embolus_labelmap <= reported))


def test_a_network_without_a_say_runs_only_where_it_is_asked_for() -> None:
    package = load_package(default_package_directory())
    members = package.settings["ensemble"]["members"]
    ensemble = {"members": members, "weights": [0.0, *[1.0] * (len(members) - 1)]}
    mute = replace(package, settings={**package.settings, "ensemble": ensemble})
    slices = np.full((2, 32, 32), 40, np.int16)
    for options, count in (
        (CascadeOptions(aanet=False), len(members) - 1),
        (CascadeOptions(unets=tuple(members[:1]), aanet=False), 1),
        (CascadeOptions(unets=tuple(members), aanet=False), len(members)),
        (CascadeOptions(aanet=False, ensemble=Ensemble.LOGIT), len(members)),
    ):
        cascade = Cascade(mute, torch.device("cpu"), options)
        answers = cascade.slice_logits(slices, lambda fraction: None)
        assert len(answers) == count
        assert torch.isfinite(cascade.unet_logits(answers)).all()


def test_options_that_fit_no_package_are_refused_by_name() -> None:
    for options, complaint in (
        (CascadeOptions(unets=("unet9",)), "unet9"),
        (CascadeOptions(unets=(), aanet=False), "neither"),
        (CascadeOptions(mode=Mode.VESSEL, aanet=False), "neither"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            Cascade.load(default_package_directory(), device="cpu", threads=1, options=options)
