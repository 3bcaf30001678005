"""Many that ask at about the same time are answered together: whoever asks while a round is under way is in the next.

A round trip to the store costs about as much for one receiver as for ten, and nobody waits longer than for one round
before its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from hub.patience import steadily

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Together(Generic[Question, Answer]):
    """``answer`` gets the questions of one round and gives their answers in the same order. What it raises, all that were
    in the round are told. ``gather_s``: so long a round waits for others before it begins; 0 for those that ask at this very moment.
    """

    def __init__(
        self, answer: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]], *, gather_s: float = 0
    ) -> None:
        self._answer = answer
        self._gather_s = gather_s
        self._asked: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._rounds: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        """The answer, as soon as its round is done."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked.append((question, future))
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._until_all_are_answered())
        return await future

    async def _until_all_are_answered(self) -> None:
        while self._asked:
            await asyncio.sleep(self._gather_s)  # those that are as far as the first come along
            asked, self._asked = self._asked, []
            try:
                answers = await steadily(self._answer([question for question, _ in asked]))
                answered = list(zip(asked, answers, strict=True))
            except Exception as error:  # noqa: BLE001 - it is theirs who asked
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in answered:
                if not future.done():
                    future.set_result(answer)
