"""Clocks in the store: which transfers are due, and what ringing them causes, in one transaction."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import field
from datetime import datetime, timedelta
from itertools import starmap
from typing import TypeVar

from sqlalchemy import ColumnElement, and_, not_, or_, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.domain.clocks import Clocks, Hearing
from hub.domain.incident import IncidentKind
from hub.domain.transfer import ENDED, Transfer
from hub.domain.trust import Directory
from hub.domain.value import value
from hub.journey.ring import Rung, expire, ring
from hub.store import tables as t
from hub.store.bulk import among, insert_rows, update_rows
from hub.store.incidents import close_incident, open_incident, open_incidents
from hub.store.load import with_facts
from hub.store.outbox import waiting
from hub.store.queries import NotFoundError
from hub.store.unit_of_work import is_refusal
from hub.store.waiting import waits_since
from hub.store.write import due_columns, outbox_row, write_audit, write_taken

_AT_ONCE = 100

Result = TypeVar("Result")


class NotExpiredError(Exception):
    """The transfer may not be closed: its clocks have not climbed to the last level, or it is over."""


async def is_anything_due(engine: AsyncEngine, now: datetime) -> bool:
    """Whether a clock of any transfer has run out at ``now``."""
    async with engine.connect() as connection:
        due = select(t.transfer.c.transfer_id).where(t.transfer.c.due_at <= now).limit(1)
        return await connection.scalar(due) is not None


def _may_ring(ods: str, until: datetime | None) -> ColumnElement[bool]:
    """Not what a trust has a part in that is not heard up to when it was due."""
    transfer = t.transfer.c
    is_others = and_(transfer.sender != ods, transfer.receiver != ods)
    return is_others if until is None else or_(is_others, transfer.due_at <= until)


@value
class Rang:
    """What was rung, and what could not be: its id, and why."""

    rung: tuple[Rung, ...] = ()
    failed: Mapping[str, Exception] = field(default_factory=dict)


@value
class Recounted:
    """How many transfers are due at another time now, which could not be looked at, and the last one of those that were; None: it was the last."""

    changed: int = 0
    failed: Mapping[str, Exception] = field(default_factory=dict)
    last: str | None = None


async def ring_due(
    engine: AsyncEngine,
    clocks: Clocks,
    directory: Directory,
    now: datetime,
    hearing: Hearing | None = None,
    but: Collection[str] = (),
) -> Rang:
    """Ring what is due at ``now``, at most a hundred transfers at a time, earliest first, in one transaction. ``hearing``: how far the trusts were
    heard; None: all that they sent. ``but`` are transfers that are passed over. One that cannot be rung keeps no other from ringing.
    """
    hearing = hearing or Hearing()
    due = await _due(engine, now, hearing, but)
    done, failed = await _together_or_each(
        due, lambda these: _ring(engine, these, clocks, directory, now, hearing)
    )
    return Rang(tuple(each for rung in done for each in rung), failed)


async def recount(engine: AsyncEngine, clocks: Clocks, after: str = "") -> Recounted:
    """Count anew, by the limits as they are, when the open transfers are due, at most a hundred of those ``after`` one: what is stored was counted
    by the limits of the day of its last news, and with shorter ones would ring late.
    """
    transfer = t.transfer.c
    async with engine.connect() as connection:
        rows = (
            await connection.execute(
                select(transfer.transfer_id, transfer.person_id, transfer.due_at, transfer.due_clock)
                .where(transfer.transfer_id > after, transfer.state.not_in(ENDED))
                .order_by(transfer.transfer_id)
                .limit(_AT_ONCE)
            )
        ).all()
    stored = {row.transfer_id: (row.due_at, row.due_clock) for row in rows}
    changed, failed = await _together_or_each(
        {row.transfer_id: row.person_id for row in rows},
        lambda these: _recount(engine, these, stored, clocks),
    )
    return Recounted(sum(changed), failed, rows[-1].transfer_id if len(rows) == _AT_ONCE else None)


async def _recount(
    engine: AsyncEngine,
    these: Mapping[str, str],
    stored: Mapping[str, tuple[datetime | None, str | None]],
    clocks: Clocks,
) -> int:
    async with engine.begin() as connection:
        transfers = await _locked(connection, set(these.values()), set(these))
        other = [each for each in transfers if tuple(due_columns(each, clocks).values()) != stored[each.id]]
        await _set_due(connection, other, clocks)
    return len(other)


async def _together_or_each(
    transfers: Mapping[str, str], act: Callable[[Mapping[str, str]], Awaitable[Result]]
) -> tuple[list[Result], dict[str, Exception]]:
    """Do something with all of them (id to whose each is), or, where that fails unforeseen, with each alone: what was done, and what failed of which."""
    if not transfers:
        return [], {}
    try:
        return [await act(transfers)], {}
    except Exception as error:
        if _is_unavailable(error):
            raise
    done: list[Result] = []
    failed: dict[str, Exception] = {}
    for transfer_id, person_id in transfers.items():
        try:
            done.append(await act({transfer_id: person_id}))
        except Exception as error:
            if _is_unavailable(error):
                raise
            failed[transfer_id] = error
    return done, failed


def _is_unavailable(error: Exception) -> bool:
    """Whether it is the database that is away or busy, and no fault of what was to be written."""
    if isinstance(error, DBAPIError):
        return not is_refusal(error)
    return isinstance(error, OSError | TimeoutError | SQLAlchemyError)


async def _due(engine: AsyncEngine, now: datetime, hearing: Hearing, but: Collection[str]) -> dict[str, str]:
    """The transfers that are due, and whose each is."""
    async with engine.connect() as connection:
        transfer = t.transfer.c
        rows = await connection.execute(
            select(transfer.transfer_id, transfer.person_id)
            .where(
                transfer.due_at <= now,
                not_(among(transfer.transfer_id, but, connection)),
                *starmap(_may_ring, hearing.until.items()),
            )
            .order_by(transfer.due_at)
            .limit(_AT_ONCE)
        )
        return {row.transfer_id: row.person_id for row in rows}


async def _ring(
    engine: AsyncEngine,
    due: Mapping[str, str],
    clocks: Clocks,
    directory: Directory,
    now: datetime,
    hearing: Hearing,
) -> tuple[Rung, ...]:
    """Ring these, if they are still due once their persons are locked. Whose record somebody else holds is left for the next time."""
    async with engine.begin() as connection:
        transfers = await _locked(connection, set(due.values()), set(due), wait=False)
        rung = [
            each
            for transfer in transfers
            if (each := ring(transfer, clocks, directory, now, hearing.unread)) is not None
        ]
        await write_rung(connection, rung, clocks, now)
        # Something has happened in the meantime: the row is behind, and would be found again for ever.
        ids = {each.taken.transfer.id for each in rung}
        await _set_due(connection, [each for each in transfers if each.id not in ids], clocks)
    return tuple(rung)


_THE_LOG = "the audit log"


async def watch_deliveries(engine: AsyncEngine, limit: timedelta, now: datetime) -> list[str]:
    """The technical acknowledgement's clock: what a hospital has not been given for ``limit`` is an incident, one for each
    hospital, which the hub closes itself when that is given. The hospitals (ODS) whose incident was opened come back.
    """
    async with engine.begin() as connection:
        late = {
            each.receiver: each.oldest for each in await waiting(connection) if each.oldest <= now - limit
        }
        known = await open_incidents(connection, IncidentKind.DELIVERY_LATE)
        opened = []
        for receiver, since in sorted(late.items()):
            detail = {"receiver": receiver, "since": since.isoformat()}
            if await open_incident(
                connection, IncidentKind.DELIVERY_LATE, receiver, detail, "clock", now, since=since
            ):
                opened.append(receiver)
        for receiver in sorted(known.keys() - late.keys()):
            await close_incident(connection, known[receiver], "delivered", "clock", now)
    return opened


async def watch_sealing(engine: AsyncEngine, limit: timedelta, now: datetime) -> datetime | None:
    """Audit entries that wait for ``limit`` to be sealed are an incident, which closes itself when they are: whoever could
    stop the sealer could change them meanwhile. Since when they wait, if that was not known.
    """
    async with engine.begin() as connection:
        oldest = await waits_since(connection)
        known = (await open_incidents(connection, IncidentKind.SEALING_LATE)).get(_THE_LOG)
        if oldest is None or oldest > now - limit:
            if known is not None:
                await close_incident(connection, known, "sealed", "clock", now)
            return None
        detail = {"since": oldest.isoformat()}
        opened = await open_incident(
            connection, IncidentKind.SEALING_LATE, _THE_LOG, detail, "clock", now, since=oldest
        )
    return oldest if opened else None


async def expire_transfer(
    engine: AsyncEngine,
    transfer_id: str,
    because: str,
    clocks: Clocks,
    directory: Directory,
    now: datetime,
    by: str,
) -> None:
    """Close a transfer that nobody acts on; audited, with ``by``, the operator. Raises NotFoundError, NotExpiredError."""
    async with engine.begin() as connection:
        person = await connection.scalar(
            select(t.transfer.c.person_id).where(t.transfer.c.transfer_id == transfer_id)
        )
        if person is None:
            raise NotFoundError(transfer_id)
        [transfer] = await _locked(connection, {person}, {transfer_id})
        rung = expire(transfer, because, clocks, directory, now, by)
        if rung is None:
            raise NotExpiredError(transfer_id)
        await write_rung(connection, [rung], clocks, now)


async def _locked(
    connection: AsyncConnection, persons: set[str], ids: set[str], *, wait: bool = True
) -> list[Transfer]:
    """The transfers as they are, with their persons locked in key order, as a worker's batch does. Not ``wait``: but for those of persons whom
    somebody else has locked.
    """
    p, transfer = t.person, t.transfer
    locked = await connection.scalars(
        select(p.c.person_id)
        .where(among(p.c.person_id, persons, connection))
        .order_by(p.c.person_id)
        .with_for_update(skip_locked=not wait)
    )
    theirs = among(transfer.c.person_id, locked.all(), connection)
    rows = await connection.execute(
        select(transfer).where(among(transfer.c.transfer_id, ids, connection), theirs)
    )
    return await with_facts(connection, rows.all())


async def write_rung(connection: AsyncConnection, rung: list[Rung], clocks: Clocks, now: datetime) -> None:
    """Write the hub's own facts, what is told of them, and their audit."""
    await write_taken(connection, [each.taken for each in rung], clocks)
    outbox = [outbox_row(out, now) for each in rung for out in each.outbox]
    await insert_rows(connection, t.outbox, outbox)
    await write_audit(connection, [entry for each in rung for entry in each.audit])


async def _set_due(connection: AsyncConnection, transfers: list[Transfer], clocks: Clocks) -> None:
    rows = [{"transfer_id": each.id, **due_columns(each, clocks)} for each in transfers]
    await update_rows(connection, t.transfer, ["transfer_id"], rows)
