"""The arithmetic of the performance document, and that it is made of the kept figures."""

from __future__ import annotations

import importlib

import pytest

from benchmarks import BENCHMARKS
from benchmarks.page import Figure, Floor, Goal, Growth, Page, Row
from benchmarks.report import DOCUMENT, PAGES, document, pictures, read_pages
from benchmarks.side_by_side import side_by_side


def row(*, higher_is_better: bool, ours: tuple[float, ...], floor: float | None = None, **others: float) -> Row:
    return Row(
        what="what is done",
        unit="slices/s" if higher_is_better else "s",
        higher_is_better=higher_is_better,
        ours=Figure(name="Embolens", samples=ours),
        others=tuple(Figure(name=name, samples=(value,)) for name, value in others.items()),
        floor=None if floor is None else Floor(value=floor, why="bytes over bandwidth"),
    )


def test_ratio_is_above_one_where_ours_is_better() -> None:
    rates = row(higher_is_better=True, ours=(90.0, 100.0, 400.0), floor=200.0, slow=20.0, quick=50.0)
    assert rates.best_other is not None
    assert rates.best_other.name == "quick"
    assert rates.times_better_than(rates.best_other) == 2.0  # the median, 100, and not the mean
    assert rates.share_of_floor == 0.5
    times = row(higher_is_better=False, ours=(4.0,), floor=1.0, slow=20.0, quick=2.0)
    assert times.best_other is not None
    assert times.best_other.name == "quick"
    assert times.times_better_than(times.best_other) == 0.5
    assert times.share_of_floor == 0.25


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_growth_tells_linear_from_quadratic(power: float) -> None:
    points = tuple((size, 3.0 * size**power) for size in (100.0, 200.0, 400.0))
    assert Growth(what="a", size="slices", unit="s", points=points).exponent == pytest.approx(power, abs=1e-9)


def test_ways_take_turns_and_the_first_round_is_thrown_away() -> None:
    calls: list[str] = []

    def way(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    figures = side_by_side({name: lambda name=name: way(name) for name in ("a", "b")}, rounds=2)  # type: ignore[misc]
    assert calls == ["a", "b"] * 3
    assert figures["a"].samples == (3.0, 5.0)
    assert figures["b"].samples == (4.0, 6.0)


def test_document_says_ratio_floor_and_missed_goals() -> None:
    found = row(higher_is_better=False, ours=(2.0,), floor=0.5, peer=3.0)
    found = found.model_copy(
        update={"goals": (Goal(says="at most 1 s", met=False), Goal(says="at most 3 s", met=True))}
    )
    growth = Growth(what="reading", size="slices", unit="s", points=((100, 1.0), (200, 2.0), (400, 4.0)))
    page = Page(title="A title", how="How it was done.", rows=(found,), growths=(growth,), name="a")
    written = document([page])
    assert "| what is done | 2 s | **1.50 x** | peer 3 | 0.5 (bytes over bandwidth): 25% | " in written
    assert "**missed**: at most 1 s<br>met: at most 3 s" in written
    assert "| reading, slices | 1.00 |" in written
    assert set(pictures([page])) == {"a.svg", "a-growth.svg"}


def test_the_document_is_made_of_the_kept_pages() -> None:
    pages = read_pages()
    assert DOCUMENT.read_text("utf-8") == document(pages)
    for name, picture in pictures(pages).items():
        assert (PAGES / name).read_text("utf-8") == picture


def test_every_benchmark_can_be_run_and_every_page_is_of_one() -> None:
    for name in BENCHMARKS:
        assert callable(importlib.import_module(f"benchmarks.{name}").measure)
    assert {page.name for page in read_pages()} <= set(BENCHMARKS)
