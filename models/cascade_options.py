"""Which parts of the cascade run, where a caller wants others than the package's own choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from imaging.errors import ConfigurationError
from models.second_pass import SecondPassSettings


class Ensemble(StrEnum):
    """How the 2D networks' answers become one: with fitted weights, or as a plain mean of logits or probabilities."""

    LEARNT = "learnt"
    LOGIT = "logit"
    PROBABILITY = "probability"


class Mode(StrEnum):
    """Where is looked: in the whole box around the lungs, or in windows along the opacified vessels of the lungs."""

    VOLUME = "volume"
    VESSEL = "vessel"


@dataclass(frozen=True, slots=True)
class CascadeOptions:
    """The default runs everything a package has.

    Attributes:
        lung_roi: look only into the box around the lungs; False: into all that was scanned.
        unets: names of the 2D networks that run; None: the package's, without those whose fitted weight is 0. Vessel
            mode runs none.
        aanet: the 3D network runs. Without it no artery is found, contrast is not measured and nothing gates the 2D
            networks.
        ensemble: of the 2D networks.
        mode: see `Mode`.
        second_pass: look again, more finely, where the first pass found candidates: as the package says, if it says
            so; False: never; settings: as they say, whatever the package does.
    """

    lung_roi: bool = True
    unets: tuple[str, ...] | None = None
    aanet: bool = True
    ensemble: Ensemble = Ensemble.LEARNT
    mode: Mode = Mode.VOLUME
    second_pass: bool | SecondPassSettings = True

    def members(self, of_package: Sequence[str]) -> tuple[str, ...]:
        """The 2D networks to run.

        Raises:
            ConfigurationError: one is not the package's, or nothing at all would run.
        """
        if self.mode is Mode.VESSEL:
            members: tuple[str, ...] = ()
        else:
            members = tuple(of_package) if self.unets is None else self.unets
        if unknown := set(members) - set(of_package):
            raise ConfigurationError(
                f"2D networks {sorted(unknown)} are not in the package",
                code="cascade.options",
                remedy=f"use {', '.join(of_package)}",
            )
        if not members and not self.aanet:
            raise ConfigurationError(
                "neither a 2D network nor AANet would run", code="cascade.options", remedy="switch one of them on"
            )
        return members
