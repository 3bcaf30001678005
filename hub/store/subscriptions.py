"""Subscriptions: who wants to be told when a transfer changes, and what each was not told yet.

`hub.store.subscribed` writes down what each must be told, without a number; the numbers, which may have no gap, are given here, by the
one that tells.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.ids import OdsCode
from hub.domain.incident import IncidentKind
from hub.store.bulk import insert_ignoring, update_rows
from hub.store.incidents import close_incident, open_incident, open_incidents
from hub.store.tables import client, subscription_event, transfer
from hub.store.tables import subscription as table
from hub.store.write import write_audit

_s, _e = table.c, subscription_event.c


@dataclass(frozen=True, slots=True)
class Subscription:
    """One client's wish. ``resource`` is the FHIR Subscription as it was written; ``wanted`` narrows by states, senders, receivers.

    ``last_number`` is the highest event number given, ``told_number`` the highest that its receiver took.
    """

    id: str
    trust: OdsCode
    client_id: str
    resource: Mapping[str, Any]
    wanted: Mapping[str, Sequence[str] | None]
    status: str
    created_at: datetime
    ends_at: datetime | None = None
    error: str | None = None
    met: bool = False
    last_number: int = 0
    told_number: int = 0
    failures: int = 0
    next_attempt_at: datetime | None = None
    heard_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one transfer, under its number."""

    number: int
    transfer_id: str
    version: int
    at: datetime


async def add(engine: AsyncEngine, wish: Subscription) -> Subscription:
    """A new subscription; audited. Where one of this id is there, it stays as it is and comes back."""
    async with engine.begin() as connection:
        row = {
            "subscription_id": wish.id,
            "trust": wish.trust,
            "client_id": wish.client_id,
            "resource": dict(wish.resource),
            "wanted": dict(wish.wanted),
            "status": wish.status,
            "created_at": wish.created_at,
            "ends_at": wish.ends_at,
            "met": False,
            "last_number": 0,
            "told_number": 0,
            "failures": 0,
        }
        if not (await connection.execute(insert_ignoring(connection, table).values(row))).rowcount:
            there = await connection.execute(select(table).where(_s.subscription_id == wish.id))
            return _subscription(there.one())
        await _changed(connection, wish, "subscription-added", wish.created_at)
        return wish


async def change(engine: AsyncEngine, wish: Subscription, now: datetime) -> None:
    """Put a subscription in the place of what it was: ``requested`` begins with a handshake again, ``off`` ends it; audited.
    Its events and their numbers stay.
    """
    async with engine.begin() as connection:
        await connection.execute(
            update(table)
            .where(_s.subscription_id == wish.id)
            .values(
                client_id=wish.client_id,
                resource=dict(wish.resource),
                wanted=dict(wish.wanted),
                status=wish.status,
                ends_at=wish.ends_at,
                error=None,
                met=False,
                failures=0,
                next_attempt_at=None,
                # What goes wrong from now on began now: an incident of before is not its own.
                heard_at=now,
            )
        )
        await _changed(connection, wish, f"subscription-{wish.status}", now)
        if wish.status == "off":
            await _well_again(connection, wish.id, now, "ended")


async def end(engine: AsyncEngine, wish: Subscription, now: datetime) -> None:
    """The time until which it was asked for is over: it is off, unless it was put anew in the meantime; audited."""
    async with engine.begin() as connection:
        if await _still(connection, wish) is None:
            return
        await connection.execute(
            update(table)
            .where(_s.subscription_id == wish.id)
            .values(status="off", error=None, next_attempt_at=None)
        )
        await _changed(connection, wish, "subscription-off", now, "notifier", why="ended")
        await _well_again(connection, wish.id, now, "ended")


async def find(engine: AsyncEngine, trust: str, subscription_id: str) -> Subscription | None:
    """One of this trust's."""
    query = select(table).where(_s.subscription_id == subscription_id, _s.trust == trust)
    async with engine.connect() as connection:
        row = (await connection.execute(query)).one_or_none()
    return _subscription(row) if row else None


async def all_of(engine: AsyncEngine, trust: str) -> list[Subscription]:
    """All of this trust's, the first first; those that ended too."""
    query = select(table).where(_s.trust == trust).order_by(_s.created_at, _s.subscription_id)
    async with engine.connect() as connection:
        return [_subscription(row) for row in await connection.execute(query)]


REVOKED = "The client that asked for it was revoked. Another client of the trust can put it, with status requested, in its own name."


async def end_of_client(connection: AsyncConnection, client_id: str, now: datetime) -> int:
    """Switch off what a client asked for that is shut out, with the reason; audited. Events and numbers stay, as for any that ends.
    Returns how many there were.
    """
    rows = await connection.execute(
        update(table)
        .where(_s.client_id == client_id, _s.status != "off")
        .values(status="off", error=REVOKED, next_attempt_at=None)
        .returning(*table.c)
    )
    wishes = [_subscription(row) for row in rows.all()]
    for wish in wishes:
        await _changed(connection, wish, "subscription-off", now, "cli", why="client-revoked")
        await _well_again(connection, wish.id, now, "ended")
    return len(wishes)


async def may_be_told(engine: AsyncEngine, wish: Subscription) -> bool:
    """Whether it is on, its client is in, and its address and all else that was asked for is still this: asked before each notification,
    because that can have changed since the last.
    """
    query = select(table).where(_s.subscription_id == wish.id, _s.status != "off", _IS_IN)
    async with engine.connect() as connection:
        row = (await connection.execute(query)).one_or_none()
    return row is not None and _is_still(wish, _subscription(row))


def _is_still(wish: Subscription, now: Subscription) -> bool:
    """Whether nobody has put it anew since: then it is to be met first, and perhaps elsewhere."""
    return (now.resource, now.client_id) == (wish.resource, wish.client_id) and (now.met or not wish.met)


async def _still(connection: AsyncConnection, wish: Subscription) -> Subscription | None:
    """It as it stands, held until the transaction ends; None if it is off, or was put anew while it was being told."""
    query = select(table).where(_s.subscription_id == wish.id, _s.status != "off").with_for_update()
    row = (await connection.execute(query)).one_or_none()
    now = _subscription(row) if row else None
    return now if now is not None and _is_still(wish, now) else None


_IS_IN = ~exists().where(client.c.client_id == _s.client_id, client.c.revoked_at.is_not(None))
"""Not a revoked client's: one made in the last second of its client's token can be on."""


async def to_tell(engine: AsyncEngine, now: datetime) -> list[tuple[Subscription, bool]]:
    """Those that are not off and need not be left alone at ``now``, each with whether something waits for it."""
    unnumbered = exists().where(_e.subscription_id == _s.subscription_id, _e.number.is_(None))
    waits = or_(_s.told_number < _s.last_number, unnumbered).label("waits")
    query = select(table, waits).where(
        _s.status != "off", _IS_IN, or_(_s.next_attempt_at.is_(None), _s.next_attempt_at <= now)
    )
    async with engine.connect() as connection:
        return [(_subscription(row), bool(row.waits)) for row in await connection.execute(query)]


async def number_events(engine: AsyncEngine, subscription_id: str) -> int:
    """Give the events that have none their numbers; the highest number there is then."""
    async with engine.begin() as connection:
        last = await connection.scalar(
            select(_s.last_number).where(_s.subscription_id == subscription_id).with_for_update()
        )
        found = await connection.execute(
            select(_e.seq)
            .where(_e.subscription_id == subscription_id, _e.number.is_(None))
            .order_by(_e.seq)
            .limit(1000)
        )
        rows = [{"seq": seq, "number": number} for number, seq in enumerate(found.scalars(), (last or 0) + 1)]
        if not rows:
            return last or 0
        await update_rows(connection, subscription_event, ["seq"], rows)
        await connection.execute(
            update(table).where(_s.subscription_id == subscription_id).values(last_number=rows[-1]["number"])
        )
        return int(rows[-1]["number"])


async def events(
    engine: AsyncEngine, subscription_id: str, since: int, until: int, limit: int
) -> list[Event]:
    """The events with these numbers, both included, at most ``limit``."""
    query = (
        select(_e.number, _e.transfer_id, _e.version, _e.at)
        .where(_e.subscription_id == subscription_id, _e.number >= since, _e.number <= until)
        .order_by(_e.number)
        .limit(limit)
    )
    async with engine.connect() as connection:
        return [Event(*row) for row in await connection.execute(query)]


async def oldest_number(engine: AsyncEngine, subscription_id: str) -> int | None:
    """The lowest number that is still kept; None if none is."""
    query = select(_e.number).where(_e.subscription_id == subscription_id, _e.number.is_not(None))
    async with engine.connect() as connection:
        found: int | None = await connection.scalar(query.order_by(_e.number).limit(1))
    return found


async def took(
    engine: AsyncEngine, wish: Subscription, now: datetime, told: Iterable[Event] = (), *, content: str = ""
) -> None:
    """Its receiver answered well, and has these events now; what was told is audited. Of one that was put anew in the meantime
    the audit is all: who it is for now is told these events too.
    """
    told = list(told)
    highest = told[-1].number if told else 0
    async with engine.begin() as connection:
        stands = await _still(connection, wish)
        if stands is not None:
            await connection.execute(
                update(table)
                .where(_s.subscription_id == wish.id)
                .values(
                    status="active",
                    met=True,
                    error=None,
                    failures=0,
                    next_attempt_at=None,
                    heard_at=now,
                    # Another process may have told more in the meantime.
                    told_number=max(stands.told_number, highest),
                )
            )
        columns = (transfer.c.transfer_id, transfer.c.person_id, transfer.c.sender, transfer.c.receiver)
        about = select(*columns).where(transfer.c.transfer_id.in_({each.transfer_id for each in told}))
        transfers = {row.transfer_id: row for row in await connection.execute(about)}
        entries = [_told(wish, each, transfers.get(each.transfer_id), content, now) for each in told]
        await write_audit(connection, entries)
        # One that is put anew begins with no failures, and its incident is open until it takes something.
        if stands is not None and (stands.failures or not stands.met):
            await _well_again(connection, wish.id, now, "delivered")


def _told(wish: Subscription, event: Event, about: Any, content: str, now: datetime) -> AuditEntry:
    """A Task holds what the transfer's other hospital said of the patient, so sending it is a disclosure by that hospital. An id says
    no more than that something changed.
    """
    disclosed = content == "full-resource"
    other = None if about is None else about.receiver if wish.trust == about.sender else about.sender
    return AuditEntry(
        Code.DISCLOSURE_SENT if disclosed else Code.DELIVERY_ACKNOWLEDGED,
        now,
        "notifier",
        trust=other if disclosed else None,
        counterpart=wish.trust,
        person_id=about.person_id if about else None,
        transfer_id=event.transfer_id,
        detail={"subscription": wish.id, "number": event.number, "content": content},
    )


async def failed(
    engine: AsyncEngine,
    wish: Subscription,
    error: str,
    now: datetime,
    wait: Callable[[int], timedelta],
    *,
    bad_after: int,
) -> None:
    """Its receiver did not take it: it is left alone for as long as ``wait`` says for so many failures in a row. After ``bad_after``
    it is in error and an incident opens. Nothing of that counts for one that was put anew in the meantime.
    """
    async with engine.begin() as connection:
        stands = await _still(connection, wish)
        if stands is None:
            return
        failures = stands.failures + 1
        is_bad = failures >= bad_after
        await connection.execute(
            update(table)
            .where(_s.subscription_id == wish.id)
            .values(
                failures=failures,
                error=error,
                next_attempt_at=now + wait(failures),
                **({"status": "error"} if is_bad else {}),
            )
        )
        if is_bad:
            detail = {"receiver": wish.trust, "error": error}
            since = stands.heard_at or stands.created_at
            await open_incident(
                connection, IncidentKind.SUBSCRIPTION_FAILING, wish.id, detail, "notifier", now, since=since
            )


async def _well_again(connection: AsyncConnection, subscription_id: str, now: datetime, why: str) -> None:
    found = (await open_incidents(connection, IncidentKind.SUBSCRIPTION_FAILING)).get(subscription_id)
    if found is not None:
        await close_incident(connection, found, why, "notifier", now)


async def _changed(
    connection: AsyncConnection,
    wish: Subscription,
    what: str,
    now: datetime,
    system: str = "rest",
    **more: str,
) -> None:
    detail = {"change": what, "subscription": wish.id, **more}
    entry = AuditEntry(
        Code.CONFIG_CHANGED, now, system, trust=wish.trust, client_id=wish.client_id, detail=detail
    )
    await write_audit(connection, [entry])


def _subscription(row: Any) -> Subscription:
    return Subscription(
        row.subscription_id,
        OdsCode(row.trust),
        row.client_id,
        row.resource,
        row.wanted,
        row.status,
        row.created_at,
        row.ends_at,
        row.error,
        row.met,
        row.last_number,
        row.told_number,
        row.failures,
        row.next_attempt_at,
        row.heard_at,
    )
