"""A whole package of networks as narrow as they can be, and an AANet checkpoint to put into it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from models.aanet import AANet
from models.network_spec import NetworkSpec, build_network
from models.packages import ModelPackage, write_package

LUNG_ROI = Path(__file__).parents[2] / "models/weights/lung-roi.cfg"
SLICES = {"in_channels": 5, "out_channels": 1, "base_width": 4}
NARROW_AANET = {"n_filters": [8, 8, 8, 8], "en_blocks": [1, 1, 1, 1], "de_blocks": [1, 1, 1], "stem": 4, "aspp": 8}
OTHER_AANET: dict[str, Any] = {
    "n_filters": [16, 24, 32, 48],
    "en_blocks": [1, 2, 1, 3],
    "de_blocks": [1, 2, 1],
    "stem": 8,
    "aspp": 16,
    "veins": True,
}
SPECS = (
    NetworkSpec("roi", "darknet", Path("lung-roi.weights"), config=LUNG_ROI),
    NetworkSpec("unet3tiny", "unet3tiny", Path("unet3tiny.safetensors"), SLICES),
    NetworkSpec("attention_unet", "attention_unet", Path("attention_unet.safetensors"), SLICES),
    NetworkSpec("aanet", "aanet", Path("aanet.safetensors"), NARROW_AANET),
)
SETTINGS: dict[str, dict[str, Any]] = {  # such that any scan is analysed, coarsely and quickly, and nothing found
    "input": {"spacing_mm": 4.0},
    "roi": {"every_mm": 60.0, "min_confidence": 0.0, "margin_mm": 10.0},
    "ensemble": {"members": ["unet3tiny", "attention_unet"]},
    "window": {"size_zyx": [32, 32, 32], "overlap": 0.25},
    "fusion": {"unet_weight": 0.5, "aanet_weight": 0.5, "bias": -9.0, "gate_reach_voxels": 3, "gate_open_at": 0.5},
    "thresholds": {"voxel": 0.4, "score": 0.5, "min_volume_ml": 0.05, "artery": 0.0},
    "suitability": {
        "max_slice_spacing_mm": 10.0,
        "max_pixel_spacing_mm": 10.0,
        "min_artery_ml": 0.0,
        "min_artery_hu": -2000.0,
    },
}


def make_package(directory: Path) -> ModelPackage:
    """Random weights, in half precision where shipped ones are."""
    torch.manual_seed(1)
    networks = {spec.name: (spec, build_network(spec)) for spec in SPECS}
    for spec, network in networks.values():
        if spec.config is None:
            network.half()
    return write_package(
        directory,
        name=directory.name,
        version="3",
        networks=networks,
        settings=SETTINGS,
        extra_files={"README.md": "# The card of the base\n", "figures.json": "{}\n"},
    )


def aanet_state(seed: int = 2) -> dict[str, torch.Tensor]:
    """Tensors of `OTHER_AANET`."""
    torch.manual_seed(seed)
    return dict(AANet(**OTHER_AANET).state_dict())


def detector_files(folder: Path) -> tuple[Path, Path]:
    """A lung detector's weights and cfg under names of their own."""
    made = make_package(folder / "made")
    weights, config = folder / "hospital.weights", folder / "hospital.cfg"
    shutil.copyfile(made.networks["roi"].file, weights)
    shutil.copyfile(LUNG_ROI, config)
    return weights, config
