"""`embolens train` and `embolens package`: from a recipe to weights, pictures and figures, and on to a package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.cli.conftest import REPOSITORY, Embolens
from tests.training.conftest import a_case, write_case, write_tiny_recipe
from training.final_scores import FinalScores

SHORT = {
    "steps = 1000": "steps = 4",
    "batch = 8": "batch = 2",
    "checkpoint_every = 20": "checkpoint_every = 2",
    "validate_every = 100": "validate_every = 4",
    "grown_cases = 16": "grown_cases = 3",
    'config = "models/weights': f'config = "{REPOSITORY}/models/weights',
}
CASCADE = """
[settings.input]
spacing_mm = 1.0
[settings.roi]
every_mm = 60.0
min_confidence = 0.9
margin_mm = 10.0
[settings.ensemble]
members = ["unet"]
[settings.window]
size_zyx = [32, 32, 32]
overlap = 0.25
[settings.fusion]
unet_weight = 0.5
aanet_weight = 0.5
bias = 0.0
gate_reach_voxels = 3
gate_open_at = 0.5
[settings.thresholds]
voxel = 0.5
score = 0.5
min_volume_ml = 0.05
artery = 0.4
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose phantoms lie in its cache already: three to learn from and look at, one to be tested on."""
    cases = tmp_path / "cases"
    for seed, place in ((1000, (10, 20, 60)), (1001, (30, 30, 20)), (1002, (20, 12, 40)), (100000, (12, 36, 50))):
        write_case(cases / f"{seed}-grown", a_case(place))
    return write_tiny_recipe(tmp_path / "tiny.toml", SHORT | {'folder = ".training/phantoms"': f'folder = "{cases}"'})


def trained(embolens: Embolens, recipe: Path, *options: str | Path) -> str:
    finished = embolens("train", "--recipe", recipe, "--device", "cpu", *options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_training_ends_with_a_table_pictures_and_figures(embolens: Embolens, recipe: Path, tmp_path: Path) -> None:
    shown = trained(embolens, recipe, "--network", "unet", "--network", "roi", "--log-path", "logs")
    assert "unet 4/4 " in shown, "the loop's line"
    saved = tmp_path / "save_models/phantoms"
    for network in ("unet", "roi"):
        assert load_file(saved / network / "weights.safetensors")
        figures = json.loads((saved / network / "test/scores.json").read_text(encoding="utf-8"))
        _, final = shown.split("What the networks scored")
        for figure, value in figures.items():
            row = next(line for line in final.splitlines() if network in line and figure.replace("_", " ") in line)
            assert f"{value:.3f}" in row
            assert "test cases" in row
        for place in ("weights.safetensors", "checkpoint.pt", "test"):
            assert f"save_models/phantoms/{network}/{place}\n" in final
        assert f"logs/phantoms/{network}\n" in final
    assert not (saved / "aanet").exists()
    picture = np.asarray(Image.open(saved / "unet/test/100000-grown.png"))
    assert bool((picture == (60, 220, 60)).all(axis=2).any()), "the truth's outline"
    assert (saved / "unet/test/scores.csv").is_file()


def test_without_test_cases_the_table_has_the_last_validation(embolens: Embolens, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("test_cases = 1", "test_cases = 0"))
    shown = trained(embolens, recipe, "--network", "unet", "--save-path", "saved", "--little-sample", "1")
    said = next(line for line in shown.splitlines() if line.startswith("unet 4/4 validation loss"))
    _, final = shown.split("What the networks scored")
    row = next(line for line in final.splitlines() if " loss " in line)
    assert "validation" in row
    assert f"{float(said.split()[-1]):.3f}" in row
    assert FinalScores.of("unet", tmp_path / "saved/phantoms/unet").cases == "validation"


def test_a_training_goes_on_where_it_was_and_does_not_begin_anew(embolens: Embolens, recipe: Path) -> None:
    trained(embolens, recipe, "--network", "unet")
    longer = recipe.read_text().replace("test_cases = 1", "test_cases = 0")
    recipe.write_text(longer)
    assert "unet 2/4 " not in trained(embolens, recipe, "--network", "unet", "--resume")
    assert "unet 2/4 " in trained(embolens, recipe, "--network", "unet")


def test_a_network_the_recipe_lacks_is_refused(embolens: Embolens, recipe: Path) -> None:
    refused = embolens("train", "--recipe", recipe, "--network", "liver")
    assert refused.returncode == 1
    assert "has no network 'liver' (it has aanet, unet, roi) [training.recipe]" in refused.stderr


@pytest.mark.parametrize("options", [("--parallel", "ddp"), ("--little-sample", "0"), ("--anatomies", "nowhere")])
def test_a_wrong_command_line_is_a_usage_error(options: tuple[str, ...], embolens: Embolens, recipe: Path) -> None:
    assert embolens("train", "--recipe", recipe, *options).returncode == 2


def test_networks_that_were_not_trained_are_not_packed(embolens: Embolens, recipe: Path, tmp_path: Path) -> None:
    refused = embolens("package", "--recipe", recipe, "--output", tmp_path / "packed")
    assert refused.returncode == 1
    assert "network aanet of" in refused.stderr
    assert f"embolens train --recipe {recipe} --network aanet" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "packed").exists()


def test_what_was_trained_becomes_a_package_that_can_be_used(embolens: Embolens, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text() + CASCADE)
    trained(embolens, recipe, "--save-path", "saved")
    packed = embolens("package", "--recipe", recipe, "--save-path", "saved", "--output", "packed", "--cases", "1")
    assert packed.returncode == 0, packed.stderr
    figures = json.loads((tmp_path / "packed/figures.json").read_text(encoding="utf-8"))
    assert figures["all"]["scans"] == 1
    assert json.dumps(figures, indent=1) in packed.stdout
    assert "packed: embolens models use packed" in packed.stdout
    assert embolens("models", "use", "packed").returncode == 0


def test_a_damaged_recipe_is_one_line(embolens: Embolens, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("name = ")
    for command in (("train",), ("package", "--output", "packed")):
        refused = embolens(*command, "--recipe", tmp_path / "broken.toml")
        assert refused.returncode == 1
        assert "broken.toml" in refused.stderr
        assert "Traceback" not in refused.stderr
