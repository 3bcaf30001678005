"""Many that ask at about the same time, answered together."""

import asyncio

import pytest

from hub.patience import StrayCancellationError
from hub.services.together import Together


class Desk:
    """Remembers each round; answers when it is let, or refuses a round with a "bad" question."""

    def __init__(self):
        self.rounds = []
        self.open = asyncio.Event()

    async def answer(self, questions):
        self.rounds.append(list(questions))
        await self.open.wait()
        if "bad" in questions:
            raise OSError
        return [each.upper() for each in questions]


async def test_who_asks_while_a_round_is_under_way_is_in_the_next():
    desk = Desk()
    together = Together(desk.answer)
    first = [asyncio.create_task(together.ask(each)) for each in "ab"]
    await asyncio.sleep(0.01)
    second = [asyncio.create_task(together.ask(each)) for each in "cd"]
    await asyncio.sleep(0.01)
    assert desk.rounds == [["a", "b"]]

    desk.open.set()

    assert await asyncio.gather(*first, *second) == ["A", "B", "C", "D"]
    assert desk.rounds == [["a", "b"], ["c", "d"]]


async def test_a_round_waits_for_those_who_come_soon_after():
    desk = Desk()
    desk.open.set()
    together = Together(desk.answer, gather_s=0.05)
    first = asyncio.create_task(together.ask("a"))
    for _ in range(5):
        await asyncio.sleep(0)

    assert await together.ask("b") == "B"

    assert await first == "A"
    assert desk.rounds == [["a", "b"]]


async def test_a_round_that_fails_is_told_to_those_who_were_in_it_only():
    desk = Desk()
    desk.open.set()
    together = Together(desk.answer)

    with pytest.raises(OSError):
        await together.ask("bad")

    assert await together.ask("a") == "A"


async def test_who_gives_up_waiting_takes_nobody_along():
    desk = Desk()
    together = Together(desk.answer)
    gone, stays = (asyncio.create_task(together.ask(each)) for each in "ab")
    await asyncio.sleep(0.01)

    gone.cancel()
    desk.open.set()

    assert await stays == "B"


async def test_a_round_that_somebody_else_cancels_is_told_to_those_who_were_in_it():
    """They would have waited for ever."""

    async def answer(questions):
        if "bad" in questions:
            raise asyncio.CancelledError
        return questions

    together = Together(answer)
    with pytest.raises(StrayCancellationError):
        await asyncio.wait_for(together.ask("bad"), 5)

    assert await together.ask("a") == "a"
