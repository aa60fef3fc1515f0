"""The cascade with one part of it switched off or exchanged, by the names the report gives these variants."""

from __future__ import annotations

from collections.abc import Sequence

from models.cascade_options import CascadeOptions, Ensemble, Mode
from models.second_pass import SecondPassSettings
from training.ablation import ENSEMBLE, UNET_ALONE
from training.case_record import FULL_CASCADE

FINER = SecondPassSettings(
    spacing_mm=0.7, from_probability=0.1, smallest_mm3=10.0, margin_mm=20.0, share=0.5, most=24
)  # what is tried of a package that has no second pass


def cascade_variants(members: Sequence[str], *, second_pass: bool) -> dict[str, CascadeOptions]:
    """The variants of a package's cascade by name.

    Args:
        members: names of the package's 2D networks.
        second_pass: whether the package has a second pass.
    """
    variants = {
        FULL_CASCADE: CascadeOptions(),
        "without the lung ROI": CascadeOptions(lung_roi=False),
        **{UNET_ALONE.format(name): CascadeOptions(unets=(name,), aanet=False) for name in members},
        ENSEMBLE: CascadeOptions(aanet=False),
        "UNets together, mean of probabilities": CascadeOptions(aanet=False, ensemble=Ensemble.PROBABILITY),
        "UNets together, mean of logits": CascadeOptions(aanet=False, ensemble=Ensemble.LOGIT),
        "AANet alone": CascadeOptions(unets=()),
        "vessel mode": CascadeOptions(mode=Mode.VESSEL),
    }
    if second_pass:
        variants["without the second pass"] = CascadeOptions(second_pass=False)
    else:
        variants["with a second, finer pass"] = CascadeOptions(second_pass=FINER)
    return variants
