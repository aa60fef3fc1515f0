"""Training cases made of real contrast CT, for their texture: emboli are inserted, all else is the patient's.

`python -m training.texture_cases --recipe R --real DIR` needs the recipe's AANet, trained on phantoms, to say where the
arteries are. The scans should hold no embolus that nobody knows of: all that is not inserted counts as none.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from imaging.errors import ConfigurationError, InputError
from imaging.geometry import to_canonical
from imaging.vessel_tree import vessel_tree
from imaging.volume import CtVolume, Mask
from models.network_spec import build_network
from training.cases import LUNG, write_case, written_whole
from training.evaluation_scans import REAL, scans_in
from training.insertion import CtWithEmboli, insert_into_ct
from training.lungs_by_threshold import find_lungs
from training.networks import VOLUME_KIND, network_spec
from training.phantoms import WORKING_SPACING_MM, whole_working_grid
from training.recipe import NetworkRecipe, Recipe
from training.scans import volume_probabilities
from training.train import SAVE_FOLDER

MOST_EMBOLI = 8
SMALLEST_EMBOLUS_ML = 0.05
ARTERY, VEIN = 1, 2  # AANet's answers after the embolus
SMALLEST_ARTERY_MM3 = 200
WINDOW_ZYX = (128, 128, 128)
AFFINE_LPS = np.diag([WORKING_SPACING_MM] * 3 + [1.0])[[2, 1, 0, 3]]


FindArtery = Callable[[NDArray[np.int16]], Mask]
"""HU on the 1 mm canonical grid -> where the arteries of the lungs are."""


def make_texture_cases(recipe: Recipe, real: Path, find_artery: FindArtery) -> list[Path]:
    """Writes the cases of the recipe's scans that are not there yet; returns all their folders.

    Args:
        real: folder that holds the scans, among others perhaps; see training/evaluation_scans.py.

    Raises:
        ConfigurationError: the recipe names no folder for them, or a scan that is not in `real`.
        InputError: a scan without lungs, contrast, or room for an embolus.
    """
    if recipe.data.texture_folder is None:
        raise ConfigurationError(f"recipe {recipe.path} has no texture_folder", code="training.texture")
    plans = {plan.name: plan for plan in scans_in(real, REAL)}
    if missing := set(recipe.data.texture_scans) - set(plans):
        raise ConfigurationError(f"{', '.join(sorted(missing))} not in {real}", code="training.texture")
    folders = []
    for plan in (plans[name] for name in recipe.data.texture_scans):
        own = [recipe.data.texture_folder / f"{plan.name}-{variant}" for variant in range(recipe.data.texture_variants)]
        folders += own
        if all(folder.is_dir() for folder in own):
            continue
        volume, _ = to_canonical(plan.load().volume)
        hu = whole_working_grid(volume).resample(volume.hu)
        lung = find_lungs(hu)
        artery = find_artery(hu)
        for variant, folder in enumerate(own):
            if folder.is_dir():
                continue
            seed = zlib.crc32(f"{plan.name}-{variant}".encode())
            made = _with_emboli(CtVolume(hu, AFFINE_LPS), artery, seed)
            with written_whole(folder) as unfinished:
                write_case(
                    unfinished, made.volume.hu, lung, lung.astype(np.uint8) * LUNG,
                    made.embolus_labelmap.astype(np.uint8), recipe.data, seed, vessels_known=False,
                )  # fmt: skip
            print(f"{folder.name}: {made.embolus_labelmap.max()} emboli", flush=True)
    return folders


def trained_artery(recipe: Recipe, save_folder: Path = SAVE_FOLDER) -> FindArtery:
    """By the recipe's AANet: in the lungs and hila, where it sees arteries rather than veins.

    Raises:
        ConfigurationError: it is not trained yet.
    """
    volume_recipe = _volume_recipe(recipe)
    file = save_folder / recipe.name / volume_recipe.name / "weights.safetensors"
    if not file.is_file():
        raise ConfigurationError(
            f"{file} is not there", code="training.weights", remedy="train the recipe's AANet on phantoms first"
        )
    network = build_network(network_spec(volume_recipe)).eval()
    network.load_state_dict(load_file(file))
    wide = replace(volume_recipe, options={**volume_recipe.options, "patch_zyx": WINDOW_ZYX})

    def find(hu: NDArray[np.int16]) -> Mask:
        tree = vessel_tree(hu, WORKING_SPACING_MM)
        if not tree.any():
            raise InputError("no opacified vessel in the lungs", code="insertion.no_contrast")
        z, y, x = (np.flatnonzero(tree.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
        box = slice(z[0], z[-1] + 1), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)
        probability = volume_probabilities(network, wide, np.ascontiguousarray(hu[box]))
        likely = probability[ARTERY] > 0.5
        if len(probability) > VEIN:
            likely &= probability[ARTERY] > probability[VEIN]
        artery = np.zeros(hu.shape, dtype=bool)
        artery[box] = likely & tree[box]
        return np.asarray(cc3d.dust(artery, threshold=SMALLEST_ARTERY_MM3, connectivity=26), dtype=bool)

    return find


def _volume_recipe(recipe: Recipe) -> NetworkRecipe:
    for network in recipe.networks.values():
        if network.kind == VOLUME_KIND:
            return network
    raise ConfigurationError(f"recipe {recipe.path} has no network of kind {VOLUME_KIND}", code="training.texture")


def _with_emboli(volume: CtVolume, artery: Mask, seed: int) -> CtWithEmboli:
    """As many emboli as there is room for, at most `MOST_EMBOLI`."""
    for count in range(MOST_EMBOLI, 0, -1):
        try:
            return insert_into_ct(volume, artery, emboli=count, seed=seed, min_embolus_ml=SMALLEST_EMBOLUS_ML)
        except InputError as error:
            if error.code != "phantom.no_room" or count == 1:
                raise
    raise AssertionError("the last count returns or raises")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.texture_cases", description="Cases made of real CT")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--real", type=Path, required=True, help="contrast CT without emboli; see evaluation_scans.py")
    parser.add_argument("--save_path", "--save-path", type=Path, default=SAVE_FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe.read(options.recipe)
    make_texture_cases(recipe, options.real, trained_artery(recipe, options.save_path))


if __name__ == "__main__":
    main()
