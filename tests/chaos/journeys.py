"""The journeys of `tests/stories/test_journeys.py` under fire: corrections, merges, redirects, deaths, late and early news.

Before a seed begins each story is told to the one transaction alone, which says what must become of it; its messages then go
through Kafka, for people of its own, each when the one before has its receipt.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hub.store import schema
from hub.store.engine import open_engine
from tests.chaos.ledger import GaveUpError, Journey
from tests.stories.on_a_broker import HOSPITALS, Told, told_alone, with_its_own_people

if TYPE_CHECKING:
    from tests.chaos.simulation import Hospitals

TRUSTS = frozenset(HOSPITALS.values())
"""Whose journeys these are: each seed needs them."""


async def recorded(folder: Path) -> list[Told]:
    """Every journey, as the transaction alone takes it. ``folder`` holds the databases meanwhile."""
    empty = folder / "empty.db"
    engine = open_engine(f"sqlite+aiosqlite:///{empty}")
    await schema.upgrade(engine)
    await engine.dispose()
    return await told_alone(folder, empty)


def tellers(hospitals: "Hospitals", everything: Sequence[Told], rng: random.Random, spread_s: float) -> list:
    """A coroutine for each journey; they begin in the first part of ``spread_s``, because they are long."""
    return [_tell(hospitals, story, rng.uniform(0, spread_s / 3)) for story in everything]


async def _tell(hospitals: "Hospitals", story: Told, delay: float) -> None:
    messages = list(with_its_own_people(story))
    journey = Journey(story.name, frozenset(ods for ods, _ in story.inboxes), story.states, story.inboxes)
    hospitals.ledger.journeys[story.name] = journey
    await asyncio.sleep(delay)
    sent: Counter[str] = Counter()
    try:
        for place, ((ods, message), disposition) in enumerate(
            zip(messages, story.dispositions, strict=True), 1
        ):
            await hospitals.send(
                ods, message, what=f"message {place}", story=story.name, expected=frozenset({disposition}), news="?",
            )  # fmt: skip
            message_id = message.headers["x-request-id"]
            sent[message_id] += 1
            await hospitals.receipts(ods).wait_for_answers(message_id, sent[message_id], hospitals.deadline)
        journey.finished = True
    except GaveUpError as late:
        journey.waited_for = str(late)
