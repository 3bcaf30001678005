"""Looking for transfers as one trust: only those it is a party to, the last changed first, page by page."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, union, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry
from hub.domain.ids import NHS_AUTHORITY, OdsCode, PersonKey, parse_nhs_number
from hub.domain.transfer import State, Transfer
from hub.fhir import decimals
from hub.fhir.systems import HUB_TRANSFER, NHS_NUMBER
from hub.store import tables as t
from hub.store.bulk import among
from hub.store.load import is_receivers, with_facts
from hub.store.packing import unpack
from hub.store.patients import known_as, patients_of
from hub.store.write import write_audit

_t = t.transfer.c


@dataclass(frozen=True, slots=True)
class Token:
    """A FHIR search token. ``system`` None: any; "": none."""

    system: str | None
    value: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for. Each field that holds something narrows; inside a field any of its values will do.

    ``persons`` are records as they are; ``records`` stand for whoever was merged with them too, as ``patients`` by number do.
    ``changed`` are half-open ranges (from, before) in UTC, each of which must hold. ``after`` is the last of the page before.
    """

    ids: Sequence[str] = ()
    persons: Sequence[str] = ()
    records: Sequence[str] = ()
    identifiers: Sequence[Token] = ()
    patients: Sequence[Token] = ()
    states: Sequence[State] | None = None
    senders: Sequence[str] = ()
    receivers: Sequence[str] = ()
    changed: Sequence[tuple[datetime | None, datetime | None]] = ()
    oldest_first: bool = False
    after: tuple[datetime, str] | None = None
    limit: int = 50


async def search(
    engine: AsyncEngine, trust: OdsCode, wanted: Wanted, broken: Iterable[str] = ()
) -> tuple[list[Transfer], bool]:
    """One page of ``trust``'s transfers and of those patients' for whom the glass is ``broken``, and whether there are more."""
    async with engine.connect() as connection:
        order = (
            (_t.changed_at, _t.transfer_id)
            if wanted.oldest_first
            else (_t.changed_at.desc(), _t.transfer_id.desc())
        )
        # One index for each end: either alone gives its first rows in order, so no page reads the whole table.
        known = await _looked_up(connection, trust, wanted)
        ends = [
            select(query.order_by(*order).limit(wanted.limit + 1).subquery())
            for query in _ends(connection, trust, wanted, known, broken)
        ]
        found = union_all(*ends).subquery("found")
        by = (found.c.changed_at, found.c.transfer_id)
        rows = (
            await connection.execute(
                select(found)
                .order_by(*(by if wanted.oldest_first else (each.desc() for each in by)))
                .limit(wanted.limit + 1)
            )
        ).all()
        return await with_facts(connection, rows[: wanted.limit]), len(rows) > wanted.limit


async def count(engine: AsyncEngine, trust: OdsCode, wanted: Wanted, broken: Iterable[str] = ()) -> int:
    """How many there are on all pages together."""
    async with engine.connect() as connection:
        known = await _looked_up(connection, trust, wanted)
        ends = [
            query.with_only_columns(_t.transfer_id)
            for query in _ends(connection, trust, wanted, known, broken, paged=False)
        ]
        return int(await connection.scalar(select(func.count()).select_from(union(*ends).subquery())) or 0)


async def nhs_numbers(engine: AsyncEngine, persons: Collection[str]) -> dict[str, str]:
    """Person → the NHS number that they have now, whichever of their records has it, of those whose number is known."""
    known = await known_as(engine, persons)
    return {person: each.nhs_number for person, each in known.items() if each.nhs_number}


async def not_theirs(engine: AsyncEngine, persons: Iterable[str]) -> dict[str, set[PersonKey]]:
    """Person → numbers of which a human has said that they are not theirs, whichever of their records it was said of; rarely any."""
    n = t.person_not_theirs.c
    found: dict[str, set[PersonKey]] = {}
    async with engine.connect() as connection:
        patients = await patients_of(connection, persons)
        rows = (
            await connection.execute(
                select(n.person_id, n.authority, n.value).where(among(n.person_id, patients, connection))
            )
        ).all()
    for row in rows:
        for person in patients[row.person_id].records:
            found.setdefault(person, set()).add(PersonKey(row.authority, row.value))
    return found


@dataclass(frozen=True, slots=True)
class Said:
    """What one message said, as it is kept. ``resources`` are its Bundle entries; none once they have aged out."""

    trust: OdsCode
    transfer_id: str
    event_id: str
    received_at: datetime
    resources: list[Any]
    aged_out: bool = False


async def said_of(engine: AsyncEngine, transfers: Sequence[Transfer]) -> list[Said]:
    """What the parties of these transfers said of them, the last first."""
    e = t.event.c
    parties = {each.id: {each.sender, each.receiver} for each in transfers}
    async with engine.connect() as connection:
        rows = await connection.execute(
            select(e.trust, e.transfer_id, e.event_id, e.received_at, e.payload)
            .where(among(e.transfer_id, set(parties), connection))
            .order_by(e.received_at.desc(), e.event_id.desc())
        )
        return [_said(row) for row in rows if row.trust in parties[row.transfer_id]]


def _said(row: Any) -> Said:
    aged_out = row.payload is None
    resources = [] if aged_out else decimals.loads(unpack(row.payload))
    return Said(OdsCode(row.trust), row.transfer_id, row.event_id, row.received_at, resources, aged_out)


async def aged_out(engine: AsyncEngine, transfers: Iterable[str]) -> set[str]:
    """Those of these transfers of which something that was said is kept no longer."""
    e = t.event.c
    async with engine.connect() as connection:
        rows = await connection.execute(
            select(e.transfer_id)
            .distinct()
            .where(among(e.transfer_id, transfers, connection), e.payload.is_(None))
        )
        return set(rows.scalars())


async def restricted(engine: AsyncEngine, persons: Iterable[str]) -> set[str]:
    """Those of these persons of whom any record is restricted (PDS: R, V), however many merges lie between."""
    p = t.person.c
    async with engine.connect() as connection:
        patients = await patients_of(connection, persons)
        query = select(p.person_id).where(
            among(p.person_id, patients, connection), p.sensitivity.in_(("R", "V"))
        )
        secret = set((await connection.execute(query)).scalars())
    return {person for person, patient in patients.items() if patient.records & secret}


async def persons(engine: AsyncEngine, trust: OdsCode, named: Token) -> list[str]:
    """All records of the patient that an NHS number, or a number of ``trust``'s own, stands for."""
    async with engine.connect() as connection:
        return sorted(await persons_named(connection, trust, [named]))


async def write_down(engine: AsyncEngine, entries: Sequence[AuditEntry]) -> None:
    """Audit entries of their own: somebody read, or was refused."""
    async with engine.begin() as connection:
        await write_audit(connection, entries)


@dataclass(frozen=True, slots=True)
class _Found:
    """What identifiers stand for. Looked up first, so that the search itself is by keys: None where nothing was asked for."""

    transfers: frozenset[str] | None
    persons: frozenset[str] | None


async def _looked_up(connection: AsyncConnection, trust: OdsCode, wanted: Wanted) -> _Found:
    transfers = await _transfers(connection, wanted.identifiers) if wanted.identifiers else None
    persons = await persons_named(connection, trust, wanted.patients) if wanted.patients else None
    if wanted.records:
        records = await one_record(connection, set(wanted.records))
        persons = records if persons is None else persons & records
    return _Found(transfers, persons)


async def _transfers(connection: AsyncConnection, tokens: Sequence[Token]) -> frozenset[str]:
    """By the identifiers of their requests, or by their own."""
    i = t.transfer_identifier.c
    ways = [
        and_(i.value == each.value, *([i.system == each.system] if each.system is not None else []))
        for each in tokens
    ]
    rows = await connection.execute(select(i.transfer_id).where(or_(*ways)))
    own = {each.value for each in tokens if each.system in {None, HUB_TRANSFER}}
    return frozenset({row.transfer_id for row in rows} | own)


async def persons_named(
    connection: AsyncConnection, trust: OdsCode, tokens: Sequence[Token]
) -> frozenset[str]:
    """By NHS number, or by the asking hospital's own number; with everybody merged into or out of the same record.

    Another hospital's numbers find nobody: they mean nothing outside it.
    """
    p = t.person_identifier.c
    ways = []
    for each in tokens:
        nhs = and_(p.authority == NHS_AUTHORITY, p.value == parse_nhs_number(each.value).digits)
        own = p.authority.startswith(f"{trust}|", autoescape=True)
        if each.system is not None:
            own = p.authority == f"{trust}|{each.system}"
        known = [nhs] if each.system in {None, NHS_NUMBER} else []
        ways.append(or_(*known, and_(own, p.value == each.value)))
    named = {row.person_id for row in await connection.execute(select(p.person_id).where(or_(*ways)))}
    return await one_record(connection, named)


async def one_record(connection: AsyncConnection, persons: set[str]) -> frozenset[str]:
    """These persons with everybody merged into or out of the same record, however many merges lie between."""
    return frozenset(await patients_of(connection, persons)) if persons else frozenset()


def _ends(
    connection: AsyncConnection,
    trust: OdsCode,
    wanted: Wanted,
    found: _Found,
    broken: Iterable[str],
    *,
    paged: bool = True,
) -> list[Select[tuple[object, ...]]]:
    narrowed = and_(*_narrowed(connection, wanted, found, paged=paged))
    others = sorted(broken)
    return [
        *([_of_others(connection, trust, others).where(narrowed)] if others else []),
        select(t.transfer).where(_t.sender == trust, narrowed),
        # What the receiver was not asked is not there for it.
        select(t.transfer).where(_t.receiver == trust, is_receivers(t.transfer), narrowed),
    ]


def _of_others(
    connection: AsyncConnection, trust: OdsCode, persons: Sequence[str]
) -> Select[tuple[object, ...]]:
    """What other hospitals ask of each other for these patients."""
    return select(t.transfer).where(
        among(_t.person_id, persons, connection),
        is_receivers(t.transfer),
        _t.sender != trust,
        _t.receiver != trust,
    )


def _narrowed(
    connection: AsyncConnection, wanted: Wanted, found: _Found, *, paged: bool
) -> list[ColumnElement[bool]]:
    narrow: list[ColumnElement[bool]] = [_t.changed_at.is_not(None)]
    if wanted.ids:
        narrow.append(among(_t.transfer_id, wanted.ids, connection))
    if wanted.persons:
        narrow.append(among(_t.person_id, wanted.persons, connection))
    if found.transfers is not None:
        narrow.append(among(_t.transfer_id, found.transfers, connection))
    if found.persons is not None:
        narrow.append(among(_t.person_id, found.persons, connection))
    if wanted.states is not None:
        narrow.append(_t.state.in_([each.value for each in wanted.states]))
    if wanted.senders:
        narrow.append(_t.sender.in_(wanted.senders))
    if wanted.receivers:
        narrow.append(_t.receiver.in_(wanted.receivers))
    for since, before in wanted.changed:
        narrow += [_t.changed_at >= since] if since else []
        narrow += [_t.changed_at < before] if before else []
    if paged and wanted.after:
        at, transfer_id = wanted.after
        narrow.append(
            or_(_t.changed_at > at, and_(_t.changed_at == at, _t.transfer_id > transfer_id))
            if wanted.oldest_first
            else or_(_t.changed_at < at, and_(_t.changed_at == at, _t.transfer_id < transfer_id))
        )
    return narrow
