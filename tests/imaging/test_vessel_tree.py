from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imaging.vessel_tree import vessel_tree


def _chest() -> NDArray[np.int16]:
    """Two lungs of air in a body, a vessel in one of them, an artery between them, a rib beside, air around."""
    hu = np.full((90, 150, 210), 40, np.int16)
    hu[:, :15] = hu[:, :, :15] = hu[:, :, -15:] = -1000
    hu[9:81, 30:120, 30:99] = hu[9:81, 30:120, 111:180] = -850
    hu[9:81, 70:76, 60:66] = 300  # vessel
    hu[9:81, 60:75, 99:111] = 350  # artery at the hilum, 12 mm wide
    hu[:, 40:60, 183:189] = 700  # rib
    return hu


def test_the_tree_holds_vessels_in_and_between_the_lungs_and_no_rib() -> None:
    hu = _chest()
    tree = vessel_tree(hu, 1.0)
    assert tree[12:78, 70:76, 60:66].all()
    assert tree[15:75, 62:73, 100:110].all()
    assert not tree[:, :, 183:].any()
    assert not tree[hu < 130].any()


def test_without_lungs_there_is_no_tree() -> None:
    assert not vessel_tree(np.full((40, 60, 60), 200, np.int16), 1.0).any()
