"""Questions that wait are asked as one; no answer is older than its question."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

import pytest

from api.asked_together import AskedOnce, AskedTogether


class Library:
    """Answers when it is let; what it knows can change."""

    def __init__(self) -> None:
        self.knows = {1: "one", 2: "two", 3: "three"}
        self.asked: list[set[int]] = []
        self.is_looking = threading.Event()
        self.may_answer = threading.Event()

    def look(self, questions: Collection[int]) -> dict[int, str]:
        self.asked.append(set(questions))
        found = {one: self.knows[one] for one in questions if one in self.knows}
        self.is_looking.set()
        assert self.may_answer.wait(10)
        return found

    def look_up(self, question: int) -> str:
        return self.look([question])[question]


async def _is_looking(library: Library) -> None:
    await asyncio.to_thread(library.is_looking.wait, 10)


def test_what_comes_meanwhile_is_asked_in_one() -> None:
    async def ask_all() -> list[str | None]:
        together = AskedTogether(library.look)
        first = asyncio.create_task(together.ask(1))
        await _is_looking(library)
        others = [asyncio.create_task(together.ask(one)) for one in (2, 3, 2, 4)]
        await asyncio.sleep(0)
        library.may_answer.set()
        return await asyncio.gather(first, *others)

    library = Library()
    assert asyncio.run(ask_all()) == ["one", "two", "three", "two", None]
    assert library.asked == [{1}, {2, 3, 4}]


@pytest.mark.parametrize("way", ["together", "once"])
def test_an_answer_is_not_older_than_its_question(way: str) -> None:
    async def ask_twice() -> list[str | None]:
        ask = AskedTogether(library.look).ask if way == "together" else AskedOnce(library.look_up, at_once=4).ask
        before = asyncio.create_task(ask(1))
        await _is_looking(library)
        library.knows[1] = "changed"  # a key was revoked, a job has ended
        after = [asyncio.create_task(ask(1)) for _ in range(3)]
        await asyncio.sleep(0)
        library.may_answer.set()
        return await asyncio.gather(before, *after)

    library = Library()
    assert asyncio.run(ask_twice()) == ["one", "changed", "changed", "changed"]
    assert len(library.asked) == 2


def test_different_questions_do_not_wait_for_each_other() -> None:
    async def ask_both() -> list[str]:
        once = AskedOnce(library.look_up, at_once=2)
        asked = [asyncio.create_task(once.ask(one)) for one in (1, 2)]
        while len(library.asked) < 2:
            await _is_looking(library)
        library.may_answer.set()
        return await asyncio.gather(*asked)

    library = Library()
    assert asyncio.run(ask_both()) == ["one", "two"]


def test_an_error_goes_to_everyone_who_asked_and_to_nobody_else() -> None:
    async def ask_all() -> None:
        once = AskedOnce(library.look_up, at_once=1)
        asked = [asyncio.create_task(once.ask(4)) for _ in range(3)]
        library.may_answer.set()
        failed = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in failed] == [KeyError] * 3
        library.knows[4] = "four"
        assert await once.ask(4) == "four"

    library = Library()
    asyncio.run(ask_all())


def test_who_goes_away_takes_nobodys_answer_along() -> None:
    async def ask_all() -> str | None:
        together = AskedTogether(library.look)
        leaving, staying = asyncio.create_task(together.ask(1)), asyncio.create_task(together.ask(1))
        await _is_looking(library)
        leaving.cancel()
        library.may_answer.set()
        return await staying

    library = Library()
    assert asyncio.run(ask_all()) == "one"
