"""Which received series are segmented: rules in one TOML (deploy/intake.toml), each with its code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, IPvAnyNetwork, model_validator

from imaging.errors import ConfigurationError, Reason
from services.accounts.principal import checked_tenant
from services.dicom.series_reader import SeriesInfo
from services.ingest.series_selection import SelectionRule
from services.store.rows import DEFAULT_TENANT, Priority
from services.toml_file import Pattern, TomlTable

_SPACING_TOLERANCE_MM = 1e-3


def _valid_tenant(name: str) -> str:
    try:
        return checked_tenant(name)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


Treatment = Literal["stat", "routine", "ignored"]
WORKLIST = "worklist:"  # before the name of a worklist, in the table of tenants
Tenant = Annotated[str, AfterValidator(_valid_tenant)]


@dataclass(frozen=True, slots=True)
class IntakeVerdict:
    """No reasons: the series is segmented with this priority. Else it is set aside for these reasons."""

    priority: Priority
    reasons: tuple[Reason, ...] = ()


class DescriptionRules(TomlTable):
    """Patterns on Series Description; see deploy/intake.toml."""

    include: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()

    def reason(self, description: str) -> Reason | None:
        """Why a series so described is not segmented. The text quotes the pattern, never the description."""
        for pattern in self.exclude:
            if re.search(pattern, description, re.IGNORECASE):
                return Reason("intake.description", f"the series description matches the excluded pattern {pattern!r}")
        if self.include and not any(re.search(pattern, description, re.IGNORECASE) for pattern in self.include):
            return Reason("intake.description", "the series description matches none of the included patterns")
        return None


class CallingAeTitles(TomlTable):
    """What becomes of a series by the AE title that sent it."""

    default: Treatment = "routine"
    named: dict[str, Treatment] = Field(default_factory=dict)

    def treatment(self, calling_ae_title: str) -> Treatment:
        return self.named.get(calling_ae_title.strip(), self.default)


class Tenants(TomlTable):
    """Whose studies come from an AE title, a "dicomweb:NAME" or a "worklist:NAME"."""

    default: Tenant = DEFAULT_TENANT
    named: dict[str, Tenant] = Field(default_factory=dict)

    def of(self, sender: str) -> str:
        return self.named.get(sender.strip(), self.default)


class AssociationRules(TomlTable):
    """Who may open an association, before anything is received; see deploy/intake.toml."""

    promiscuous: bool = False
    called_ae_title_must_match: bool = True
    calling_ae_titles: tuple[str, ...] = ()
    nodes_come_from_their_host: bool = True
    certificate_names_ae_title: bool = False
    addresses: tuple[IPvAnyNetwork, ...] = ()

    def allow_address(self, address: str) -> bool:
        """Whether associations may come from an address. One of IPv4 that came in over IPv6 is of IPv4."""
        peer = ip_address(address.split("%")[0])
        peer = getattr(peer, "ipv4_mapped", None) or peer
        return not self.addresses or any(peer in network for network in self.addresses)


class IntakeRules(TomlTable):
    """The rules of deploy/intake.toml, where each is explained."""

    modality: str = "CT"
    min_slices: int = Field(20, ge=1)
    max_slices: int = Field(3000, ge=1)
    max_slice_spacing_mm: float = Field(5.0, gt=0)
    description: DescriptionRules = DescriptionRules()
    best_of_study: bool = True
    associations: AssociationRules = AssociationRules()
    calling_ae_titles: CallingAeTitles = CallingAeTitles()
    tenants: Tenants = Tenants()
    selection: tuple[SelectionRule, ...] = ()

    @model_validator(mode="after")
    def _some_number_of_slices_is_allowed(self) -> IntakeRules:
        if self.min_slices > self.max_slices:
            raise ValueError(f"min_slices {self.min_slices} is more than max_slices {self.max_slices}")
        return self

    def judge(self, series: SeriesInfo, calling_ae_title: str) -> IntakeVerdict:
        """Every rule that turns the series away is named, not only the first."""
        treatment = self.calling_ae_titles.treatment(calling_ae_title)
        priority = Priority.STAT if treatment == "stat" else Priority.ROUTINE
        reasons = []
        if treatment == "ignored":
            text = f"series from {calling_ae_title!r} are not segmented"
            reasons.append(Reason("intake.calling_ae_title", text))
        if series.modality != self.modality:
            text = f"modality is {series.modality or 'unknown'}, only {self.modality} is segmented"
            reasons.append(Reason("intake.modality", text))
        if series.count < self.min_slices:
            text = f"{series.count} slices, at least {self.min_slices} are asked for"
            reasons.append(Reason("intake.too_few_slices", text))
        if series.count > self.max_slices:
            text = f"{series.count} slices, at most {self.max_slices} are taken"
            reasons.append(Reason("intake.too_many_slices", text))
        spacing_mm = series.slice_spacing_mm
        if spacing_mm is not None and spacing_mm > self.max_slice_spacing_mm + _SPACING_TOLERANCE_MM:
            text = f"slices are {spacing_mm:.2f} mm apart, at most {self.max_slice_spacing_mm:g} mm are segmented"
            reasons.append(Reason("intake.slice_spacing", text))
        if (of_description := self.description.reason(series.description)) is not None:
            reasons.append(of_description)
        return IntakeVerdict(priority, tuple(reasons))
