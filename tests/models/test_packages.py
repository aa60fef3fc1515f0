from __future__ import annotations

import hashlib
import pickle
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from imaging.errors import ConfigurationError
from models.packages import (
    ModelPackage,
    NetworkSpec,
    build_network,
    default_package_directory,
    load_network,
    load_package,
    load_weights,
    write_package,
)

LUNG_ROI = Path(__file__).parents[2] / "models/weights/lung-roi.cfg"
SPECS = {
    "roi": NetworkSpec("roi", "darknet", Path("lung-roi.weights"), config=LUNG_ROI),
    "tiny": NetworkSpec(
        "tiny",
        "unet3tiny",
        Path("tiny.safetensors"),
        {"in_channels": 3, "out_channels": 1, "base_width": 4, "attention": True, "recurrent_residual": True},
    ),
    "attention": NetworkSpec(
        "attention", "attention_unet", Path("attention.safetensors"), {"in_channels": 3, "out_channels": 1}
    ),
    "aanet": NetworkSpec(
        "aanet",
        "aanet",
        Path("aanet.safetensors"),
        {"n_filters": [8, 8, 8, 8], "en_blocks": [1, 1, 1, 1], "de_blocks": [1, 1, 1], "stem": 4, "aspp": 8},
    ),
}
SETTINGS = {
    "input": {"spacing_mm": 1.0, "windows_hu": [[-100, 500], [-1000, 400]], "note": 'quoted "text"'},
    "thresholds": {"voxel": 0.5, "min_volume_ml": 1e-05, "strict": True},
}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {name: build_network(spec) for name, spec in SPECS.items()}


@pytest.fixture
def package(tmp_path: Path, networks: dict[str, nn.Module]) -> ModelPackage:
    return write_package(
        tmp_path / "phantom-1",
        name="phantom",
        version="1",
        networks={name: (SPECS[name], network) for name, network in networks.items()},
        settings=SETTINGS,
        extra_files={"CARD.md": "Research use only.\n"},
    )


def test_package_gives_back_networks_and_settings(package: ModelPackage, networks: dict[str, nn.Module]) -> None:
    assert (package.name, package.version) == ("phantom", "1")
    assert package.settings == SETTINGS
    for name, network in networks.items():
        loaded = load_network(package, name).state_dict()
        for key, tensor in network.state_dict().items():
            if "num_batches_tracked" not in key:
                assert torch.equal(loaded[key], tensor), f"{name} {key}"


def test_package_digest_is_over_the_sorted_digests_of_its_files(package: ModelPackage) -> None:
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in package.directory.iterdir())
    assert package.sha256 == hashlib.sha256("\n".join(digests).encode()).hexdigest()


def test_changed_threshold_is_another_package(package: ModelPackage) -> None:
    manifest = package.directory / "package.toml"
    manifest.write_text(manifest.read_text().replace("voxel = 0.5", "voxel = 0.6"))
    assert load_package(package.directory).sha256 != package.sha256


def test_changed_file_is_refused_with_both_digests(package: ModelPackage) -> None:
    path = package.directory / "aanet.safetensors"
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        load_package(package.directory)
    assert caught.value.code == "package.tampered"
    for part in ("aanet.safetensors", expected, hashlib.sha256(data).hexdigest()):
        assert part in str(caught.value)


def test_missing_file_is_refused_by_name(package: ModelPackage) -> None:
    (package.directory / "lung-roi.weights").unlink()
    with pytest.raises(ConfigurationError, match=r"lung-roi\.weights") as caught:
        load_package(package.directory)
    assert caught.value.code == "package.file_missing"


def test_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_package(tmp_path)
    assert caught.value.code == "package.missing"


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('name = "phantom"', "", "no text name"),
        ("[files]", "[filez]", r"no table \[files\]"),
        ('file = "tiny.safetensors"', 'file = "other.safetensors"', "not listed"),
        ('"CARD.md" =', '"../CARD.md" =', "plain"),
        ("[thresholds]", "[thresholds", "not TOML"),
    ],
)
def test_incomplete_manifest_is_refused(package: ModelPackage, before: str, after: str, complaint: str) -> None:
    manifest = package.directory / "package.toml"
    assert before in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(before, after, 1))
    with pytest.raises(ConfigurationError, match=complaint):
        load_package(package.directory)


def test_unknown_kind_and_unfitting_parameters_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'resnet' is not known"):
        build_network(NetworkSpec("x", "resnet", Path("x")))
    with pytest.raises(ConfigurationError, match="colour"):
        build_network(NetworkSpec("x", "aanet", Path("x"), {"colour": 3}))
    with pytest.raises(ConfigurationError, match="needs config"):
        build_network(NetworkSpec("x", "darknet", Path("x")))


def test_network_the_package_lacks_is_refused(package: ModelPackage) -> None:
    with pytest.raises(ConfigurationError, match="'liver'"):
        load_network(package, "liver")


def test_weights_of_another_width_are_refused(package: ModelPackage) -> None:
    spec = package.networks["tiny"]
    wider = replace(spec, parameters={**spec.parameters, "base_width": 8})
    with pytest.raises(ConfigurationError, match=r"tiny.safetensors do not fit"):
        load_weights(build_network(wider), wider)


def test_pickled_weights_are_refused(package: ModelPackage) -> None:
    spec = package.networks["tiny"]
    spec.file.write_bytes(pickle.dumps({"head.weight": [1.0]}))
    with pytest.raises(ConfigurationError, match="do not fit"):
        load_weights(build_network(spec), spec)


def test_written_manifest_is_valid_toml(package: ModelPackage) -> None:
    content = tomllib.loads((package.directory / "package.toml").read_text())
    assert content["networks"]["aanet"]["parameters"]["n_filters"] == [8, 8, 8, 8]
    assert content["networks"]["roi"]["config"] == "lung-roi.cfg"


def test_newest_package_by_name_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("models.packages.__file__", str(tmp_path / "packages.py"))
    with pytest.raises(ConfigurationError, match="no model package"):
        default_package_directory()
    for name in ("phantom-9", "phantom-10", "phantom-2"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "package.toml").touch()
    assert default_package_directory().name == "phantom-10"
