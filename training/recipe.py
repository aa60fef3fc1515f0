"""A recipe: every number of a training, in one TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging.errors import ConfigurationError

AVERAGES = ("ema", "swa")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True, slots=True)
class DataRecipe:
    """Which cases exist and how they vary; the comments in the TOML say what each number means."""

    folder: Path
    grown_cases: int
    anatomy_cases: int
    first_seed: int
    validation_cases: int
    test_seed: int
    held_out_anatomies: tuple[str, ...]
    emboli_per_case: tuple[int, int]
    length_mm: float
    field_of_view_mm: tuple[float, float]
    spacing_z_mm: tuple[float, float]
    spacing_yx_mm: tuple[float, float]
    roi_every_mm: float
    roi_size: int
    margin_mm: float
    test_cases: int = 0  # with seeds from test_seed on, segmented whole after the training
    texture_folder: Path | None = None  # of training cases made of real CT
    texture_scans: tuple[str, ...] = ()  # real CT that training cases are made of
    texture_variants: int = 3  # cases made of each, with other emboli in each


@dataclass(frozen=True, slots=True)
class TextureRecipe:
    """A second training on phantoms and real CT together; see training/texture.py.

    Attributes:
        share: of a batch's crops that are from real CT.
        batch: crops of a step; 0: as in the first training.
        patch: size of a crop, (z, y, x) or (y, x); empty: as in the first training.
    """

    steps: int
    learning_rate: float
    share: float
    batch: int = 0
    patch: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkRecipe:
    """One network's construction, sampling, loss and schedule.

    `kind` and `parameters` (`config`: a darknet cfg) build it and go into the model package as they are; `options` is
    what sampling and loss of its kind need. The fields with a default here need not be in a TOML file.

    Attributes:
        batch: crops of an optimiser step, of all processes together.
        loss: a name that `training.objectives.named_loss` knows; empty: the objective of its kind.
        average: the weights that ship, "ema" (exponential moving average) or "swa" (equal mean over the last part).
        swa_share: the part of the steps, at the end, that "swa" averages over.
        accumulate: parts that a batch is run in, one after the other, to save memory. A loss that forms a ratio over
            the batch forms it over each part.
        precision: "bf16" (autocast) or "fp32".
        validation_scans: whole scans segmented at each validation; 0: crops only.
        texture: what comes after the training on phantoms; None: nothing.
    """

    name: str
    kind: str
    parameters: Mapping[str, Any]
    config: Path | None
    batch: int
    steps: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    ema_decay: float
    log_every: int
    checkpoint_every: int
    validate_every: int
    validation_batches: int
    batch_seed: int
    options: Mapping[str, Any]
    loss: str = ""
    average: str = "ema"
    swa_share: float = 0.25
    accumulate: int = 1
    precision: str = "bf16"
    validation_scans: int = 0
    texture: TextureRecipe | None = None

    def __post_init__(self) -> None:
        for key, value, allowed in (("average", self.average, AVERAGES), ("precision", self.precision, PRECISIONS)):
            if value not in allowed:
                raise ConfigurationError(
                    f"recipe {self.name}: {key} {value!r}", code="training.recipe", remedy=f"use {' or '.join(allowed)}"
                )
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ConfigurationError(
                f"recipe {self.name}: a batch of {self.batch} does not divide into {self.accumulate} parts",
                code="training.recipe",
            )
        if not 0 < self.swa_share <= 1:
            raise ConfigurationError(
                f"recipe {self.name}: swa_share {self.swa_share}", code="training.recipe", remedy="above 0, at most 1"
            )

    @property
    def swa_first_step(self) -> int:
        """The step whose weights are the first that "swa" counts."""
        return min(self.steps - 1, self.steps - round(self.steps * self.swa_share))


@dataclass(frozen=True, slots=True)
class Recipe:
    """`settings` are the tables the cascade reads from the package; fusion and thresholds are fitted on top.

    `notes` are what was seen of the trained package beyond its figures; the model card repeats them.
    """

    name: str
    version: str
    seed: int
    data: DataRecipe
    networks: Mapping[str, NetworkRecipe]
    settings: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Raises ConfigurationError where a table is missing or a number is not of the kind it should be."""
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
            data: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in tables["data"].items()
            }
            return cls(
                name=tables["name"],
                version=tables["version"],
                seed=tables["seed"],
                data=DataRecipe(
                    folder=Path(data.pop("folder")),
                    texture_folder=Path(data.pop("texture_folder")) if "texture_folder" in data else None,
                    **data,
                ),
                networks={
                    name: _network(name, tables)
                    for name, table in tables.items()
                    if isinstance(table, dict) and "kind" in table
                },
                settings=tables["settings"],
                notes=tuple(tables.get("notes", ())),
                path=path,
            )
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"recipe {path}: {error!r}", code="training.recipe", remedy="see training/recipes/phantom-v3.toml"
            ) from error


_SCHEDULE = (
    "batch", "steps", "learning_rate", "warmup_steps", "weight_decay", "clip_norm", "ema_decay", "log_every",
    "checkpoint_every", "validate_every", "validation_batches", "batch_seed",
)  # fmt: skip
_OPTIONAL = ("loss", "average", "swa_share", "accumulate", "precision", "validation_scans")


def _network(name: str, tables: Mapping[str, Any]) -> NetworkRecipe:
    table = {**tables["loop"], **tables[name]}
    config, texture = table.pop("config", None), table.pop("texture", None)
    return NetworkRecipe(
        name=name,
        kind=table.pop("kind"),
        parameters=table.pop("parameters", {}),
        config=None if config is None else Path(config),
        **{key: table.pop(key) for key in _SCHEDULE},
        **{key: table.pop(key) for key in _OPTIONAL if key in table},
        texture=None if texture is None else TextureRecipe(**texture | {"patch": tuple(texture.get("patch", ()))}),
        options=table,
    )
