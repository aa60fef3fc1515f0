from __future__ import annotations

import pytest

from services.accounts.rate_limit import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_taken_and_then_so_many_a_second() -> None:
    clock = Clock()
    limit = RateLimit(2.0, 3, now=clock)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    clock.now = 0.4
    assert limit.take("a") == pytest.approx(0.1)  # being refused costs nothing
    clock.now = 0.5
    assert limit.take("a") == 0
    clock.now = 100
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]  # no more than a burst is saved up


def test_each_has_a_bucket_of_its_own_and_looking_takes_nothing() -> None:
    limit = RateLimit(1.0, 1, now=Clock())
    assert limit.wait_s("a") == limit.wait_s("a") == 0
    assert limit.take("a") == 0
    assert limit.wait_s("a") == pytest.approx(1)
    assert limit.take("b") == 0


def test_without_a_rate_there_is_no_limit() -> None:
    limit = RateLimit(0, 1)
    assert not any(limit.take("a") for _ in range(100))


def test_callers_beyond_number_are_forgotten_not_kept() -> None:
    limit = RateLimit(1.0, 1, now=Clock())
    for number in range(10_100):
        limit.take(str(number))
    assert len(limit._buckets) == 10_000
