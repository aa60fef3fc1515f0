"""Questions to the database that come while it answers others: they wait, and are then asked as one.

No answer is older than its question: what is asked together was asked after every one of those who get the answer came.
So nothing is remembered and nothing can be stale (a revoked key, a job that has just ended), and however many ask, the
database is asked again only when it has answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class AskedTogether(Generic[Question, Answer]):
    """Different questions that one query can answer."""

    def __init__(self, look: Callable[[Collection[Question]], Mapping[Question, Answer]]) -> None:
        """`look` runs in a thread, once at a time; what it raises, everyone gets who asked."""
        self._look = look
        self._looking = asyncio.Lock()
        self._questions: set[Question] = set()
        self._next: asyncio.Task[Mapping[Question, Answer]] | None = None

    async def ask(self, question: Question) -> Answer | None:
        """None where `look` has no answer to this."""
        self._questions.add(question)
        if self._next is None:
            self._next = asyncio.create_task(self._look_when_free())
        answers = await asyncio.shield(self._next)  # who goes away does not take the answer with it
        return answers.get(question)

    async def _look_when_free(self) -> Mapping[Question, Answer]:
        async with self._looking:
            questions, self._questions, self._next = self._questions, set(), None
            return await run_in_threadpool(self._look, questions)


class AskedOnce(Generic[Question, Answer]):
    """The same question of many: while it is being answered all others wait, and get one answer. Different questions
    are asked one by one."""

    def __init__(self, look: Callable[[Question], Answer], *, at_once: int) -> None:
        """`look` runs in a thread, so many at once."""
        self._look = look
        self._looking = asyncio.Semaphore(at_once)
        self._next: dict[Question, asyncio.Task[Answer]] = {}
        self._now: dict[Question, asyncio.Task[Answer]] = {}

    async def ask(self, question: Question) -> Answer:
        if question not in self._next:
            self._next[question] = asyncio.create_task(self._look_when_free(question))
        return await asyncio.shield(self._next[question])

    async def _look_when_free(self, question: Question) -> Answer:
        if question in self._now:
            await asyncio.wait([self._now[question]])
        async with self._looking:
            self._now[question] = self._next.pop(question)
            try:
                return await run_in_threadpool(self._look, question)
            finally:
                del self._now[question]
