"""From trained weights to a model package: assembled, calibrated, judged, described.

`python -m training.package --recipe R --output models/weights/phantom-v3 [--anatomies DIR] [--cases N]`
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imaging.errors import ConfigurationError
from models.cascade import Cascade
from models.network_spec import NetworkSpec, build_network
from models.packages import write_package
from training.calibrate import calibrated
from training.cases import open_cases, training_specs
from training.evaluate import evaluate
from training.model_card import model_card
from training.networks import network_spec
from training.recipe import Recipe
from training.texture import FOLDER as TEXTURE_FOLDER
from training.train import SAVE_FOLDER


def assemble(
    recipe: Recipe,
    output: Path,
    *,
    save_folder: Path = SAVE_FOLDER,
    anatomies: Path | None = None,
    test_cases: int = 12,
    threads: int = 1,
) -> dict[str, Any]:
    """Writes the package of a recipe whose networks have been trained; returns its figures on test phantoms.

    Weights ship in half precision: they were trained in bfloat16, and half of the bytes say the same.
    """
    networks = _trained(recipe, save_folder)
    settings: dict[str, Mapping[str, Any]] = dict(recipe.settings)
    specs = training_specs(recipe.data, anatomies)
    validation = open_cases(recipe.data, specs[-recipe.data.validation_cases :])
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), recipe, networks, settings, {})
        settings |= calibrated(Cascade.load(Path(folder), device="cpu", threads=threads), validation, settings)
    _write(output, recipe, networks, settings, {})
    figures = evaluate(recipe, output, anatomies, test_cases, threads=threads)
    card = model_card(recipe, figures, settings, with_anatomies=anatomies is not None)
    files = {"README.md": card, "figures.json": json.dumps(figures, indent=1) + "\n"}
    _write(output, recipe, networks, settings, files)
    return figures


def _trained(recipe: Recipe, save_folder: Path) -> dict[str, tuple[NetworkSpec, nn.Module]]:
    networks = {}
    for name, network_recipe in recipe.networks.items():
        spec = network_spec(network_recipe)
        network = build_network(spec)
        last = save_folder / recipe.name / name / (TEXTURE_FOLDER if network_recipe.texture else "")
        network.load_state_dict(_weights(last / "weights.safetensors", name, recipe))
        networks[name] = (spec, network if spec.config else network.half())
    return networks


def _weights(file: Path, name: str, recipe: Recipe) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(file)
    except OSError as error:
        raise ConfigurationError(
            f"network {name} of {recipe.path} has no weights: {file}: {error.strerror or error}",
            code="training.weights",
            remedy=f"embolens train --recipe {recipe.path} --network {name}",
        ) from error
    return weights


def _write(
    output: Path,
    recipe: Recipe,
    networks: Mapping[str, tuple[NetworkSpec, nn.Module]],
    settings: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, str],
) -> None:
    write_package(
        output,
        name=recipe.name,
        version=recipe.version,
        networks=networks,
        settings=settings,
        extra_files=files,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.package", description="Assemble a model package")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--anatomies", type=Path)
    parser.add_argument("--cases", type=int, default=12, help="test phantoms to judge it on")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures = assemble(
        Recipe.read(options.recipe),
        options.output,
        anatomies=options.anatomies,
        test_cases=options.cases,
        threads=options.threads,
    )
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
