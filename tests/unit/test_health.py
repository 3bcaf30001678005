"""What a health check says of hospitals for whom something waits."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, update

from hub.services.health import untried
from hub.store.tables import outbox as table
from tests.unit.test_beat import directory, engine  # noqa: F401 - a fixture

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def waits(engine, *rows):  # noqa: F811
    """``(attempts, created, next attempt)``, the two times in minutes before noon."""
    values = [
        {
            "receiver": "RH8",
            "topic": "hub.rh8.inbox",
            "key": "k",
            "headers": {},
            "payload": b"{}",
            "event_id": f"e{number}",
            "attempts": attempts,
            "created_at": NOON - created * MINUTE,
            "next_attempt_at": None if again is None else NOON - again * MINUTE,
        }
        for number, (attempts, created, again) in enumerate(rows)
    ]
    async with engine.begin() as connection:
        await connection.execute(insert(table), values)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([(0, 0.5, None)], []),
        ([(0, 2, None)], ["RH8"]),
        # Tried before the loop ended, and due for hours: after an outage the first row always has attempts.
        ([(9, 300, 299), (0, 298, None)], ["RH8"]),
        # The hospital is away, and the hub waits for the next attempt: what stands behind was never tried.
        ([(9, 300, 0.5), (0, 298, None)], []),
        ([(9, 300, -1), (0, 298, None)], []),
    ],
)
async def test_who_is_due_and_not_tried_is_named(engine, rows, found):  # noqa: F811
    await waits(engine, *rows)

    assert await untried(engine, directory(), MINUTE, NOON) == found


@pytest.mark.parametrize(("sent", "found"), [(0.5, []), (2, ["RH8"]), (None, ["RH8"])])
async def test_who_is_given_what_waited_is_served(engine, sent, found):  # noqa: F811
    """After an outage of five hours the queue is emptied in order: what stands behind was never tried, and its turn comes."""
    await waits(engine, (9, 300, 299), (0, 298, None))
    if sent is not None:
        done = update(table).where(table.c.event_id == "e0")
        async with engine.begin() as connection:
            await connection.execute(done.values(state="sent", sent_at=NOON - sent * MINUTE))

    assert await untried(engine, directory(), MINUTE, NOON) == found
