"""However a series is dealt out to associations, the volume that a job reads is the one that was pushed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.dicom.series_reader import read_series
from tests.services.ingest.peers import Receiving, association, ct_series

SLICES = 6


@dataclass
class Push:
    """Slices by number in the order in which they go, each with the association that it goes over."""

    order: list[int]
    over: list[int]
    is_interleaved: bool


pushes = st.builds(
    Push,
    order=st.permutations(range(SLICES)),
    over=st.lists(st.integers(0, 2), min_size=SLICES, max_size=SLICES),
    is_interleaved=st.booleans(),
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushes)
def test_a_series_split_over_associations_is_one_volume(receiving: Receiving, push: Push) -> None:
    rng = np.random.default_rng(0)
    slices = ct_series(SLICES, size=16)
    for one in slices:
        one.PixelData = rng.integers(-1000, 1000, (16, 16), dtype=np.int16).tobytes()
    dealt = list(zip(push.order, push.over, strict=True))
    if push.is_interleaved:
        with association(receiving.port) as a, association(receiving.port) as b, association(receiving.port) as c:
            for number, which in dealt:
                assert (a, b, c)[which].send_c_store(slices[number]).Status == 0x0000
    else:
        for which in sorted(set(push.over)):
            with association(receiving.port) as opened:
                for number in (number for number, over in dealt if over == which):
                    assert opened.send_c_store(slices[number]).Status == 0x0000
    (job,) = receiving.wait_for_state(slices[0], "queued")
    paths: list[Path] = receiving.store.read_inputs(job.id)
    pushed = np.stack([np.frombuffer(one.PixelData, np.int16).reshape(16, 16) for one in slices])
    np.testing.assert_array_equal(read_series(paths).volume.hu, pushed)
