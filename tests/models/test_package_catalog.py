from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imaging.errors import ConfigurationError
from models.package_catalog import ListedPackage, find_package, package_directories
from models.package_check import check_package
from models.packages import ModelPackage, load_network, write_package
from tests.models.made_package import make_package


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    return make_package(tmp_path / "site" / "made")


def test_hidden_folders_are_no_packages_and_empty_ones_are_broken(package: ModelPackage, tmp_path: Path) -> None:
    for name in (".made.17", "__pycache__", "empty"):
        (tmp_path / "site" / name).mkdir()
    found = package_directories([tmp_path / "site", tmp_path / "nowhere"])
    assert [path.name for path in found] == ["empty", "made"]
    empty, whole = (ListedPackage.look(path) for path in found)
    assert empty.package is None
    assert "package.toml cannot be read" in empty.problem
    assert whole.size_bytes == sum(file.stat().st_size for file in package.directory.iterdir())


def test_a_name_means_the_first_folder_that_has_it_and_a_path_itself(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("shipped", "elsewhere"):
        (tmp_path / place / "made").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    folders = [tmp_path / "site", tmp_path / "shipped"]
    assert find_package("made", folders) == package.directory
    assert find_package("./made", folders) == Path("made")
    with pytest.raises(ConfigurationError, match=r"no model package 'other' \(name one of made, made"):
        find_package("other", folders)


def test_a_whole_package_is_whole(package: ModelPackage) -> None:
    assert check_package(package.directory) == package


def test_weights_that_do_not_fill_their_network_are_found_though_every_digest_is_right(package: ModelPackage) -> None:
    networks = {name: (spec, load_network(package, name)) for name, spec in package.networks.items()}
    spec, network = networks["unet3tiny"]
    torch.nn.init.constant_(next(iter(network.parameters())), float("inf"))
    diverged = write_package(
        package.directory, name="made", version="3", networks=networks, settings=dict(package.settings)
    )
    with pytest.raises(ConfigurationError, match=r"made: unet3tiny\.safetensors: tensor .* holds inf"):
        check_package(diverged.directory)
    networks["unet3tiny"] = (spec, networks["attention_unet"][1])
    with pytest.raises(ConfigurationError, match=r"unet3tiny\.safetensors do not fit"):
        check_package(
            write_package(
                package.directory, name="made", version="3", networks=networks, settings=dict(package.settings)
            ).directory
        )
