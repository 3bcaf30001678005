"""The outbox: what waits for whom, what was sent and where it lies, and who dispatches.

Every function takes an engine (it makes its own transaction) or a connection (the caller's transaction).
They raise what SQLAlchemy and the driver raise; nothing is half written.
"""

import hashlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Row,
    Select,
    String,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.domain.delivery import Outgoing, Placed
from hub.domain.incident import IncidentKind
from hub.fhir.headers import SOURCE_ODS
from hub.store.bulk import insert_rows, numbered, update_rows
from hub.store.incidents import open_incident
from hub.store.tables import delivery_attempt, lease, outbox
from hub.store.write import write_audit

Store = AsyncEngine | AsyncConnection

SYSTEM = "dispatcher"

# Written out and not bound: with a bound value neither database can use the partial index on pending rows.
_PENDING = outbox.c.state == literal_column("'pending'")
_NOT_SENT = outbox.c.sent_at.is_(None)
"""The same as pending, for rows that are asked for by number: PostgreSQL must go by the number. By the index of what is
pending it would walk over all that waits, after an outage a hundred thousand rows for every batch.
"""
_WINDOW = 1000
"""Rows looked at in one go behind rows that are held back; narrow rows, so a thousand is cheap."""
FORGOTTEN = -2
"""The partition of a row that was sent to a topic which is another one now. Real ones are 0 and more; a door without any says -1."""
_AT_ONCE = 5_000
_IN_MAX = 500
"""Values in one IN list; databases limit parameters (SQLite 32,766, asyncpg 32,767) and plan long lists badly."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for one receiver, for `hub outbox`. ``last_error`` is that of the oldest row that failed."""

    receiver: str
    rows: int
    oldest: datetime
    attempts: int
    last_error: str | None
    next_attempt_at: datetime | None


@asynccontextmanager
async def _one_statement(store: Store) -> AsyncIterator[AsyncConnection]:
    """A connection for reads, or for one statement that writes. From an engine on PostgreSQL: autocommit, one
    round trip instead of three, and no lock that a process could freeze upon.
    """
    if isinstance(store, AsyncConnection):
        yield store
    elif store.dialect.name == "sqlite":
        async with store.begin() as connection:
            yield connection
    else:
        async with store.connect() as plain:
            yield await plain.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def _writing(store: Store) -> AsyncIterator[AsyncConnection]:
    """A transaction. From an engine on PostgreSQL it ends when its process stands still for five seconds:
    a frozen dispatcher would otherwise keep its rows locked, and nobody could take them over.
    """
    if isinstance(store, AsyncConnection):
        yield store
    else:
        async with store.begin() as connection:
            if connection.dialect.name != "sqlite":
                await connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 5000")
            yield connection


def _chunks(values: Sequence[int]) -> Iterable[Sequence[int]]:
    return (values[at : at + _IN_MAX] for at in range(0, len(values), _IN_MAX))


async def pending(
    store: Store, receiver: str, limit: int, now: datetime, *, without_topics: Iterable[str] = ()
) -> list[Outgoing]:
    """Up to ``limit`` rows for ``receiver`` that may be sent now, in sequence.

    A row whose ``next_attempt_at`` is ahead is held back, and so is every later row of the same topic and key:
    order per key holds. ``without_topics`` leaves out topics that cannot be written at the moment.

    Read by state from the lowest number, never "above the last one seen": a lower number can become
    visible later. The rows that are held back are walked over, which costs as much as there are of them.
    """
    skipped = sorted(set(without_topics))
    wanted = and_(
        outbox.c.receiver == receiver, _PENDING, *((outbox.c.topic.not_in(skipped),) if skipped else ())
    )
    narrow = (
        select(outbox.c.seq, outbox.c.topic, outbox.c.key, outbox.c.next_attempt_at)
        .where(wanted)
        .order_by(outbox.c.seq)
    )
    seqs: list[int] = []
    held: set[tuple[str, str]] = set()
    async with _one_statement(store) as connection:
        # The usual case, nothing held back: as many narrow rows as are wanted, once.
        window = limit
        above = 0
        while len(seqs) < limit:
            seen = (await connection.execute(narrow.where(outbox.c.seq > above).limit(window))).all()
            for seq, topic, key, next_attempt_at in seen:
                if next_attempt_at is not None and next_attempt_at > now:
                    held.add((topic, key))
                elif (topic, key) not in held and len(seqs) < limit:
                    seqs.append(seq)
            if len(seen) < window:
                break
            above = seen[-1].seq
            window = _WINDOW
        if not seqs:
            return []
        rows: list[Row[Any]] = []
        for some in _chunks(seqs):
            rows.extend(
                (
                    await connection.execute(
                        _whole().where(numbered(outbox.c.seq, some, connection), _NOT_SENT)
                    )
                ).all()
            )
    return [Outgoing(*tuple(row)) for row in sorted(rows, key=lambda row: row.seq)]


def _whole() -> Select[Any]:
    c = outbox.c
    return select(c.seq, c.receiver, c.topic, c.key, c.headers, c.payload, c.event_id, c.attempts)


def _first_of_each() -> Select[Any]:
    """The first ``most`` rows of each of ``receivers``, due or not. PostgreSQL only."""
    receivers = (
        func.unnest(bindparam("receivers", type_=ARRAY(String)))
        .table_valued("receiver", name="r")
        .render_derived()
    )
    first = (
        _whole()
        .add_columns(outbox.c.next_attempt_at)
        .where(outbox.c.receiver == receivers.c.receiver, _PENDING)
        .order_by(outbox.c.seq)
        .limit(bindparam("most", type_=BigInteger))
        .lateral("first")
    )
    return select(first).select_from(receivers.join(first, true()))


_FIRST_OF_EACH = _first_of_each()


async def pending_of_each(
    store: Store, receivers: Sequence[str], limit: int, now: datetime
) -> list[list[Outgoing]]:
    """`pending` for several receivers, in the order given; one query as long as nothing is held back."""
    async with _one_statement(store) as connection:
        if connection.dialect.name == "sqlite":
            return [await pending(connection, each, limit, now) for each in receivers]
        found: dict[str, list[Row[Any]]] = {each: [] for each in receivers}
        asked = {"receivers": list(found), "most": limit}
        for row in await connection.execute(_FIRST_OF_EACH, asked):
            found[row.receiver].append(row)
        return [
            await pending(connection, receiver, limit, now)
            if any(row.next_attempt_at is not None and row.next_attempt_at > now for row in found[receiver])
            else [Outgoing(*tuple(row)[:-1]) for row in found[receiver]]
            for receiver in receivers
        ]


def _receivers_with_pending() -> Select[Any]:
    first = select(func.min(outbox.c.receiver).label("receiver")).where(_PENDING).cte("found", recursive=True)
    after = (
        select(func.min(outbox.c.receiver))
        .where(_PENDING, outbox.c.receiver > first.c.receiver)
        .scalar_subquery()
    )
    found = first.union_all(select(after).where(first.c.receiver.is_not(None)))
    return select(found.c.receiver).where(found.c.receiver.is_not(None))


_RECEIVERS_WITH_PENDING = _receivers_with_pending()
"""Put together once: it is asked twenty times a second."""


async def receivers_with_pending(store: Store) -> list[str]:
    """Who has rows that wait, due or not. One index probe per receiver, however long the queue is."""
    async with _one_statement(store) as connection:
        return list((await connection.execute(_RECEIVERS_WITH_PENDING)).scalars())


async def topics_with_pending(store: Store, receiver: str) -> list[str]:
    """The topics that rows waiting for ``receiver`` go to: what has to be read back. Reads the whole queue."""
    async with _one_statement(store) as connection:
        topics = await connection.execute(
            select(outbox.c.topic).distinct().where(outbox.c.receiver == receiver, _PENDING)
        )
        return sorted(topics.scalars())


async def last_sent(store: Store, topic: str) -> list[Placed]:
    """The row that is known to lie last in each partition. Empty if nothing was ever sent there.

    Steps from partition to partition by the index, so it does not grow with the number of rows sent.
    """
    ours = and_(outbox.c.topic == topic, outbox.c.sent_partition >= 0)
    first = select(func.min(outbox.c.sent_partition).label("part")).where(ours).cte("parts", recursive=True)
    after = (
        select(func.min(outbox.c.sent_partition))
        .where(ours, outbox.c.sent_partition > first.c.part)
        .scalar_subquery()
    )
    parts = first.union_all(select(after).where(first.c.part.is_not(None)))
    highest = (
        select(func.max(outbox.c.sent_offset))
        .where(outbox.c.topic == topic, outbox.c.sent_partition == parts.c.part)
        .scalar_subquery()
    )
    c = outbox.c
    at = bindparam("part", type_=Integer), bindparam("offset", type_=BigInteger)
    row_at = (
        select(c.seq, c.topic, c.sent_partition, c.sent_offset, c.event_id)
        .where(c.topic == topic, c.sent_partition == at[0], c.sent_offset == at[1])
        .order_by(c.seq.desc())
        .limit(1)
    )
    async with _one_statement(store) as connection:
        tops = select(parts.c.part, highest.label("offset")).where(parts.c.part.is_not(None))
        return [
            Placed(*tuple((await connection.execute(row_at, dict(top))).one()))
            for top in (await connection.execute(tops)).mappings().all()
        ]


async def forget_places(store: AsyncEngine, receiver: str, gone: Iterable[Placed], now: datetime) -> None:
    """What was sent to these partitions does not lie there any more, as the last of it shows: an incident each. Where the rows lay is
    forgotten, because a topic that was made anew gives its offsets again. Whether the receiver had read them, only it can say.

    Many rows are forgotten in several transactions, the last row in the last: broken off, it is begun again.
    """
    for last in gone:
        detail = {
            "receiver": receiver,
            "topic": last.topic,
            "partition": last.partition,
            "offset": last.offset,
            "last_seq": last.seq,
        }
        subject = f"{last.topic}/{last.partition} to {last.seq}"
        async with _writing(store) as connection:
            await open_incident(connection, IncidentKind.SENT_RECORDS_GONE, subject, detail, SYSTEM, now)
        while await _forget_some(store, last):
            pass


async def _forget_some(store: AsyncEngine, last: Placed) -> bool:
    """Whether there were any; those with the lowest offsets first."""
    c = outbox.c
    here = and_(c.topic == last.topic, c.sent_partition == last.partition)
    async with _writing(store) as connection:
        some = select(c.sent_offset).where(here).order_by(c.sent_offset).limit(_AT_ONCE)
        highest = await connection.scalar(select(func.max(some.subquery().c.sent_offset)))
        if highest is None:
            return False
        forgotten = {"sent_partition": FORGOTTEN, "sent_offset": None}
        await connection.execute(update(outbox).where(here, c.sent_offset <= highest).values(forgotten))
        return True


async def strangers(store: Store, found: Iterable[Placed]) -> list[Placed]:
    """Those of the records found in a topic that are no rows of ours, or that wait here under their number and say something else."""
    found = sorted(found, key=lambda each: each.seq)
    seqs = {each.seq for each in found}
    known: dict[int, str] = {}
    async with _one_statement(store) as connection:
        for some in _chunks(sorted(seqs)):
            query = select(outbox.c.seq, outbox.c.event_id).where(numbered(outbox.c.seq, some, connection))
            known |= {row.seq: row.event_id for row in await connection.execute(query)}
        waiting = await _held_by(connection, seqs)
    return [
        each
        for each in found
        if known.get(each.seq) != each.event_id
        or (each.seq in waiting and waiting[each.seq][1] != each.sha256)
    ]


async def meet_strangers(store: Store, receiver: str, strange: Iterable[Placed], now: datetime) -> None:
    """Open an incident for each topic of the receiver that holds records which this database does not know."""
    seqs: dict[str, list[int]] = {}
    for each in strange:
        seqs.setdefault(each.topic, []).append(each.seq)
    async with _writing(store) as connection:
        for topic, some in sorted(seqs.items()):
            detail = {"receiver": receiver, "topic": topic, "records": len(some)}
            detail |= {"first_seq": min(some), "last_seq": max(some)}
            await open_incident(connection, IncidentKind.TOPIC_AHEAD, topic, detail, SYSTEM, now)


async def mark_sent(store: Store, placed: Iterable[Placed], at: datetime, *, found: bool = False) -> int:
    """Write down that rows are sent and where they lie; returns how many were pending until now.

    ``found``: they were not sent now but found in the topic by reading back. In the same transaction one
    delivery attempt per topic and one audit entry per row. A row that is not pending any more, or is another
    row (its topic, its event or what it holds differ: a number from another database), is left alone, so marking twice says
    nothing twice. After a backup was put back the same event can wait under the same number and say something else.
    """
    placed = list(placed)
    async with _writing(store) as connection:
        if found:
            held = await _held_by(connection, {each.seq for each in placed})
            placed = [each for each in placed if held.get(each.seq) == (each.event_id, each.sha256)]
        place = {each.seq: each for each in placed}
        updated = await update_rows(
            connection,
            outbox,
            ["seq", "topic", "event_id"],
            [
                {
                    "seq": each.seq,
                    "topic": each.topic,
                    "event_id": each.event_id,
                    "state": "sent",
                    "sent_at": at,
                    "sent_partition": each.partition,
                    "sent_offset": each.offset,
                    "next_attempt_at": None,
                    "last_error": None,
                }
                for _, each in sorted(place.items())
            ],
            where=_NOT_SENT,
            returning=(*_TOLD, outbox.c.topic, outbox.c.attempts),
        )
        if not updated:
            return 0
        rows = sorted(updated, key=lambda row: row.seq)
        await insert_rows(
            connection, delivery_attempt, _attempts(rows, at, "found-sent" if found else "sent", None)
        )
        entries = [_told(row, place[row.seq], at, found=found) for row in rows]
        await write_audit(connection, entries)
        return len(rows)


async def _held_by(connection: AsyncConnection, seqs: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Event id, and SHA-256 of what they hold, of those of these rows that wait."""
    c = outbox.c
    held: dict[int, tuple[str, str]] = {}
    for some in _chunks(sorted(seqs)):
        query = select(c.seq, c.event_id, c.payload).where(numbered(c.seq, some, connection), _NOT_SENT)
        for row in await connection.execute(query):
            held[row.seq] = row.event_id, hashlib.sha256(row.payload).hexdigest()
    return held


async def about(store: Store, seqs: Sequence[int]) -> list[Row[Any]]:
    """Of whom and of which transfer these rows tell: ``seq``, ``person_id``, ``transfer_id``, in sequence."""
    c = outbox.c
    found: list[Row[Any]] = []
    async with _one_statement(store) as connection:
        for some in _chunks(sorted(set(seqs))):
            query = select(c.seq, c.person_id, c.transfer_id).where(numbered(c.seq, some, connection))
            found.extend(await connection.execute(query.order_by(c.seq)))
    return found


async def fetched(
    store: Store, receiver: str, seqs: Sequence[int], by: str, at: datetime
) -> tuple[int, list[int]]:
    """The receiver has fetched these rows itself and says that it has them; ``by`` is which of its systems.

    Returns how many were waiting until now, and the numbers that are no rows of this receiver: if there are any, nothing is
    written. Saying it twice says nothing twice.
    """
    wanted = sorted(set(seqs))
    async with _writing(store) as connection:
        c = outbox.c
        rows: list[Row[Any]] = []
        for some in _chunks(wanted):
            rows.extend(
                await connection.execute(
                    select(*_TOLD, c.topic, c.state)
                    .where(numbered(outbox.c.seq, some, connection), c.receiver == receiver)
                    .order_by(c.seq)
                    .with_for_update()
                )
            )
        strange = sorted(set(wanted) - {row.seq for row in rows})
        rows = [row for row in rows if row.state == "pending"]
        if strange or not rows:
            return 0, strange
        await update_rows(
            connection, outbox, ["seq"], [{"seq": row.seq, "state": "sent", "sent_at": at} for row in rows]
        )
        await insert_rows(connection, delivery_attempt, _attempts(rows, at, "fetched", None))
        entries = [_said(row, at, "rest", {"seq": row.seq}, client_id=by) for row in rows]
        await write_audit(connection, entries)
        return len(rows), []


def _told(row: Row[Any], place: Placed, at: datetime, *, found: bool) -> AuditEntry:
    """A message lies where its receiver reads it."""
    detail = {
        "seq": row.seq,
        "topic": row.topic,
        "partition": place.partition,
        "offset": place.offset,
        "attempts": row.attempts + 1,
        **({"found": True} if found else {}),
    }
    return _said(row, at, SYSTEM, detail)


_TOLD = (
    outbox.c.seq,
    outbox.c.receiver,
    outbox.c.event_id,
    outbox.c.person_id,
    outbox.c.transfer_id,
    outbox.c.headers[SOURCE_ODS].as_string().label("source"),
)
"""What the audit says of a message that its receiver has."""


def _said(
    row: Row[Any], at: datetime, system: str, detail: Mapping[str, Any], client_id: str | None = None
) -> AuditEntry:
    """News of a patient is a disclosure by the trust it comes from; a receipt says only what became of the receiver's
    own message.
    """
    code = Code.DISCLOSURE_SENT if row.transfer_id else Code.DELIVERY_ACKNOWLEDGED
    return AuditEntry(
        code,
        at,
        system,
        trust=row.source if row.transfer_id else None,
        counterpart=row.receiver,
        event_id=row.event_id,
        person_id=row.person_id,
        transfer_id=row.transfer_id,
        client_id=client_id,
        detail=detail,
    )


def _attempts(rows: Iterable[Any], at: datetime, outcome: str, error: str | None) -> list[dict[str, Any]]:
    def target(row: Any) -> tuple[str, str]:
        return (row.receiver, row.topic)

    batches = [(of, [row.seq for row in some]) for of, some in groupby(sorted(rows, key=target), key=target)]
    return [
        {
            "receiver": receiver,
            "topic": topic,
            "at": at,
            "first_seq": min(seqs),
            "last_seq": max(seqs),
            "rows": len(seqs),
            "outcome": outcome,
            "error": error,
        }
        for (receiver, topic), seqs in batches
    ]


async def mark_failed(
    store: Store, rows: Sequence[Outgoing], error: str, next_attempt_at: datetime, at: datetime
) -> None:
    """Write down one attempt that failed: on each row, as a delivery attempt, and as one audit entry per topic.

    ``error`` is `str(Fault)`: it must hold nothing of a message. Rows that were sent meanwhile keep their state.
    """
    if not rows:
        return
    async with _writing(store) as connection:
        await connection.execute(
            update(outbox)
            .where(outbox.c.seq == bindparam("of_seq"), _NOT_SENT)
            .values(
                attempts=outbox.c.attempts + 1,
                last_error=bindparam("of_error"),
                next_attempt_at=bindparam("of_next"),
            ),
            [
                {"of_seq": row.seq, "of_error": error, "of_next": next_attempt_at}
                for row in sorted(rows, key=lambda r: r.seq)
            ],
        )
        attempts = _attempts(rows, at, "failed", error)
        await connection.execute(insert(delivery_attempt), attempts)
        only = rows[0] if len(rows) == 1 else None
        await write_audit(connection, [_failed(attempt, only, next_attempt_at, at) for attempt in attempts])


def _failed(
    attempt: Mapping[str, Any], only: Outgoing | None, next_attempt_at: datetime, at: datetime
) -> AuditEntry:
    detail = {name: attempt[name] for name in ("topic", "first_seq", "last_seq", "rows", "error")}
    return AuditEntry(
        Code.DELIVERY_RETRY,
        at,
        SYSTEM,
        Outcome.MINOR_FAILURE,
        counterpart=attempt["receiver"],
        event_id=only.event_id if only else None,
        detail=detail | {"next_attempt_at": next_attempt_at.isoformat()},
    )


async def waiting(store: Store) -> list[Waiting]:
    """What waits, per receiver, for people. Reads the whole queue."""
    c = outbox.c
    summary = (
        select(
            c.receiver,
            func.count().label("rows"),
            func.min(c.created_at).label("oldest"),
            func.max(c.attempts).label("attempts"),
            func.min(c.next_attempt_at).label("next_attempt_at"),
        )
        .where(_PENDING)
        .group_by(c.receiver)
        .order_by(c.receiver)
    )
    oldest_failed = select(func.min(c.seq)).where(_PENDING, c.last_error.is_not(None)).group_by(c.receiver)
    async with _one_statement(store) as connection:
        errors: Mapping[str, str] = {
            row.receiver: row.last_error
            for row in await connection.execute(
                select(c.receiver, c.last_error).where(c.seq.in_(oldest_failed))
            )
        }
        return [
            Waiting(
                row.receiver,
                row.rows,
                row.oldest,
                row.attempts,
                errors.get(row.receiver),
                row.next_attempt_at,
            )
            for row in await connection.execute(summary)
        ]


async def next_due(store: Store) -> list[tuple[str, datetime]]:
    """For each receiver for whom something waits, since when (or from when) the first of it may be sent. Whatever is tried for a
    receiver is tried with that row. Reads the whole queue.
    """
    c = outbox.c
    first = select(func.min(c.seq)).where(_PENDING).group_by(c.receiver)
    due_at = func.coalesce(c.next_attempt_at, c.created_at)
    async with _one_statement(store) as connection:
        found = await connection.execute(
            select(c.receiver, due_at).where(c.seq.in_(first)).order_by(c.receiver)
        )
        return [(receiver, at) for receiver, at in found]


async def sent_to(store: Store, receivers: Collection[str], since: datetime) -> set[str]:
    """Those of these receivers to whom something was sent after ``since``."""
    c = outbox.c
    recently = (c.state == literal_column("'sent'"), c.payload.is_not(None), c.sent_at > since)
    async with _one_statement(store) as connection:
        found = await connection.execute(
            select(c.receiver).where(*recently, c.receiver.in_(receivers)).distinct()
        )
        return set(found.scalars())


async def hold_lease(store: Store, name: str, holder: str, until: datetime, now: datetime) -> bool:
    """Take or renew a lease; whether ``holder`` has it now. One statement, so two cannot both get it.

    A lease keeps two from working on the same thing for long; it does not keep a sleeper from waking up
    late. What must not happen twice needs a fence as well.
    """
    async with _one_statement(store) as connection:
        dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
        taken = dialect.insert(lease).values(name=name, holder=holder, expires_at=until)
        taken = taken.on_conflict_do_update(
            index_elements=[lease.c.name],
            set_={"holder": holder, "expires_at": until},
            where=or_(lease.c.holder == holder, lease.c.expires_at <= now),
        )
        return bool((await connection.execute(taken)).rowcount)


async def release_lease(store: Store, name: str, holder: str) -> None:
    """Give a lease back, if ``holder`` still has it."""
    async with _one_statement(store) as connection:
        await connection.execute(lease.delete().where(lease.c.name == name, lease.c.holder == holder))


async def leases(store: Store, now: datetime) -> list[tuple[str, datetime]]:
    """What somebody works on at ``now``, and until when it is theirs if they renew it no more. Not every service has a lease."""
    async with _one_statement(store) as connection:
        held = select(lease.c.name, lease.c.expires_at).where(lease.c.expires_at > now)
        return [(name, until) for name, until in await connection.execute(held.order_by(lease.c.expires_at))]


async def message_of(store: Store, receiver: str, seq: int) -> tuple[bytes | None, str | None] | None:
    """One message for this receiver, waiting or sent, and the transfer that it is about; None if it has none of this number.
    Without its body once that has aged out.
    """
    c = outbox.c
    async with _one_statement(store) as connection:
        query = select(c.payload, c.transfer_id).where(c.seq == seq, c.receiver == receiver)
        row = (await connection.execute(query)).one_or_none()
        return (row.payload, row.transfer_id) if row else None


async def of_trust(
    store: Store, receiver: str, before: int | None, limit: int, transfer_id: str | None = None
) -> Sequence[Any]:
    """Messages about transfers for this receiver, waiting or sent, the last first: ``seq``, ``payload`` (None once aged out),
    ``transfer_id``.
    """
    c = outbox.c
    query = (
        select(c.seq, c.payload, c.transfer_id)
        .where(c.receiver == receiver, c.transfer_id.is_not(None))
        .order_by(c.seq.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(c.seq < before)
    if transfer_id is not None:
        query = query.where(c.transfer_id == transfer_id)
    async with _one_statement(store) as connection:
        return (await connection.execute(query)).all()
