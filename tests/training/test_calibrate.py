from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from imaging.errors import ConfigurationError
from models.cascade import Cascade
from models.cascade_options import CascadeOptions
from models.fusion import FusionSettings
from models.packages import default_package_directory, load_package
from training.calibrate import CaseLogits, best_voxel_threshold, calibrated, fit_fusion
from training.cases import TrainingCase

MakeCase = Callable[..., TrainingCase]
START = FusionSettings(unet_weight=0.5, aanet_weight=0.5, bias=0.0, gate_reach_voxels=1, gate_open_at=0.5)


def test_fusion_trusts_the_network_that_knows(make_case: MakeCase) -> None:
    case = make_case()
    truth = torch.from_numpy(np.asarray(case.embolus) > 0).float()
    generator = torch.Generator().manual_seed(0)
    knowing = 4 * truth - 2 + torch.randn(truth.shape, generator=generator)
    guessing = torch.randn(truth.shape, generator=generator)
    _, fitted = fit_fusion([CaseLogits(case, [guessing], knowing, torch.full(truth.shape, 5.0))], START)
    assert fitted.aanet_weight > 1.0
    assert fitted.unet_weight < 0.2
    assert fitted.bias < 0, "emboli are rare"


def test_the_ensemble_trusts_the_member_that_knows(make_case: MakeCase) -> None:
    case = make_case()
    truth = torch.from_numpy(np.asarray(case.embolus) > 0).float()
    knowing, guessing, neither = (
        share * (4 * truth - 2) + torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
        for seed, share in enumerate((1.0, 0.0, 0.0))
    )
    logits = CaseLogits(case, [guessing, knowing], neither, torch.full(truth.shape, 5.0))
    weights, fitted = fit_fusion([logits], START)
    assert sum(weights) == pytest.approx(1)
    assert weights[1] > 0.8
    assert fitted.unet_weight > 1.0
    assert fitted.aanet_weight < 0.2


def test_voxel_threshold_is_the_one_with_the_best_dice(make_case: MakeCase) -> None:
    case = make_case()
    probability = np.where(np.asarray(case.embolus) > 0, 0.62, 0.43).astype(np.float32)
    assert best_voxel_threshold([probability], [case]) == pytest.approx(0.45)


def test_a_network_that_does_not_run_cannot_be_weighed(make_case: MakeCase) -> None:
    package = load_package(default_package_directory())
    one = CascadeOptions(unets=tuple(package.settings["ensemble"]["members"][:1]))
    cascade = Cascade(package, torch.device("cpu"), one)
    with pytest.raises(ConfigurationError, match="only 1 run"):
        calibrated(cascade, [make_case()], package.settings)
