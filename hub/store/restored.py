"""After a backup was put back: the world has seen numbers that this database is about to give again."""

from datetime import datetime

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.incident import IncidentKind
from hub.store.incidents import open_incident
from hub.store.tables import outbox, subscription

AHEAD = 1_000_000_000
"""More numbers than a hub gives between two backups."""


async def give_new_numbers(engine: AsyncEngine, because: str, now: datetime) -> int:
    """Let what is written from now on have numbers that nobody has seen, and open an incident; the first number of the outbox.

    A late acknowledgement by `$inbox/$ack` then meets no other patient's message, and a subscriber sees by the gap that it missed
    something. PostgreSQL only. To be called before any service works on the database.
    """
    async with engine.begin() as connection:
        highest = await connection.scalar(select(func.coalesce(func.max(outbox.c.seq), 0))) or 0
        await connection.execute(
            text("SELECT setval(pg_get_serial_sequence('outbox', 'seq'), :number)"),
            {"number": highest + AHEAD},
        )
        number = subscription.c.last_number + AHEAD
        await connection.execute(update(subscription).values(last_number=number, told_number=number))
        detail = {"because": because, "first": highest + AHEAD + 1}
        await open_incident(
            connection, IncidentKind.BACKUP_PUT_BACK, now.isoformat(timespec="seconds"), detail, "cli", now
        )
    return int(highest) + AHEAD + 1
