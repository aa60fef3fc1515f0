"""Whether anything may be said about emboli in a scan: measured on the image, answered with coded reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from imaging.errors import ConfigurationError, NotAnalysable, Reason
from imaging.volume import CtVolume


@dataclass(frozen=True, slots=True)
class SuitabilityLimits:
    """Limits beyond which the networks were never shown anything, or a reader could not read either.

    FACTS of the field: at least 210 HU in the pulmonary artery is asked for to read a CTPA; below it is suboptimal.
    The outline's step is at most 0.10 mm in phantoms, 0.25 mm in real CTs held to be still, and 0.38 mm or more where
    either was displaced by 10 mm along the body or 3 mm across it.
    """

    max_slice_spacing_mm: float = 5.0
    max_pixel_spacing_mm: float = 1.5
    min_height_mm: float = 40.0
    max_extent_mm: float = 600.0
    whole_lung_height_mm: float = 160.0
    min_artery_ml: float = 5.0
    min_artery_hu: float = 110.0
    good_artery_hu: float = 210.0
    max_outline_step_mm: float = 0.35

    @classmethod
    def from_mapping(cls, values: Mapping[str, float]) -> SuitabilityLimits:
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise ConfigurationError(f"unknown suitability limits {sorted(unknown)}", remedy=f"known: {sorted(known)}")
        return cls(**values)


def check_grid(volume: CtVolume, limits: SuitabilityLimits) -> None:
    """Spacing and extent of a canonical volume.

    Raises:
        NotAnalysable: with every reason that applies.
    """
    slice_mm, row_mm, column_mm = volume.spacing_zyx_mm
    reasons = []
    if slice_mm > limits.max_slice_spacing_mm + 1e-3:
        text = f"slices are {slice_mm:.2f} mm apart, at most {limits.max_slice_spacing_mm:g} mm can be analysed"
        reasons.append(Reason("geometry.slice_spacing", text))
    if max(row_mm, column_mm) > limits.max_pixel_spacing_mm + 1e-3:
        text = f"pixels are {max(row_mm, column_mm):.2f} mm wide, at most {limits.max_pixel_spacing_mm:g} mm"
        reasons.append(Reason("geometry.pixel_spacing", text))
    height_mm = volume.shape_zyx[0] * slice_mm
    if height_mm < limits.min_height_mm:
        text = f"the scan covers {height_mm:.0f} mm, at least {limits.min_height_mm:g} mm are needed"
        reasons.append(Reason("coverage.too_short", text))
    if reasons:
        raise NotAnalysable(reasons)


def check_contrast(artery_ml: float, artery_hu: float, limits: SuitabilityLimits) -> tuple[Reason, ...]:
    """Contrast in the pulmonary artery, by the median HU of its lumen; returns warnings.

    Raises:
        NotAnalysable: no opacified pulmonary artery to look into.
    """
    if artery_ml < limits.min_artery_ml:
        text = (
            f"only {artery_ml:.1f} ml of opacified pulmonary artery found, at least {limits.min_artery_ml:g} ml needed"
        )
        raise NotAnalysable([Reason("contrast.artery_not_found", text)])
    if artery_hu < limits.min_artery_hu:
        text = f"{artery_hu:.0f} HU in the pulmonary artery: no contrast to see emboli by"
        raise NotAnalysable([Reason("contrast.too_low", text)])
    if artery_hu < limits.good_artery_hu:
        text = f"{artery_hu:.0f} HU in the pulmonary artery, below {limits.good_artery_hu:g}: emboli may be missed"
        return (Reason("contrast.suboptimal", text),)
    return ()


def check_coverage(lung_extent_zyx_mm: tuple[float, float, float], limits: SuitabilityLimits) -> tuple[Reason, ...]:
    """Extent of the lungs in view; returns warnings.

    Raises:
        NotAnalysable: too little lung was recognised to say anything, or more than a patient has.
    """
    height_mm = lung_extent_zyx_mm[0]
    if height_mm < limits.min_height_mm:
        text = f"lungs were recognised over {height_mm:.0f} mm, at least {limits.min_height_mm:g} mm are needed"
        raise NotAnalysable([Reason("coverage.too_short", text)])
    if max(lung_extent_zyx_mm) > limits.max_extent_mm:
        text = f"lungs of {max(lung_extent_zyx_mm):.0f} mm: at most {limits.max_extent_mm:g} mm can be analysed"
        raise NotAnalysable([Reason("geometry.extent", text)])
    if height_mm >= limits.whole_lung_height_mm:
        return ()
    text = f"only {height_mm:.0f} mm of lung in view: nothing is said about the rest"
    return (Reason("coverage.partial", text),)


def check_motion(outline_step_mm: float, limits: SuitabilityLimits) -> tuple[Reason, ...]:
    """Breathing, by the largest step of the lungs' outline (`imaging.motion`); returns warnings."""
    if outline_step_mm <= limits.max_outline_step_mm:
        return ()
    text = (
        f"the outline of the lungs jumps by {outline_step_mm:.1f} mm more between two slices than around them, at most "
        f"{limits.max_outline_step_mm:g} mm without breathing: vessels there may be cut or doubled"
    )
    return (Reason("motion.breathing", text),)
