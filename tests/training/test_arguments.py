"""`train.py` as people call it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imaging.errors import ConfigurationError
from training.arguments import cases_in, main, network_recipe, parser, split_of
from training.recipe import Recipe

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "training/recipes/phantoms.toml"


def _arguments(recipe: Path, cases: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--recipe", str(recipe), "--data", str(cases), "--threads", "1", "--device", "cpu"]
    return [*fixed, "--save_path", str(output / "saved"), "--log_path", str(output / "logs"), *more]


def _curve(log: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(log)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("model", ["unet3tiny", "aanet"])
def test_a_training_leaves_curves_weights_pictures_and_figures(
    model: str, tiny_recipe: Path, case_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = main(
        _arguments(tiny_recipe, case_folder, tmp_path, "--model", model, "--epochs", "3", "--batch_size", "2")
    )
    assert weights == tmp_path / "saved" / model / "weights.safetensors"
    assert load_file(weights)
    curve = _curve(tmp_path / "logs" / model)
    steps = [step for step, _ in curve["train/loss"]]
    assert steps == [2, 4, 6], "three epochs of three cases in batches of two"
    for tag in ("train/learning_rate", "train/voxel_f1", "validation/voxel_f1", "validation/lesion_sensitivity",
                "validation/false_positives_per_crop", "validation/embolus_dice", "validation/loss"):  # fmt: skip
        assert tag in curve

    test = tmp_path / "saved" / model / "test"
    with (test / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["block-4"]
    figures = json.loads((test / "scores.json").read_text(encoding="utf-8"))
    assert {"lesion_sensitivity", "false_positives_per_scan", "voxel_f1", "voxel_dice"} <= set(figures)
    picture = np.asarray(Image.open(test / "block-4.png"))
    assert picture.shape[1] == 2 * 2 * 72, "truth beside prediction, both twice as large"
    assert bool((picture == (60, 220, 60)).all(axis=2).any()), "the truth's outline"
    shown = capsys.readouterr().out
    assert "lesion sensitivity" in shown
    assert " left" in shown, "how long it will take"


def test_a_training_killed_in_the_middle_resumes_to_the_same_curve(
    tiny_recipe: Path, case_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--model", "unet3tiny", "--batch_size", "2", "--epochs", "25", "--average", "swa"]
    killed = tmp_path / "killed"
    command = [sys.executable, "train.py", *_arguments(tiny_recipe, case_folder, killed, *arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("unet3tiny 22/50 "):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "saved/unet3tiny/weights.safetensors").exists()
    again = subprocess.run(
        [*command, "--resume"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert "unet3tiny 20/50 " not in again.stdout, "it did not begin anew"

    whole = tmp_path / "whole"
    main(_arguments(tiny_recipe, case_folder, whole, *arguments))
    expected, resumed = _curve(whole / "logs/unet3tiny"), _curve(killed / "logs/unet3tiny")
    assert len(expected["train/loss"]) == 25
    for tag in expected:
        if tag != "train/seconds_per_step":
            assert resumed[tag] == expected[tag], tag
    one, other = (load_file(folder / "saved/unet3tiny/weights.safetensors") for folder in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_few_cases_are_varied_the_more(
    tiny_recipe: Path, case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("--model", "unet3tiny", "--epochs", "1", "--batch_size", "2")
    main(_arguments(tiny_recipe, case_folder, tmp_path, *common, "--little-sample", "1"))
    checkpoint = torch.load(tmp_path / "saved/unet3tiny/checkpoint.pt", weights_only=True)
    assert checkpoint["config"]["options"]["variation"] == 2.0
    assert checkpoint["config"]["options"]["turned_share"] == 1.0
    assert checkpoint["config"]["steps"] == 1
    with pytest.raises(ConfigurationError, match="9 training cases of 3"):
        main(_arguments(tiny_recipe, case_folder, tmp_path, *common, "--little-sample", "9"))


def test_the_documented_command_asks_for_500_epochs_of_all_cases() -> None:
    options = parser().parse_args(
        ["--epochs", "500", "--batch_size", "8", "--learn_rate", "1e-3", "--log_path", "logs/"]
    )
    recipe = network_recipe(Recipe.read(SHIPPED), options, "aanet", cases=14)
    assert recipe.kind == "aanet"
    assert recipe.steps == 1000, "two batches of eight see fourteen cases"
    assert (recipe.batch, recipe.learning_rate, recipe.warmup_steps) == (8, 1e-3, 8)
    assert options.log_path == Path("logs")


def test_published_width_is_the_constructor_s() -> None:
    options = parser().parse_args(["--width", "published"])
    recipe = network_recipe(Recipe.read(SHIPPED), options, "aanet", cases=8)
    assert recipe.parameters == {}
    assert tuple(recipe.options["patch_zyx"]) == (96, 96, 96)


def test_cases_fall_into_three_parts_that_do_not_meet(case_folder: Path) -> None:
    split = split_of(cases_in(case_folder), validation=1, test=2)
    names = [[case.name for case in part] for part in (split.train, split.validation, split.test)]
    assert names == [["block-0", "block-1"], ["block-2"], ["block-3", "block-4"]]


def test_too_few_cases_and_an_empty_folder_are_refused(case_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="5 cases are too few"):
        split_of(cases_in(case_folder), validation=3, test=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no training cases"):
        cases_in(tmp_path / "empty")


def test_a_wrong_folder_is_one_line_and_not_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--data", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("train.py: no training cases in")
    assert "Traceback" not in run.stderr
