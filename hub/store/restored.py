"""After a backup was put back: the world has seen numbers that this database is about to give again."""

from datetime import UTC, datetime

from sqlalchemy import Column, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.domain.incident import IncidentKind
from hub.store.incidents import open_incident
from hub.store.tables import audit_act, audit_batch, outbox, subscription, subscription_event
from hub.store.waiting import BATCH_MAX

_s, _e = subscription.c, subscription_event.c

_A_SECOND = 1_000
"""More numbers than a hub gives in a second, taken over days."""
_SINCE = datetime(2020, 1, 1, tzinfo=UTC)


def ahead(now: datetime) -> int:
    """How far numbers go on: the same backup that is put back twice gives other numbers the second time, whatever it gave after the first."""
    return int((now - _SINCE).total_seconds()) * _A_SECOND


async def _last_batch(connection: AsyncConnection) -> int:
    """Of the audit, sealed or waiting; 0 if there is none."""
    waiting = await connection.scalar(select(func.coalesce(func.max(audit_batch.c.batch), 0)))
    sealed = await connection.scalar(select(func.coalesce(func.max(audit_act.c.first_entry), 0)))
    return max(waiting or 0, (sealed or 0) // BATCH_MAX)


async def _go_on_at(connection: AsyncConnection, column: Column[int], number: int) -> None:
    """The next number that is given in this column is one more."""
    await connection.execute(
        text("SELECT setval(pg_get_serial_sequence(:table, :column), :number)"),
        {"table": column.table.name, "column": column.name, "number": number},
    )


async def give_new_numbers(engine: AsyncEngine, because: str, now: datetime) -> int:
    """Let what is written from now on have numbers that nobody has seen, and open an incident; the first number of the outbox.

    A late acknowledgement by `$inbox/$ack` then meets no other patient's message, a subscriber sees by the gap that it missed
    something, and no AuditEvent has the id of another act's. PostgreSQL only. To be called before any service works on the database.
    """
    step = ahead(now)
    async with engine.begin() as connection:
        highest = await connection.scalar(select(func.coalesce(func.max(outbox.c.seq), 0))) or 0
        await _go_on_at(connection, outbox.c.seq, highest + step)
        # An audit repository has the AuditEvents of the lost time, and would take another act's under the same id for one that it has.
        batch = await _last_batch(connection) + step
        await _go_on_at(connection, audit_batch.c.batch, batch)
        # What has a number and was not told yet gets a new one from who tells it.
        untold = select(_e.seq).join(subscription, _e.subscription_id == _s.subscription_id)
        untold = untold.where(_e.number > _s.told_number)
        await connection.execute(update(subscription_event).where(_e.seq.in_(untold)).values(number=None))
        number = _s.last_number + step
        await connection.execute(update(subscription).values(last_number=number, told_number=number))
        detail = {
            "because": because,
            "first": highest + step + 1,
            "first_entry": (batch + 1) * BATCH_MAX,
        }
        await open_incident(
            connection, IncidentKind.BACKUP_PUT_BACK, now.isoformat(timespec="seconds"), detail, "cli", now
        )
    return int(highest) + step + 1
