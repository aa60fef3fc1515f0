"""The audit trail: who did what to which study (PS3.15 Annex A)."""
