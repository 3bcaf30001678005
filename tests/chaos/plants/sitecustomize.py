"""Bugs on purpose, for the hub's processes that the chaos run starts with CHAOS_PLANT: is the checker able to see them?

Python imports this module at its start because its folder is first on their PYTHONPATH; nobody else has it there.
A plant that patches something which is not there any more fails loudly, and so does the run.
"""

import os
import sys
from typing import Any


def _ack_before_commit() -> None:
    """The positions are committed first, in a transaction of their own; the effects follow, or do not."""
    import asyncio

    from hub.store import unit_of_work as u

    lock, once = u._lock_positions, u.UnitOfWork._take_once

    async def take_once(self: Any, understood: Any, next_after: Any, **more: Any) -> Any:
        async with self._engine.begin() as connection:
            before = await lock(connection, understood, next_after)
            ends = {
                u._partition(each.received): each.received.position.offset + 1 for each in understood
            }  # in order, so the last one counts
            moved = {key: end for key, end in ends.items() if end > before[key]}
            await u._write_positions(connection, moved, {}, self._clock())
        # As long as a batch on a busy machine; a narrower hole would only take more seeds.
        await asyncio.sleep(0.1)

        async def as_before(connection: Any, understood: Any, next_after: Any) -> Any:
            await lock(connection, understood, next_after)
            return before

        u._lock_positions = as_before
        try:
            return await once(self, understood, next_after, **more)
        finally:
            u._lock_positions = lock

    u.UnitOfWork._take_once = take_once  # type: ignore[method-assign]


def _no_position_check() -> None:
    """Positions are neither kept nor looked at, and an id is new for each reading: only the repeated message id is
    left to stop a replay."""
    import dataclasses
    import uuid

    from hub.store import unit_of_work as u

    lock, take = u._lock_positions, u.UnitOfWork.take

    async def lock_positions(connection: Any, understood: Any, next_after: Any) -> Any:
        return dict.fromkeys(await lock(connection, understood, next_after), 0)

    async def write_positions(connection: Any, moved: Any, last: Any, now: Any) -> None:
        """Nothing is kept: whoever starts, starts where the partition was first met."""

    async def take_anew(self: Any, batch: Any, **more: Any) -> Any:
        received = [getattr(each, "received", each) for each in batch]  # as it came, or understood already
        fresh = [dataclasses.replace(each, event_id=str(uuid.uuid4())) for each in received]
        return await take(self, fresh, **more)

    u._lock_positions = lock_positions
    u._write_positions = write_positions
    u.UnitOfWork.take = take_anew  # type: ignore[method-assign]


def _no_header_check() -> None:
    """Whoever takes a receiver over does not look what lies in its topics."""
    from hub.destinations.kafka import KafkaDestination
    from hub.domain.delivery import ReadBack

    async def read_back(self: Any, topics: Any, known: Any) -> ReadBack:
        return ReadBack()

    KafkaDestination.read_back = read_back  # type: ignore[method-assign]


def _told_to_the_other_too() -> None:
    """Who was asked as well, and is told that the patient goes elsewhere, is sent what the hospital is sent that gets them."""
    import dataclasses

    from hub.journey import decide

    news = decide.news

    def and_to_the_other(happened: Any, told: Any, directory: Any, **more: Any) -> Any:
        sent = news(happened, told, directory, **more)
        taken = happened.advanced.taken[1:]
        others = {each.transfer.receiver for each in taken if each.fact.step == "diverge"}
        return sent + tuple(
            dataclasses.replace(out, receiver=other, topic=directory[other].inbox_topic)
            for out in sent[:1]
            for other in sorted(others - {out.receiver})
        )

    decide.news = and_to_the_other


def _other_is_not_told() -> None:
    """Who was asked as well does not hear that the patient has gone to another hospital."""
    from hub.journey import movements

    def left_behind(*_args: Any, **_more: Any) -> Any:
        return movements.Advanced()

    assert movements._left_behind
    movements._left_behind = left_behind


PLANTS = {
    "ack-before-commit": _ack_before_commit,
    "no-position-check": _no_position_check,
    "no-header-check": _no_header_check,
    "other-told-too": _told_to_the_other_too,
    "other-not-told": _other_is_not_told,
}

if "CHAOS_PLANT" in os.environ:
    try:
        PLANTS[os.environ["CHAOS_PLANT"]]()
    except Exception as error:
        # Python goes on after a failing sitecustomize; a plant that is not there must not look like a sound hub.
        sys.stderr.write(f"the plant could not be planted: {error!r}\n")
        sys.stderr.flush()
        os._exit(99)
