"""Clocks in the store: which transfers are due, and what ringing them causes, in one transaction."""

from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.domain.clocks import Clocks
from hub.domain.ids import time_ordered_id
from hub.domain.transfer import Transfer
from hub.domain.trust import Directory
from hub.journey.ring import Rung, expire, ring
from hub.store import tables as t
from hub.store.bulk import among, insert_ignoring, insert_rows, update_rows
from hub.store.load import with_facts
from hub.store.queries import NotFoundError
from hub.store.write import due_columns, outbox_row, write_audit, write_taken

_AT_ONCE = 100
DELIVERY_LATE = "delivery-late"


class NotExpiredError(Exception):
    """The transfer may not be closed: its clocks have not climbed to the last level, or it is over."""


async def ring_due(engine: AsyncEngine, clocks: Clocks, directory: Directory, now: datetime) -> list[Rung]:
    """Ring what is due at ``now``, at most a hundred transfers at a time, earliest first. What was rung comes back."""
    async with engine.begin() as connection:
        due = (
            await connection.execute(
                select(t.transfer.c.transfer_id, t.transfer.c.person_id)
                .where(t.transfer.c.due_at <= now)
                .order_by(t.transfer.c.due_at)
                .limit(_AT_ONCE)
            )
        ).all()
        if not due:
            return []
        transfers = await _locked(
            connection, {row.person_id for row in due}, {row.transfer_id for row in due}
        )
        rung = [
            each for transfer in transfers if (each := ring(transfer, clocks, directory, now)) is not None
        ]
        await _write(connection, rung, clocks, now)
        # Something has happened in the meantime: the row is behind, and would be found again for ever.
        ids = {each.taken.transfer.id for each in rung}
        await _set_due(connection, [each for each in transfers if each.id not in ids], clocks)
    return rung


async def watch_deliveries(engine: AsyncEngine, limit: timedelta, now: datetime) -> list[str]:
    """The technical acknowledgement's clock: what a hospital has not been given for ``limit`` is an incident, one for each
    hospital, which the hub closes itself when that is given. The hospitals (ODS) whose incident was opened come back.
    """
    o, i = t.outbox.c, t.incident
    oldest = select(o.receiver, func.min(o.created_at).label("since")).where(o.state == "pending")
    async with engine.begin() as connection:
        rows = await connection.execute(oldest.group_by(o.receiver))
        late = {row.receiver: row.since for row in rows if row.since <= now - limit}
        is_open = i.c.kind == DELIVERY_LATE, i.c.closed_at.is_(None)
        known = {row.subject: row.incident_id for row in await connection.execute(select(i).where(*is_open))}
        opened, audit = [], []
        for receiver in sorted(late.keys() - known.keys()):
            # The same id from every clock that looks, so that one of them opens it.
            incident_id = time_ordered_id(late[receiver], DELIVERY_LATE, receiver)
            detail = {"receiver": receiver, "since": late[receiver].isoformat()}
            row = {"incident_id": incident_id, "kind": DELIVERY_LATE, "subject": receiver, "opened_at": now, "detail": detail}  # fmt: skip
            done = await connection.execute(insert_ignoring(connection, i).values(row))
            if done.rowcount:
                opened.append(receiver)
                said = {"incident": incident_id, "kind": DELIVERY_LATE, **detail}
                audit.append(AuditEntry(Code.INCIDENT_OPENED, now, "clock", Outcome.SERIOUS_FAILURE, detail=said))  # fmt: skip
        for receiver in sorted(known.keys() - late.keys()):
            done = await connection.execute(
                update(i)
                .where(i.c.incident_id == known[receiver], i.c.closed_at.is_(None))
                .values(closed_at=now, closed_because="delivered")
            )
            if done.rowcount:
                said = {"incident": known[receiver], "because": "delivered"}
                audit.append(AuditEntry(Code.INCIDENT_CLOSED, now, "clock", detail=said))
        await write_audit(connection, audit)
    return opened


async def expire_transfer(
    engine: AsyncEngine, transfer_id: str, because: str, clocks: Clocks, directory: Directory, now: datetime
) -> None:
    """Close a transfer that nobody acts on; audited. Raises NotFoundError, NotExpiredError."""
    async with engine.begin() as connection:
        person = await connection.scalar(
            select(t.transfer.c.person_id).where(t.transfer.c.transfer_id == transfer_id)
        )
        if person is None:
            raise NotFoundError(transfer_id)
        [transfer] = await _locked(connection, {person}, {transfer_id})
        rung = expire(transfer, because, directory, now)
        if rung is None:
            raise NotExpiredError(transfer_id)
        await _write(connection, [rung], clocks, now)


async def _locked(connection: AsyncConnection, persons: set[str], ids: set[str]) -> list[Transfer]:
    """The transfers as they are, with their persons locked in key order, as a worker's batch does."""
    p = t.person
    await connection.execute(
        select(p.c.person_id)
        .where(among(p.c.person_id, persons, connection))
        .order_by(p.c.person_id)
        .with_for_update()
    )
    rows = await connection.execute(
        select(t.transfer).where(among(t.transfer.c.transfer_id, ids, connection))
    )
    return await with_facts(connection, rows.all())


async def _write(connection: AsyncConnection, rung: list[Rung], clocks: Clocks, now: datetime) -> None:
    await write_taken(connection, [each.taken for each in rung], clocks)
    outbox = [outbox_row(out, now) for each in rung for out in each.outbox]
    await insert_rows(connection, t.outbox, outbox)
    await write_audit(connection, [entry for each in rung for entry in each.audit])


async def _set_due(connection: AsyncConnection, transfers: list[Transfer], clocks: Clocks) -> None:
    rows = [{"transfer_id": each.id, **due_columns(each, clocks)} for each in transfers]
    await update_rows(connection, t.transfer, ["transfer_id"], rows)
