"""Model packages: weights, how to build the networks they belong to, and the settings they were validated with.

A package is a directory with a `package.toml`:

    name = "phantom"
    version = "1"
    [files]                       # everything else in the package, with its SHA-256
    "unet3tiny.safetensors" = "9f86d0..."
    [networks.unet3tiny]          # any number of networks
    kind = "unet3tiny"            # darknet, unet3tiny, attention_unet, aanet
    file = "unet3tiny.safetensors"
    [networks.unet3tiny.parameters]
    in_channels = 3               # the constructor's arguments
    ...
    [networks.roi]
    kind = "darknet"
    file = "lung-roi.weights"
    config = "lung-roi.cfg"       # a darknet network's cfg takes the place of parameters

All other tables (input, thresholds, fusion, suitability, ...) are the cascade's settings, carried as they are.
Nothing in a package is ever unpickled, and nothing is loaded whose digest does not match.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from imaging.errors import ConfigurationError
from models.darknet.network import DarknetNetwork
from models.darknet.weights import write_weights
from models.network_spec import DARKNET, NetworkSpec, build_network, darknet_config, load_weights

__all__ = [
    "MANIFEST",
    "ModelPackage",
    "NetworkSpec",
    "build_network",
    "default_package_directory",
    "load_network",
    "load_package",
    "load_weights",
    "shipped_folder",
    "write_package",
]

MANIFEST = "package.toml"


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A package whose files have been verified.

    Attributes:
        settings: every table of `package.toml` but files and networks.
        sha256: hex SHA-256 over the sorted digests of all files, `package.toml` included: a threshold changed is
            another package.
        files: every file but `package.toml`, with its SHA-256.
    """

    name: str
    version: str
    directory: Path
    settings: Mapping[str, Any]
    sha256: str
    networks: Mapping[str, NetworkSpec]
    files: Mapping[str, str]

    @property
    def is_fitted(self) -> bool:
        """Whether fusion and thresholds were fitted for the networks in it; see `models/package_import.py`."""
        return bool(self.settings.get("imported", {}).get("fitted", True))


def shipped_folder() -> Path:
    """Where the packages lie that ship with the product."""
    return Path(__file__).parent / "weights"


def default_package_directory() -> Path:
    """The newest package that ships with the product, by name (numbers in names count as numbers).

    Raises:
        ConfigurationError: none ships with this installation.
    """
    shipped = shipped_folder()
    directories = [path.parent for path in shipped.glob(f"*/{MANIFEST}")]
    if not directories:
        raise ConfigurationError(
            f"no model package in {shipped}", code="package.missing", remedy="install one or name its directory"
        )
    return max(directories, key=_natural_order)


def load_package(directory: Path) -> ModelPackage:
    """Reads and verifies a package.

    Raises:
        ConfigurationError: `package.toml` is missing or incomplete, a file is missing, or its SHA-256 is another one.
    """
    manifest = directory / MANIFEST
    try:
        text = manifest.read_bytes()
        content = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise _refusal(directory, f"{MANIFEST} cannot be read: {error.strerror}", "package.missing") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _refusal(directory, f"{MANIFEST} is not TOML: {error}") from error
    files = _table(directory, content, "files")
    digests = [hashlib.sha256(text).hexdigest()]
    for name, expected in sorted(files.items()):
        digests.append(_verified(directory, name, expected))
    networks = {
        name: _network_spec(directory, name, table, files)
        for name, table in _table(directory, content, "networks").items()
    }
    return ModelPackage(
        name=_text(directory, content, "name"),
        version=_text(directory, content, "version"),
        directory=directory,
        settings={key: value for key, value in content.items() if key not in _OWN_KEYS},
        sha256=hashlib.sha256("\n".join(sorted(digests)).encode("ascii")).hexdigest(),
        networks=networks,
        files=files,
    )


def load_network(package: ModelPackage, name: str) -> nn.Module:
    """One of the package's networks with its weights, in evaluation mode.

    Raises:
        ConfigurationError: the package has no network of that name, or it cannot be built or filled.
    """
    if name not in package.networks:
        raise _refusal(package.directory, f"has no network {name!r}, only {', '.join(sorted(package.networks))}")
    spec = package.networks[name]
    network = build_network(spec)
    load_weights(network, spec)
    return network.eval()


def write_package(
    directory: Path,
    *,
    name: str,
    version: str,
    networks: Mapping[str, tuple[NetworkSpec, nn.Module | None]],
    settings: Mapping[str, Mapping[str, Any]],
    extra_files: Mapping[str, str] | None = None,
) -> ModelPackage:
    """Writes weights, cfg files and `package.toml`, and loads the package back.

    Args:
        networks: by name: how to build it and the trained module, of `spec.file` only the file's name is used;
            None: `spec.file` is copied as it is.
        settings: the tables of `package.toml` the cascade reads.
        extra_files: file name -> text of further files to ship and verify (a model card).
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    tables: dict[str, Any] = {}
    for network_name, (spec, module) in networks.items():
        table: dict[str, Any] = {"kind": spec.kind, "file": spec.file.name}
        if spec.kind == DARKNET:
            config = darknet_config(spec)
            _copy(config, directory)
            table["config"] = config.name
            written.append(config.name)
        else:
            table["parameters"] = dict(spec.parameters)
        _write_weights(directory, spec, module)
        written.append(spec.file.name)
        tables[network_name] = table
    for file_name, text in (extra_files or {}).items():
        (directory / file_name).write_text(text, encoding="utf-8")
        written.append(file_name)
    content = {
        "name": name,
        "version": version,
        **settings,
        "networks": tables,
        "files": {file_name: _sha256(directory / file_name) for file_name in sorted(written)},
    }
    (directory / MANIFEST).write_text("\n".join(_toml_lines(content, ())) + "\n", encoding="utf-8")
    return load_package(directory)


def _write_weights(directory: Path, spec: NetworkSpec, module: nn.Module | None) -> None:
    file = directory / spec.file.name
    if module is None:
        _copy(spec.file, directory)
    elif isinstance(module, DarknetNetwork):
        write_weights(file, module)
    else:
        tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        file.write_bytes(save(tensors))  # readable by whom the folder lets in


def _copy(file: Path, directory: Path) -> None:
    if file.parent.resolve() != directory.resolve():
        shutil.copyfile(file, directory / file.name)


_OWN_KEYS = frozenset({"name", "version", "files", "networks"})


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts phantom-10 after phantom-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _refusal(directory: Path, problem: str, code: str = "package.invalid") -> ConfigurationError:
    return ConfigurationError(
        f"model package {directory.name}: {problem}", code=code, remedy="install the package again, unchanged"
    )


def _table(directory: Path, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = content.get(key)
    if not isinstance(table, dict):
        raise _refusal(directory, f"{MANIFEST} has no table [{key}]")
    return table


def _text(directory: Path, content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value:
        raise _refusal(directory, f"{MANIFEST} has no text {key}")
    return value


def _verified(directory: Path, name: str, expected: object) -> str:
    if Path(name).name != name or name in ("", ".", "..", MANIFEST):
        raise _refusal(directory, f"file name {name!r} must be plain, without directories")
    try:
        actual = _sha256(directory / name)
    except OSError as error:
        raise _refusal(directory, f"file {name} cannot be read: {error.strerror}", "package.file_missing") from error
    if actual != expected:
        raise _refusal(directory, f"file {name} was changed: SHA-256 {actual}, expected {expected}", "package.tampered")
    return actual


def _network_spec(directory: Path, name: str, table: object, files: Mapping[str, Any]) -> NetworkSpec:
    if not isinstance(table, dict):
        raise _refusal(directory, f"[networks] {name} is not a table")

    def listed(key: str) -> Path:
        file_name = _text(directory, table, key)
        if file_name not in files:
            raise _refusal(directory, f"network {name}: {key} {file_name} is not listed under [files]")
        return directory / file_name

    return NetworkSpec(
        name=name,
        kind=_text(directory, table, "kind"),
        file=listed("file"),
        parameters=table.get("parameters", {}),
        config=listed("config") if "config" in table else None,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """TOML of nested tables whose values are text, numbers, booleans and lists of them (tomllib only reads)."""
    lines = []
    for key, value in table.items():
        if not isinstance(value, Mapping):
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, _toml_key(key))
            lines += ["", f"[{'.'.join(inner)}]", *_toml_lines(value, inner)]
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
        case _:
            raise TypeError(f"{value!r} has no TOML form here")
