"""Feeds: readers of the sealed log that pass it on, each in the log's order and from where it was.

A leaf index is given by one sealer and without gaps, so "everything from the next leaf on" leaves nothing out: what an
outbox may not do, a reader of the sealed log may.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, cast, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.domain.delivery import Placed
from hub.domain.incident import IncidentKind
from hub.store import acts
from hub.store.bulk import insert_ignoring
from hub.store.tables import audit_feed, incident

Row = dict[str, Any]
_f = audit_feed.c


@dataclass(frozen=True, slots=True)
class Feed:
    """How far a feed has come. ``last_offset`` is the highest offset known to hold a record of ours, where it goes to Kafka."""

    name: str
    next_leaf: int
    last_offset: int | None
    moved_at: datetime
    failures: int
    last_error: str | None
    next_attempt_at: datetime | None


async def feeds(engine: AsyncEngine) -> list[Feed]:
    """All that ever ran."""
    async with engine.connect() as connection:
        return [
            Feed(**row) for row in (await connection.execute(select(audit_feed).order_by(_f.name))).mappings()
        ]


async def feed(engine: AsyncEngine, name: str, now: datetime) -> Feed:
    """How far it has come; one that is met for the first time begins at the first leaf."""
    async with engine.begin() as connection:
        new = {"name": name, "next_leaf": 0, "moved_at": now, "failures": 0}
        await connection.execute(insert_ignoring(connection, audit_feed).values(new))
        row = (await connection.execute(select(audit_feed).where(_f.name == name))).mappings().one()
        return Feed(**row)


async def leaves(engine: AsyncEngine, first: int, most: int) -> list[Row]:
    """The sealed entries from leaf ``first`` on, at most so many."""
    async with engine.connect() as connection:
        return await acts.leaves(connection, first, first + most)


async def first_since_backup(engine: AsyncEngine) -> int:
    """The number from which entries were given since a backup was put back last (`hub db restored`); 0 if that never was. Lower ones
    that this log does not have are those of the time that was lost.
    """
    first = cast(incident.c.detail["first_entry"].as_string(), BigInteger)
    query = select(func.max(first)).where(incident.c.kind == IncidentKind.BACKUP_PUT_BACK)
    async with engine.connect() as connection:
        return await connection.scalar(query) or 0


async def moved(
    connection: AsyncConnection, before: Feed, next_leaf: int, last_offset: int | None, now: datetime
) -> bool:
    """It has passed on what is before ``next_leaf``; False if another process moved it in the meantime."""
    values = {
        "next_leaf": next_leaf,
        "last_offset": last_offset,
        "moved_at": now,
        "failures": 0,
        "last_error": None,
        "next_attempt_at": None,
    }
    done = await connection.execute(
        update(audit_feed).where(_f.name == before.name, _f.next_leaf == before.next_leaf).values(values)
    )
    return bool(done.rowcount)


async def failed(engine: AsyncEngine, before: Feed, error: str, again_at: datetime) -> None:
    """It could not pass on; ``error`` holds nothing of an entry."""
    async with engine.begin() as connection:
        await connection.execute(
            update(audit_feed)
            .where(_f.name == before.name)
            .values(failures=before.failures + 1, last_error=error, next_attempt_at=again_at)
        )


def last_sent(feed: Feed, topic: str) -> list[Placed]:
    """What is known to lie last in the topic; the audit's has one partition."""
    if feed.last_offset is None:
        return []
    return [Placed(feed.next_leaf - 1, topic, 0, feed.last_offset, event_id="")]
