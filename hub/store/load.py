"""Reading for a batch: first the locks, then what is known. A handful of set-wise queries, whatever the batch's size."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    and_,
    bindparam,
    literal,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.domain.ids import EventId, Identifier, OdsCode, PersonId, PersonKey, TransferId
from hub.domain.message import Canonical, EncounterRef, Position, Received, Stay
from hub.domain.rejection import Disposition, Why
from hub.domain.transfer import ALARMS, ASKING, HUB, UNASKED, Fact, Party, State, Step, Transfer
from hub.fhir import headers
from hub.journey.decide import Understood
from hub.journey.known import LINKED, FirstMessage, Known, Person
from hub.store import tables as t
from hub.store.bulk import among, is_postgresql
from hub.store.packing import unpack

STAYS_KEPT = timedelta(days=14)
"""How long a stay that belongs to no transfer is remembered for a request that comes late."""


def first_key(trust: str, message_id: str) -> str:
    """What makes a message id unique: ids are the sender's own."""
    return f"{trust}|{message_id}"


def as_received(row: Any) -> Received:
    """A row of `message` with its bytes, as it came in."""
    return Received(
        event_id=EventId(row.event_id),
        trust=OdsCode(row.trust),
        position=Position(row.topic, row.partition, row.offset) if row.topic is not None else None,
        headers=row.headers,
        key=row.key,
        raw=unpack(row.raw),
        received_at=row.received_at,
    )


async def lock_names(connection: AsyncConnection, batch: Sequence[Understood]) -> None:
    """Lock every name in the batch (message ids, person identifiers, request identifiers), in one order, until the
    end of the transaction: two workers that meet a new patient at once must not both create them.

    PostgreSQL only. SQLite has one writer at a time.
    """
    if not is_postgresql(connection):
        return
    names = {f"m|{first_key(u.received.trust, u.message_id)}" for u in batch}
    for meaning in (u.meaning for u in batch):
        if isinstance(meaning, Canonical):
            names |= {_name_of(key) for key in meaning.person.lookup}
            names |= {f"r|{each.system}|{each.value}" for each in meaning.refs.requests}
    await _lock(connection, names)


async def lock_key(connection: AsyncConnection, key: PersonKey) -> None:
    """Lock a person identifier as a batch that has it would."""
    if is_postgresql(connection):
        await _lock(connection, [_name_of(key)])


async def lock_user(connection: AsyncConnection, trust: str, user_id: str) -> None:
    """Lock a person who works at a trust: what they ask for twice at once is to be found the second time."""
    if is_postgresql(connection):
        await _lock(connection, [f"u|{trust}|{user_id}"])


def _name_of(key: PersonKey) -> str:
    return f"p|{key.authority}|{key.value}"


async def _lock(connection: AsyncConnection, names: Iterable[str]) -> None:
    numbers = sorted(_number(name) for name in names)
    await connection.execute(
        text(
            "SELECT pg_advisory_xact_lock(n) FROM (SELECT unnest(:numbers) AS n ORDER BY 1) AS ordered"
        ).bindparams(bindparam("numbers", type_=ARRAY(BigInteger))),
        {"numbers": numbers},
    )


async def claim_messages(connection: AsyncConnection, batch: Sequence[Understood]) -> list[bool]:
    """Lock the messages' ids until the end of the transaction; False where another transaction is at that message now.
    PostgreSQL only: SQLite has one writer at a time.
    """
    if not is_postgresql(connection):
        return [True] * len(batch)
    numbers = [_number(f"m|{first_key(u.received.trust, u.message_id)}") for u in batch]
    rows = await connection.execute(
        text("SELECT n, pg_try_advisory_xact_lock(n) AS ours FROM unnest(:numbers) AS n").bindparams(
            bindparam("numbers", type_=ARRAY(BigInteger))
        ),
        {"numbers": sorted(set(numbers))},
    )
    ours = {row.n: bool(row.ours) for row in rows}
    return [ours[each] for each in numbers]


def _number(name: str) -> int:
    """A name as PostgreSQL's advisory locks know it."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)


async def load_known(
    connection: AsyncConnection,
    batch: Sequence[Understood],
    now: datetime,
    persons: Iterable[str] = (),
    transfers: Iterable[str] = (),
) -> Known:
    """Everything the decisions of this batch may look at. The persons it touches are locked, in key order.

    ``persons`` and ``transfers`` those a human has named.
    """
    known = Known()
    await _messages(connection, batch, known)
    canonicals = [u.meaning for u in batch if isinstance(u.meaning, Canonical)]
    if not canonicals:
        return known
    person_ids = await _person_ids(connection, canonicals)
    person_ids |= await _persons_of_named_transfers(connection, canonicals, transfers)
    person_ids |= set(persons)
    if person_ids:
        person_ids = await _persons(connection, person_ids, known)
        await _transfers(connection, person_ids, known)
        await _stays(connection, person_ids, known, now)
    return known


async def load_people(connection: AsyncConnection, persons: Iterable[str]) -> Known:
    """These persons, as far as there are such, with all their records and transfers; locked, in key order, as a batch does."""
    known = Known()
    records = await _persons(connection, set(persons), known)
    await _transfers(connection, records, known)
    return known


async def _messages(connection: AsyncConnection, batch: Sequence[Understood], known: Known) -> None:
    # Ids were once kept as they were written.
    written = [(u.received.trust, u.received.header(headers.REQUEST_ID)) for u in batch]
    keys = {first_key(u.received.trust, u.message_id) for u in batch}
    keys |= {first_key(trust, message_id) for trust, message_id in written if message_id}
    m = t.message
    rows = await connection.execute(
        select(
            m.c.trust,
            m.c.message_id,
            m.c.event_id,
            m.c.sha256,
            m.c.disposition,
            m.c.why,
            m.c.at,
            m.c.detail,
            m.c.topic,
            m.c.headers,
            t.event.c.transfer_id,
            t.event.c.person_id,
        )
        .outerjoin(t.event, t.event.c.event_id == m.c.event_id)
        .where(among(m.c.first_key, keys, connection))
    )
    for row in rows:
        known.messages[(OdsCode(row.trust), row.message_id)] = FirstMessage(
            EventId(row.event_id),
            row.sha256,
            Disposition(row.disposition),
            Why(row.why) if row.why else None,
            row.at or "",
            row.detail or "",
            row.transfer_id,
            row.person_id,
            row.headers.get(headers.REQUEST_SHA256, "") if row.topic is None else "",
        )


async def _person_ids(connection: AsyncConnection, canonicals: Sequence[Canonical]) -> set[str]:
    keys = {key for canonical in canonicals for key in canonical.person.lookup}
    if not keys:
        return set()
    p = t.person_identifier
    rows = await connection.execute(
        select(p.c.authority, p.c.value, p.c.person_id).where(
            among(p.c.value, (key.value for key in keys), connection)
        )
    )
    return {row.person_id for row in rows if PersonKey(row.authority, row.value) in keys}


async def _persons_of_named_transfers(
    connection: AsyncConnection, canonicals: Sequence[Canonical], chosen: Iterable[str]
) -> set[str]:
    """Persons of the transfers that messages name. Somebody else's numbers are harmless here: `named_transfer` checks the parties."""
    ids = {c.refs.hub_id for c in canonicals if c.refs.hub_id} | set(chosen)
    requests = {each.value for c in canonicals for each in c.refs.requests}
    conversations = {c.refs.correlation_id for c in canonicals if c.refs.correlation_id}
    ways = [
        *([among(t.transfer.c.transfer_id, ids, connection)] if ids else []),
        *([among(t.transfer.c.correlation_id, conversations, connection)] if conversations else []),
    ]
    if requests:
        identifier = t.transfer_identifier
        rows = await connection.execute(
            select(identifier.c.transfer_id).where(among(identifier.c.value, requests, connection))
        )
        named = {row.transfer_id for row in rows}
        ways += [among(t.transfer.c.transfer_id, named, connection)] if named else []
    if not ways:
        return set()
    rows = await connection.execute(select(t.transfer.c.person_id).where(or_(*ways)))
    return {row.person_id for row in rows}


async def _persons(connection: AsyncConnection, person_ids: set[str], known: Known) -> set[str]:
    """The persons, and all other records that were merged with theirs; their ids. Locked in key order.

    While a statement waits for a lock, a merge may be committed that it does not see: so the records are looked for again
    when all are locked, until there are no more.
    """
    person, identifier = t.person, t.person_identifier
    found: dict[str, Person] = {}
    group = await _merged_with(connection, person_ids)
    while group - found.keys():
        rows = await connection.execute(
            select(person)
            .where(among(person.c.person_id, group, connection))
            .order_by(person.c.person_id)
            .with_for_update()
        )
        found = {row.person_id: _person(row) for row in rows}
        group = await _merged_with(connection, group)
    theirs, not_theirs = (
        select(each.c.person_id, each.c.authority, each.c.value, literal(said).label("theirs")).where(
            among(each.c.person_id, found, connection)
        )
        for each, said in ((identifier, True), (t.person_not_theirs, False))
    )
    for row in await connection.execute(union_all(theirs, not_theirs)):
        each = found[row.person_id]
        (each.keys if row.theirs else each.not_theirs).add(PersonKey(row.authority, row.value))
    merged = [each.id for each in found.values() if each.merged_into]
    if merged:
        link, event = t.person_link.c, t.event.c
        said = await connection.execute(
            select(link.person_id, link.kind, event.trust)
            .join_from(t.person_link, t.event, link.event_id == event.event_id)
            .where(among(link.person_id, merged, connection))
            .order_by(link.event_id)
        )
        for merge in said:
            found[merge.person_id].merged_by = OdsCode(merge.trust) if merge.kind == LINKED else None
    for each in found.values():
        known.add_person(each)
    return set(found)


async def _merged_with(connection: AsyncConnection, person_ids: set[str]) -> set[str]:
    """These records, as far as they exist, and all that were merged with them, over however many others."""
    p = t.person.c
    found: set[str] = set()
    asked: set[str] = set()
    wanted = set(person_ids)
    while wanted:
        rows = await connection.execute(
            select(p.person_id, p.merged_into).where(
                or_(among(p.person_id, wanted, connection), among(p.merged_into, wanted, connection))
            )
        )
        asked |= wanted
        merged_into: set[str] = set()
        for row in rows:
            found.add(row.person_id)
            merged_into |= {row.merged_into} if row.merged_into else set()
        wanted = (found | merged_into) - asked
    return found


def _person(row: Any) -> Person:
    return Person(
        PersonId(row.person_id),
        row.birth_date,
        row.created_at,
        set(),
        PersonId(row.merged_into) if row.merged_into else None,
        row.sensitivity,
        OdsCode(row.restricted_by) if row.restricted_by else None,
    )


async def _transfers(connection: AsyncConnection, person_ids: set[str], known: Known) -> None:
    rows = (
        await connection.execute(
            select(t.transfer).where(among(t.transfer.c.person_id, person_ids, connection))
        )
    ).all()
    for transfer in await with_facts(connection, rows):
        known.add_transfer(transfer)


async def _stays(connection: AsyncConnection, person_ids: set[str], known: Known, now: datetime) -> None:
    """The persons' stays that belong to no transfer yet, as long as a request may still come for them; a draft's request too, whatever else the
    stay was told to; and those that were no more than an alarm to a transfer, or took something back.
    """
    e = t.event
    facts = [(each, fact) for each in known.transfers.values() for fact in each.facts]
    of_drafts = {
        fact.event_id for each, fact in facts if each.state is State.DRAFT and fact.by == each.receiver
    }
    alarms = {fact.event_id for _, fact in facts if fact.step in ALARMS and fact.encounter is not None}
    told = of_drafts | alarms - {fact.event_id for _, fact in facts if fact.step not in ALARMS}
    ways = [e.c.transfer_id.is_(None), *([among(e.c.event_id, told, connection)] if told else [])]
    for way in ways:
        rows = await connection.execute(
            select(
                e.c.event_id,
                e.c.person_id,
                e.c.trust,
                e.c.event_type,
                e.c.occurred_at,
                e.c.received_at,
                e.c.sequence,
                e.c.stay,
            ).where(
                among(e.c.person_id, person_ids, connection),
                way,
                e.c.received_at > now - STAYS_KEPT,
                e.c.encounter_key.is_not(None),
            )
        )
        for row in rows:
            if row.stay is not None:
                known.add_stay(row.person_id, _stay(row))


def _stay(row: Any) -> Stay:
    said = dict(row.stay)
    stated_at, began_at = (_time(said.pop(name, None)) for name in ("stated_at", "began_at"))
    deceased = said.pop("deceased", None)
    event_type = said.pop("event_type", row.event_type)
    return Stay(
        EventId(row.event_id),
        OdsCode(row.trust),
        event_type,
        EncounterRef(**said),
        row.occurred_at,
        row.received_at,
        row.sequence,
        stated_at,
        deceased,
        began_at,
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def is_receivers(transfer: FromClause) -> ColumnElement[bool]:
    """Whether rows of `transfer` are the receiver's business (`Transfer.party`): no draft, and nothing that it was never asked."""
    x, h = transfer.c, t.transfer_history.c
    asked = select(h.version).where(h.transfer_id == x.transfer_id, h.step.in_(sorted(ASKING)))
    return and_(
        x.state != State.DRAFT.value, or_(x.state.not_in([each.value for each in UNASKED]), asked.exists())
    )


async def with_facts(connection: AsyncConnection, rows: Sequence[Any]) -> list[Transfer]:
    """Rows of `transfer` as values, their facts and identifiers with them."""
    ids = [row.transfer_id for row in rows]
    if not ids:
        return []
    facts: dict[str, list[Fact]] = {each: [] for each in ids}
    requests: dict[str, list[Identifier]] = {each: [] for each in ids}
    h, identifier = t.transfer_history, t.transfer_identifier
    parties = {
        row.transfer_id: {row.sender: Party.SENDER, row.receiver: Party.RECEIVER, HUB: Party.HUB}
        for row in rows
    }
    for row in await connection.execute(
        select(h).where(among(h.c.transfer_id, ids, connection)).order_by(h.c.transfer_id, h.c.version)
    ):
        facts[row.transfer_id].append(
            Fact(
                EventId(row.event_id),
                Step(row.step),
                OdsCode(row.by),
                parties[row.transfer_id].get(row.by, Party.THIRD),
                row.occurred_at,
                row.received_at,
                row.sequence,
                row.because,
                row.encounter_key,
                frozenset(Step(each) for each in row.retracts or ()),
                row.until,
                row.clock,
                row.stated_at,
            )
        )
    for row in await connection.execute(
        select(identifier).where(among(identifier.c.transfer_id, ids, connection))
    ):
        requests[row.transfer_id].append(Identifier(row.system, row.value))
    return [
        Transfer(
            id=TransferId(row.transfer_id),
            person_id=PersonId(row.person_id),
            sender=OdsCode(row.sender),
            receiver=OdsCode(row.receiver),
            state=State(row.state),
            version=row.version,
            requested_at=row.requested_at,
            facts=tuple(facts[row.transfer_id]),
            requests=tuple(sorted(requests[row.transfer_id], key=lambda each: (each.system, each.value))),
            correlation_id=row.correlation_id,
            origin_encounter=row.origin_encounter,
            sender_code=row.sender_code,
            receiver_code=row.receiver_code,
            changed_at=row.changed_at,
            specialty=row.specialty,
            priority=row.priority,
            kind=row.kind,
            replaces=row.replaces,
        )
        for row in rows
    ]
