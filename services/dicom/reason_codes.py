"""The stable codes under which this package refuses a source image or warns about it (`imaging.errors.Reason.code`)."""

from __future__ import annotations

MODALITY_NOT_CT = "input.modality_not_ct"
MULTIPLE_SERIES = "input.multiple_series"
MULTIPLE_PHASES = "input.multiple_phases"
MULTIPLE_PATIENTS = "input.multiple_patients"
DUPLICATE_SOP_INSTANCE_UID = "input.duplicate_sop_instance_uid"
OTHER_OBJECTS_IGNORED = "input.other_objects_ignored"  # warning

TOO_FEW_SLICES = "geometry.too_few_slices"
NO_GEOMETRY = "geometry.no_geometry"
MIXED_ORIENTATIONS = "geometry.mixed_orientations"
MIXED_SIZES = "geometry.mixed_sizes"
GANTRY_TILT = "geometry.gantry_tilt"
GRID_DIFFERS = "geometry.grid_differs"
SHEARED = "geometry.sheared"
MISALIGNED_SLICES = "geometry.misaligned_slices"
UNEQUAL_SPACING = "geometry.unequal_spacing"
MISSING_SLICES = "geometry.missing_slices"
DUPLICATE_POSITIONS = "geometry.duplicate_positions"
LOCALIZER_IGNORED = "geometry.localizer_ignored"  # warning
RESAMPLED = "geometry.resampled"  # warning
ORIENTATION_UNKNOWN = "geometry.orientation_unknown"  # warning

PIXELS_UNREADABLE = "pixels.unreadable"
PIXELS_NOT_HU = "pixels.not_hu"

SEGMENTS_OVERLAP = "segments.overlap"
SEGMENTS_RENUMBERED = "segments.renumbered"  # warning
LABELS_BESIDE_SLICES = "segments.beside_slices"  # warning
