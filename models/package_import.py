"""A new package from another one: one network comes from elsewhere, the rest stays byte for byte.

`package.toml` gets a table of its own, which every later import keeps:

    [imported]
    fitted = false                # fusion and thresholds are still the base's, fitted for other weights
    [imported.aanet]
    file = "aanet.pth"            # where the network came from
    sha256 = "9f86d0..."
    base = "phantom-v1"           # what it was put into
    base_sha256 = "2c26b4..."
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imaging.errors import ConfigurationError
from models.aanet_checkpoint import PICKLED_SUFFIXES, SAFETENSORS_SUFFIX, read_aanet
from models.cascade import Cascade
from models.darknet.network import DarknetNetwork
from models.network_spec import DARKNET, NetworkSpec, build_network, load_weights
from models.package_check import check_finite
from models.packages import ModelPackage, load_package, write_package

AANET, ROI = "aanet", "roi"
DARKNET_SUFFIX = ".weights"
CONFIG_SUFFIX = ".cfg"
VERSION = "1"
CARD, BASE_CARD = "README.md", "base-README.md"
SOURCES = "imported"
"""The table of `package.toml`."""


@dataclass(frozen=True, slots=True)
class ImportedNetwork:
    """A network that has been read and checked.

    Attributes:
        module: None where `spec.file` is taken as it is.
        source: the file it was read from.
    """

    spec: NetworkSpec
    module: nn.Module | None
    source: Path

    @property
    def sha256(self) -> str:
        with self.source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def import_network(
    file: Path, base: ModelPackage, directory: Path, *, name: str, config: Path | None = None
) -> ModelPackage:
    """Writes the package `base` with the network of `file` in place of its own; nothing is left where that fails.

    Args:
        file: AANet's tensors (.pth, .pt, .safetensors), or a lung detector (.weights) with its `config`.
        directory: of the new package; must not be there.

    Raises:
        ConfigurationError: the file is none of these, does not fit, or the directory is taken.
    """
    if directory.exists():
        raise ConfigurationError(
            f"{directory} is there already", code="package.exists", remedy="choose another name, or remove it"
        )
    imported = read_network(file, config)
    networks: dict[str, tuple[NetworkSpec, nn.Module | None]] = {
        name: (spec, None) for name, spec in base.networks.items()
    }
    networks[imported.spec.name] = (imported.spec, imported.module)
    settings = {**base.settings, SOURCES: _sources(base, imported)}
    files = {CARD: _card(name, base, networks, settings[SOURCES])}
    for card in (BASE_CARD, CARD):
        if card in base.files:
            files.setdefault(BASE_CARD, (base.directory / card).read_text(encoding="utf-8"))
    with _written_whole(directory) as unfinished:
        written = write_package(
            unfinished, name=name, version=VERSION, networks=networks, settings=settings, extra_files=files
        )
        Cascade(written, torch.device("cpu"))  # what does not go together shall not wait for a worker to find it
    return load_package(directory)


def read_network(file: Path, config: Path | None = None) -> ImportedNetwork:
    """Reads AANet or a lung detector, by the file's suffix.

    Raises:
        ConfigurationError: another suffix, `config` given or left out where it should not be, or weights that misfit.
    """
    known = (*PICKLED_SUFFIXES, SAFETENSORS_SUFFIX, DARKNET_SUFFIX)
    if file.suffix not in known:
        raise _refusal(f"{file.name} is not {', '.join(known)}", "name the file by what is in it")
    if file.suffix != DARKNET_SUFFIX:
        if config is not None:
            raise _refusal(f"{file.name} takes no cfg, {config.name} was given", "leave --config out")
        network, parameters = read_aanet(file)
        spec = NetworkSpec(AANET, AANET, Path(f"{AANET}{SAFETENSORS_SUFFIX}"), parameters)
        return ImportedNetwork(spec, network, file)
    if config is None:
        raise _refusal(f"{file.name} says nothing about its layers", "give the cfg it belongs to with --config")
    if config.suffix != CONFIG_SUFFIX:
        raise _refusal(f"{config.name} is not {CONFIG_SUFFIX}", "give the darknet cfg with --config")
    spec = NetworkSpec(ROI, DARKNET, file, config=config)
    _check_detector(spec)
    return ImportedNetwork(spec, None, file)


def _check_detector(spec: NetworkSpec) -> None:
    """It is filled, is a detector of grey slices, and answers to one."""
    try:
        detector = build_network(spec)
    except UnicodeDecodeError as error:
        raise _refusal(f"{spec.config} is not text: {error}", "give the darknet cfg with --config") from error
    assert isinstance(detector, DarknetNetwork)
    channels, height, width = detector.input_shape
    if channels != 1:
        raise _refusal(
            f"{spec.config} looks at {channels} channels, a slice has one", "train it on grey slices: channels=1"
        )
    load_weights(detector, spec)
    check_finite(spec.file.name, detector.state_dict())
    try:
        with torch.inference_mode():
            boxes = detector.eval().decode(detector(torch.zeros(1, channels, height, width)))
    except RuntimeError as error:
        raise _refusal(
            f"{spec.file.name} does not run on its own {height} x {width}: {error}", "make both a multiple of 32"
        ) from error
    check_finite(f"{spec.file.name}, answering to air", {"boxes": boxes})


def _sources(base: ModelPackage, imported: ImportedNetwork) -> dict[str, Any]:
    source = {
        "file": imported.source.name,
        "sha256": imported.sha256,
        "base": base.name,
        "base_sha256": base.sha256,
    }
    return {**base.settings.get(SOURCES, {}), "fitted": False, imported.spec.name: source}


def _card(
    name: str,
    base: ModelPackage,
    networks: Mapping[str, tuple[NetworkSpec, nn.Module | None]],
    sources: Mapping[str, Any],
) -> str:
    """Markdown for the package's README.md."""

    def origin(network: str, spec: NetworkSpec) -> str:
        if network in sources:
            source = sources[network]
            return f"imported: `{source['file']}` | `{source['sha256']}`"
        return f"{base.name}: `{spec.file.name}` | `{base.files[spec.file.name]}`"

    return "\n".join(
        [
            f"# {name}, version {VERSION}",
            "",
            "**Research use only. Not for diagnosis.** Nobody has measured what these networks find together.",
            "",
            f"Made by `embolens models import` from {base.name}, version {base.version} (SHA-256 `{base.sha256}`).",
            "",
            "| network | kind | came from | SHA-256 of that file |",
            "|---|---|---|---|",
            *(f"| {network} | {spec.kind} | {origin(network, spec)} |" for network, (spec, _) in networks.items()),
            "",
            "## Fusion and thresholds are not fitted",
            "",
            f"`package.toml` holds the fusion weights and thresholds of {base.name}. They were fitted for other",
            "weights: with these ones a score of 0.5 does not mean even odds, and what is reported or left out is",
            "arbitrary. They must be fitted anew, on cases whose emboli are known, before a result means anything;",
            "`docs/models.md` says how. Until then `[imported]` in `package.toml` says `fitted = false`.",
            "",
            "No figure of another package holds for this one. What the imported weights were trained on, and under",
            "which licence they may be used, is known to whom they came from.",
            *(["", f"The card of the package they were put into: `{BASE_CARD}`."] if CARD in base.files else []),
            "",
        ]
    )


@contextmanager
def _written_whole(directory: Path) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `directory` once all is written and vanishes if something fails."""
    unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _refusal(problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(problem, code="package.import", remedy=remedy)
