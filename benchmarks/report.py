"""docs/performance.md and its pictures, made of the pages in docs/performance/.

`python -m benchmarks.report` writes them anew without measuring.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import BENCHMARKS
from benchmarks.page import Page, Row
from benchmarks.pictures import bars, lines, number

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENT = REPOSITORY / "docs/performance.md"
PAGES = REPOSITORY / "docs/performance"
_HEAD = """\
# Performance

Made by `make bench` (`make bench BENCH="NAME ..."` measures some of them again). Every comparison runs side by side in
one run: each way once per round, in turn, and the medians are compared. A ratio above 1 means that ours is better. The
floor is what this machine could do at best, from rates measured on it. What others are and how they were set up stands
below each table. Since 2026-11-30 turns find free memory at hand, which a virtual machine else asks its host for by the
page. The figures are of the machine that is named, and say nothing about how well emboli are found:
[accuracy.md](accuracy.md) does.
"""


def read_pages() -> list[Page]:
    return [Page.model_validate_json(path.read_text("utf-8")) for path in sorted(PAGES.glob("*.json"))]


def keep(page: Page) -> None:
    """In the place of what the same benchmark found before."""
    PAGES.mkdir(exist_ok=True)
    (PAGES / f"{page.name}.json").write_text(page.model_dump_json(indent=1) + "\n", "utf-8")


def document(pages: list[Page]) -> str:
    """Markdown."""
    missing = [name for name in BENCHMARKS if name not in {page.name for page in pages}]
    not_yet = [f"Written, and not measured yet: {', '.join(missing)}.\n"] if missing else []
    return "\n".join([_HEAD, *not_yet, *(line for page in pages for line in _section(page))]).rstrip() + "\n"


def pictures(pages: list[Page]) -> dict[str, str]:
    """File name -> SVG."""
    drawn = {}
    for page in pages:
        drawn[f"{page.name}.svg"] = bars(page.rows)
        if page.growths:
            drawn[f"{page.name}-growth.svg"] = lines(page.growths)
    return drawn


def write_report() -> None:
    pages = read_pages()
    for name, picture in pictures(pages).items():
        (PAGES / name).write_text(picture, "utf-8")
    DOCUMENT.write_text(document(pages), "utf-8")


def _section(page: Page) -> Iterator[str]:
    yield f"## {page.title}\n"
    yield "| | ours | ratio to the best other | others | floor, and how much of it | goal |"
    yield "|---|---|---|---|---|---|"
    yield from map(_row, page.rows)
    yield f"\n![{page.title}](performance/{page.name}.svg)\n"
    yield page.how.strip() + "\n"
    rounds = len(page.rows[0].ours.samples)
    yield f"Measured on {page.measured_on}, rounds: {rounds}, {page.machine}.\n"
    if page.growths:
        yield "| how cost grows | exponent | points | |"
        yield "|---|---|---|---|"
        for growth in page.growths:
            points = ", ".join(f"{number(size)}: {number(cost)} {growth.unit}" for size, cost in growth.points)
            yield f"| {growth.what}, {growth.size} | {growth.exponent:.2f} | {points} | {growth.explanation} |"
        yield f"\n![How cost grows](performance/{page.name}-growth.svg)\n"


def _row(row: Row) -> str:
    best = row.best_other
    ratio = "" if best is None else f"**{row.times_better_than(best):.2f} x**"
    others = "<br>".join(f"{figure.name} {number(figure.median)}" for figure in row.others)
    share = row.share_of_floor
    floor = "" if row.floor is None or share is None else f"{number(row.floor.value)} ({row.floor.why}): {share:.0%}"
    goals = "<br>".join(f"{'met' if goal.met else '**missed**'}: {goal.says}" for goal in row.goals)
    return f"| {row.what} | {number(row.ours.median)} {row.unit} | {ratio} | {others} | {floor} | {goals} |"


if __name__ == "__main__":
    write_report()
