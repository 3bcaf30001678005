"""Questions people ask: the audit, the quarantine, incidents, brakes. Rows come back as plain dicts, newest last."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.ids import parse_uuid
from hub.domain.incident import ADVICE
from hub.domain.message import Received
from hub.domain.rejection import RULINGS, Disposition, Why
from hub.domain.transfer import ENDED, Transfer
from hub.store import incidents as incidents_store
from hub.store import tables as t
from hub.store.bulk import among
from hub.store.load import as_received, first_key, with_facts
from hub.store.packing import unpack
from hub.store.positions import UNTIL_SET
from hub.store.write import write_audit

Row = dict[str, Any]


class NotFoundError(LookupError):
    """Nothing has this id."""


async def was_sent(engine: AsyncEngine, trust: str, message_id: str) -> bool:
    """Whether a trust has sent a message under this id, however it writes it."""
    keys = {first_key(trust, each) for each in (message_id, parse_uuid(message_id)) if each}
    async with engine.connect() as connection:
        query = select(t.message.c.event_id).where(among(t.message.c.first_key, keys, connection)).limit(1)
        return await connection.scalar(query) is not None


async def transfer_row(engine: AsyncEngine, transfer_id: str) -> Row:
    """One transfer as it stands. Raises NotFoundError."""
    async with engine.connect() as connection:
        row = (
            (await connection.execute(select(t.transfer).where(t.transfer.c.transfer_id == transfer_id)))
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise NotFoundError(transfer_id)
    return _dict(row)


async def transfers(
    engine: AsyncEngine, *, trust: str | None, state: str | None, ended: bool, limit: int
) -> list[Row]:
    """Transfers as they stand, the last changed first; those that are over only if ``ended`` or asked for by state."""
    table = t.transfer
    query = select(table).order_by(table.c.changed_at.desc(), table.c.transfer_id).limit(limit)
    if trust:
        query = query.where((table.c.sender == trust) | (table.c.receiver == trust))
    if state:
        query = query.where(table.c.state == state)
    elif not ended:
        query = query.where(table.c.state.not_in([each.value for each in ENDED]))
    return await _all(engine, query)


async def transfers_named(engine: AsyncEngine, transfer_ids: Collection[str]) -> dict[str, Row]:
    """These transfers as they stand, by id; those that there are."""
    table = t.transfer
    async with engine.connect() as connection:
        rows = await connection.execute(
            select(table).where(among(table.c.transfer_id, transfer_ids, connection))
        )
        return {row["transfer_id"]: _dict(row) for row in rows.mappings()}


async def transfers_due(engine: AsyncEngine, until: datetime) -> list[Row]:
    """Transfers whose next clock rings before ``until``, the earliest first."""
    table = t.transfer
    return await _all(engine, select(table).where(table.c.due_at <= until).order_by(table.c.due_at))


async def transfer(engine: AsyncEngine, transfer_id: str) -> Transfer:
    """One transfer with its facts. Raises NotFoundError."""
    async with engine.connect() as connection:
        rows = await connection.execute(select(t.transfer).where(t.transfer.c.transfer_id == transfer_id))
        found = await with_facts(connection, rows.all())
    if not found:
        raise NotFoundError(transfer_id)
    return found[0]


async def transfer_history(engine: AsyncEngine, transfer_id: str) -> list[Row]:
    """Every state a transfer had and why."""
    h = t.transfer_history
    return await _all(engine, select(h).where(h.c.transfer_id == transfer_id).order_by(h.c.version))


async def quarantined(
    engine: AsyncEngine,
    *,
    trust: str | None = None,
    why: Collection[str] = (),
    after: datetime | None = None,
    limit: int | None = 200,
) -> list[Row]:
    """Messages in quarantine, for one of the reasons ``why`` if there are any, received ``after`` (UTC), oldest first, without their content; who mends each and how."""
    m = t.message
    columns = (
        m.c.event_id,
        m.c.trust,
        m.c.message_id,
        m.c.received_at,
        m.c.why,
        m.c.at,
        m.c.detail,
        m.c.retries,
        m.c.raw_size,
    )
    query = (
        select(*columns)
        .where(text("disposition <> 'accepted'"))  # the words of the index
        .where(m.c.disposition == Disposition.QUARANTINED.value)
        .order_by(m.c.received_at, m.c.event_id)
        .limit(limit)
    )
    if trust:
        query = query.where(m.c.trust == trust)
    if why:
        query = query.where(m.c.why.in_(why))
    if after:
        query = query.where(m.c.received_at > after)
    rows = await _all(engine, query)
    return [row | advice(row["why"]) for row in rows]


def advice(why: str | None) -> Row:
    """Who mends a reason, and how."""
    ruling = RULINGS.get(Why(why)) if why else None
    return {"owner": ruling.owner.value, "advice": ruling.advice} if ruling else {}


async def message(engine: AsyncEngine, event_id: str) -> tuple[Row, bytes | None]:
    """One message's record and its raw bytes as received, None where they are kept no longer; ``content`` says why.
    Raises NotFoundError.
    """
    async with engine.connect() as connection:
        found = (
            (await connection.execute(select(t.message).where(t.message.c.event_id == event_id)))
            .mappings()
            .one_or_none()
        )
    if found is None:
        raise NotFoundError(event_id)
    row = _dict(found)
    raw = row.pop("raw")
    row["key"] = row["key"].decode(errors="replace") if row["key"] else None
    row["content"] = _whereabouts(raw, row["disposition"])
    return row | advice(row["why"]), unpack(raw) if raw is not None else None


async def content_read(engine: AsyncEngine, event_id: str, reader: str, now: datetime) -> bytes | None:
    """A message's bytes as received, for somebody to read: they are a patient's data, so that ``reader`` has read them is written
    down first. None where they are kept no longer. Raises NotFoundError.
    """
    row, raw = await message(engine, event_id)
    if raw is None:
        return None
    e, x = t.event.c, t.transfer.c
    async with engine.begin() as connection:
        about = (
            await connection.execute(select(e.person_id, e.transfer_id).where(e.event_id == event_id))
        ).one_or_none()
        person_id, transfer_id = (about.person_id, about.transfer_id) if about else (None, None)
        if person_id is None and transfer_id is not None:
            person_id = await connection.scalar(select(x.person_id).where(x.transfer_id == transfer_id))
        entry = AuditEntry(
            Code.MESSAGES_READ,
            now,
            "cli",
            trust=row["trust"],
            event_id=event_id,
            person_id=person_id,
            transfer_id=transfer_id,
            user_id=reader,
            detail={"messages": 1},
        )
        await write_audit(connection, [entry])
    return raw


def _whereabouts(raw: bytes | None, disposition: str) -> str:
    """Where a message's bytes are."""
    if raw is not None:
        return "kept"
    return "that of the first message" if disposition == Disposition.DUPLICATE else "aged out"


async def incidents(engine: AsyncEngine, *, closed: bool = False) -> list[Row]:
    """Open incidents, or all of them, each with what is ``to_do`` about it."""
    query = select(t.incident).order_by(t.incident.c.opened_at)
    rows = await _all(engine, query if closed else query.where(t.incident.c.closed_at.is_(None)))
    return [row | {"to_do": ADVICE.get(row["kind"])} for row in rows]


async def close_incident(engine: AsyncEngine, incident_id: str, because: str, now: datetime, by: str) -> None:
    """Acknowledge an incident; audited, with ``by``, the operator. Raises NotFoundError if none is open under this id."""
    async with engine.begin() as connection:
        if not await incidents_store.close_incident(connection, incident_id, because, "cli", now, by):
            raise NotFoundError(incident_id)


async def brakes(engine: AsyncEngine) -> list[Row]:
    """Trusts with messages quarantined in a row, paused ones included."""
    return await _all(engine, select(t.brake).order_by(t.brake.c.trust))


async def release_brake(engine: AsyncEngine, trust: str, because: str, now: datetime, by: str) -> None:
    """Let a paused trust's messages run again; audited, with ``by``, the operator. Raises NotFoundError if it is not paused."""
    b = t.brake
    async with engine.begin() as connection:
        changed = await connection.execute(
            update(b).where(b.c.trust == trust, b.c.pulled).values(pulled=False, in_a_row=0, pulled_at=None)
        )
        if changed.rowcount == 0:
            raise NotFoundError(trust)
        detail = {"because": because}
        released = AuditEntry(Code.BRAKE_RELEASED, now, "cli", trust=trust, user_id=by, detail=detail)
        await write_audit(connection, [released])


async def dispositions(engine: AsyncEngine) -> dict[str, int]:
    """How many messages ended in each disposition."""
    m = t.message
    rows = await _all(
        engine, select(m.c.disposition, func.count().label("messages")).group_by(m.c.disposition)
    )
    return {row["disposition"]: row["messages"] for row in rows}


async def set_position(
    engine: AsyncEngine, topic: str, partition: int, offset: int, because: str, now: datetime, by: str
) -> None:
    """Say from where a partition is to be read: the mend of a position that does not fit the topic. Audited, with ``by``, the operator."""
    p = t.position
    async with engine.begin() as connection:
        changed = await connection.execute(
            update(p)
            .where(p.c.topic == topic, p.c.partition == partition)
            # What was taken in so far is no sign any more of what the topic holds, and who died there died of something else.
            .values(
                next_offset=offset,
                moved_at=now,
                last_offset=None,
                last_sha256=None,
                taken_up_at=None,
                taken_up=0,
                suspect_offset=None,
                suspect_begun=0,
            )
        )
        if changed.rowcount == 0:
            raise NotFoundError(f"{topic}/{partition}")
        detail = {"topic": topic, "partition": partition, "offset": offset, "because": because}
        entry = AuditEntry(Code.POSITION_SET, now, "cli", user_id=by, detail=detail)
        await write_audit(connection, [entry])
        for kind in UNTIL_SET:
            found = (await incidents_store.open_incidents(connection, kind)).get(f"{topic}/{partition}")
            if found is not None:
                await incidents_store.close_incident(connection, found, because, "cli", now, by)


async def positions(engine: AsyncEngine) -> list[Row]:
    """Where every partition stands."""
    return await _all(engine, select(t.position).order_by(t.position.c.topic, t.position.c.partition))


async def _all(engine: AsyncEngine, query: Select[Any]) -> list[Row]:
    async with engine.connect() as connection:
        return _dicts((await connection.execute(query)).mappings().all())


def _dicts(rows: Sequence[Any]) -> list[Row]:
    return [_dict(row) for row in rows]


def _dict(row: Any) -> Row:
    """Names that are reserved words come from SQLAlchemy as a kind of str of its own."""
    return {str(name): value for name, value in row.items()}


async def sent_since(engine: AsyncEngine, trust: str, since: datetime) -> int:
    """How many messages a trust sent since then, without repetitions; whatever has aged out counts."""
    m = t.message
    query = select(func.count()).where(
        m.c.trust == trust, m.c.received_at >= since, m.c.disposition != Disposition.DUPLICATE.value
    )
    async with engine.connect() as connection:
        return int(await connection.scalar(query) or 0)


async def messages_for_replay(
    engine: AsyncEngine, trust: str, *, since: datetime, reader: str, now: datetime, limit: int = 10_000
) -> list[Received]:
    """What a trust sent since then, oldest first, with its bytes; a repetition is not there twice. Reading it is audited."""
    m = t.message
    query = (
        select(m)
        .where(m.c.trust == trust, m.c.received_at >= since, m.c.raw.is_not(None))
        .order_by(m.c.received_at, m.c.event_id)
        .limit(limit)
    )
    async with engine.begin() as connection:
        found = [as_received(row) for row in await connection.execute(query)]
        read = {"messages": len(found), "since": since.isoformat()}
        entry = AuditEntry(Code.MESSAGES_READ, now, "cli", trust=trust, user_id=reader, detail=read)
        await write_audit(connection, [entry])
    return found
