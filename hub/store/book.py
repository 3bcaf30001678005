"""The book as it is read: every audit entry, sealed or not sealed yet, once; and the questions people ask of it.

* An entry names a patient by one of the hub's records. Who asks by a number asks for all records of that patient, over any
  number of merges, in both directions.
* Pages are by time and then by the entry's number, which never change: an entry that is sealed between two pages, or arrives
  between them, makes no other entry be seen twice or be passed over.
* Whoever reads sees what their scope allows (`Scope`), and that they read is written down before they are answered.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Subquery,
    Table,
    and_,
    case,
    false,
    func,
    literal,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.ids import NHS_AUTHORITY, OdsCode, parse_nhs_number, parse_uuid
from hub.fhir.audit_event import KnownAs
from hub.fhir.systems import NHS_NUMBER
from hub.store import acts
from hub.store import tables as t
from hub.store.bulk import among, is_postgresql
from hub.store.load import is_receivers
from hub.store.patients import Patient, known_as, patients_of
from hub.store.search import Token
from hub.store.tables import audit_entry, audit_pending
from hub.store.write import write_audit

FIELDS = tuple(audit_pending.c.keys())
"""What an entry says, its number first."""

Row = dict[str, Any]
Place = tuple[datetime, int]
"""Where a page ends: the time and the number of an entry."""

LOOKED_AT_MAX = 20_000
"""So many entries one page looks at. One that found too little among them says where to go on: no question reads the whole log."""

IN_VAIN = frozenset({Code.AUDIT_READ, Code.AUDIT_EXPORTED, Code.ACCESS_DENIED})
"""What somebody is written down for who may have learned nothing of the patient: for whom the patient is a stranger's, the entry says
nothing of the patient either. Else asking twice would tell whether the hub knows a number.
"""


def whole() -> Subquery:
    """All entries with ``leaf_index``, which is NULL where an entry is not sealed yet.

    One statement sees each entry once: what is sealed in the meantime is still where it was for it.
    """
    pending = select(literal(None, BigInteger).label("leaf_index"), *audit_pending.c)
    sealed = select(audit_entry.c.leaf_index, *(audit_entry.c[name] for name in FIELDS))
    return union_all(pending, sealed).subquery("book")


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the book somebody may see: of ``trusts`` the patients, and what these trusts did or had done to them.

    ``trusts`` None: everything, for those who run the hub. ``own_acts_only``: what these trusts did, and nothing else.
    """

    trusts: frozenset[OdsCode] | None = None
    own_acts_only: bool = False


EVERYTHING = Scope()

Names = Literal[
    "trust", "counterpart", "user_id", "role_id", "client_id",
    "transfer_id", "event_id", "request_id", "system",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Is:
    """A column of an entry holds this; None: nothing."""

    column: Names
    value: str | None


def of_request(request_id: str) -> list[Is]:
    """That an entry is of this request: its id in the one form that UUIDs are kept in, and as it is written, as older entries have it."""
    return [
        Is("request_id", each) for each in dict.fromkeys((parse_uuid(request_id) or request_id, request_id))
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question. Each field that holds something narrows.

    ``patients``: any of these numbers. ``fits``: of each group, one must hold. ``at`` are half-open ranges (from, before) in UTC,
    each of which must hold. ``flag`` is true in the entry's detail. ``left``: what left this trust,
    which is what it disclosed and what others read or found of its transfers. ``after`` is where the page before ended.
    """

    patients: Sequence[Token] = ()
    fits: Sequence[Sequence[Is]] = ()
    entries: Sequence[int] | None = None
    codes: frozenset[Code] | None = None
    outcomes: frozenset[int] | None = None
    at: Sequence[tuple[datetime | None, datetime | None]] = ()
    flag: str | None = None
    left: OdsCode | None = None
    oldest_first: bool = False
    after: Place | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, for the audit and for what they may see. ``who`` are the fields of `AuditEntry` that say who acted; ``parameters``
    the names of what was asked by, never what they held. ``exported``: the answer leaves the hub as a file.
    """

    system: str
    at: datetime
    who: Mapping[str, Any]
    parameters: Collection[str] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)
    scope: Scope = EVERYTHING
    exported: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """``after``: where to go on, if there may be more. ``total``: how many there are on all pages, if that was asked for. ``patients``:
    those who were named, by record.
    """

    rows: list[Row]
    after: Place | None = None
    total: int | None = None
    patients: Mapping[str, Patient] = field(default_factory=dict)


async def page(engine: AsyncEngine, asked: Asked, asking: Asking, *, counted: bool = False) -> Page:
    """One page of what the reader may see; that it was read is written in the same transaction, before the answer is given.

    ``limit`` 0 counts and shows nothing.
    """
    async with engine.begin() as connection:
        named = await _named(connection, asked.patients, asking.scope) if asked.patients else None
        found = Page([])
        if asked.limit:
            found = await _look(connection, asked, asking.scope, named)
        if counted:
            found = replace(found, total=await _count(connection, asked, asking.scope, named))
        await write_audit(connection, await _read(connection, asked, asking, named, found))
    return replace(found, patients=named or {})


async def entries(engine: AsyncEngine, asked: Asked, asking: Asking, *, most: int = 100_000) -> Page:
    """Everything that is asked for, at most so many, read as one question and written down once; ``after`` if there is more."""
    async with engine.begin() as connection:
        named = await _named(connection, asked.patients, asking.scope) if asked.patients else None
        rows = [row async for row in _all(connection, asked, asking.scope, named, most + 1)]
        after = _place(rows[most - 1]) if len(rows) > most else None
        found = Page(rows[:most], after, patients=named or {})
        await write_audit(connection, await _read(connection, asked, asking, named, found))
    return found


async def patients(engine: AsyncEngine, tokens: Sequence[Token]) -> list[Patient]:
    """Whom these numbers stand for: a hospital's number without its system may be two hospitals' for two patients."""
    async with engine.connect() as connection:
        found = await _named(connection, tokens, EVERYTHING)
    return sorted({each.record: each for each in found.values()}.values(), key=lambda each: each.record)


async def known_numbers(engine: AsyncEngine, page: Page) -> dict[str, KnownAs]:
    """By what the patients of a page are known now: record → number, looked up for all at once."""
    return await known_as(engine, {row["person_id"] for row in page.rows if row["person_id"]}, page.patients)


# -- patients ---------------------------------------------------------------------------------------------------


async def _named(connection: AsyncConnection, tokens: Sequence[Token], scope: Scope) -> dict[str, Patient]:
    """Record → patient, for everybody whom the numbers stand for. A hospital's numbers count for whoever may see that hospital's."""
    i = t.person_identifier.c
    ways = [_known_by(each, scope) for each in tokens]
    rows = await connection.execute(select(i.person_id).where(or_(*ways)))
    return await patients_of(connection, set(rows.scalars()))


def _known_by(token: Token, scope: Scope) -> ColumnElement[bool]:
    i = t.person_identifier.c
    nhs = and_(i.value == parse_nhs_number(token.value).digits, i.authority == NHS_AUTHORITY)
    if token.system == NHS_NUMBER:
        return nhs
    of_hospital = i.authority != NHS_AUTHORITY if scope.trusts is None else _of_hospitals(scope.trusts)
    if token.system is not None:
        of_hospital = and_(of_hospital, i.authority.endswith(f"|{token.system}", autoescape=True))
    own = and_(i.value == token.value, of_hospital)
    return own if token.system is not None else or_(nhs, own)


def _of_hospitals(trusts: Collection[OdsCode]) -> ColumnElement[bool]:
    authority = t.person_identifier.c.authority
    return or_(*(authority.startswith(f"{each}|", autoescape=True) for each in sorted(trusts)))


async def _theirs(
    connection: AsyncConnection,
    trusts: Collection[OdsCode],
    persons: Collection[str],
    named: Mapping[str, Patient] | None,
) -> set[str]:
    """Those of these records whose patient is these trusts': one is an end of a transfer of theirs, or has a number for them."""
    if not persons:
        return set()
    patients = named if named is not None else await patients_of(connection, persons)
    records = {each for patient in patients.values() for each in patient.records}
    x, i = t.transfer.c, t.person_identifier.c
    at_an_end = _at_an_end(connection, trusts)
    by_transfer = select(x.person_id).where(among(x.person_id, records, connection), at_an_end)
    by_number = select(i.person_id).where(among(i.person_id, records, connection), _of_hospitals(trusts))
    own = set((await connection.execute(union_all(by_transfer, by_number))).scalars())
    return {each for each in persons if patients[each].records & own}


def _at_an_end(connection: AsyncConnection, trusts: Collection[OdsCode]) -> ColumnElement[bool]:
    """Which transfers are these trusts'. What the receiver was not asked is not there for it."""
    x = t.transfer.c
    return or_(
        among(x.sender, trusts, connection),
        and_(among(x.receiver, trusts, connection), is_receivers(t.transfer)),
    )


async def _their_transfers(
    connection: AsyncConnection, trusts: Collection[OdsCode], transfers: Collection[str]
) -> set[str]:
    """Those of these transfers that have one of these trusts at an end."""
    if not transfers:
        return set()
    x = t.transfer.c
    query = select(x.transfer_id).where(
        among(x.transfer_id, transfers, connection), _at_an_end(connection, trusts)
    )
    return set((await connection.execute(query)).scalars())


# -- what is found ----------------------------------------------------------------------------------------------


async def _look(
    connection: AsyncConnection, asked: Asked, scope: Scope, named: Mapping[str, Patient] | None
) -> Page:
    """One page, and where to go on. As many entries are looked at as it takes, but for `LOOKED_AT_MAX`."""
    at_once = asked.limit + 1 if scope.trusts is None else max(4 * asked.limit, 500)
    found: list[Row] = []
    after, looked_at = asked.after, 0
    while True:
        rows = await _rows(connection, replace(asked, after=after, limit=at_once), named)
        found += await _seen(connection, rows, scope, named, asked)
        looked_at += len(rows)
        if len(found) > asked.limit:
            return Page(found[: asked.limit], _place(found[asked.limit - 1]))
        if len(rows) < at_once:
            return Page(found)
        after = _place(rows[-1])
        if looked_at >= LOOKED_AT_MAX:
            return Page(found, after)


async def _all(
    connection: AsyncConnection,
    asked: Asked,
    scope: Scope,
    named: Mapping[str, Patient] | None,
    most: int,
) -> AsyncIterator[Row]:
    left = most
    page = Page([], asked.after)
    while left:
        page = await _look(connection, replace(asked, after=page.after, limit=min(left, 2000)), scope, named)
        for row in page.rows:
            yield row
        left -= len(page.rows)
        if page.after is None:
            return


def _place(row: Row) -> Place:
    return row["at"], row["entry"]


async def _rows(connection: AsyncConnection, asked: Asked, named: Mapping[str, Patient] | None) -> list[Row]:
    # What waits is read first: an entry that is sealed in the meantime is met twice, and none is missed.
    found: dict[int, Row] = {}
    for table in (audit_pending, audit_entry):
        rows = await connection.execute(_select(connection, table, asked, named))
        found |= {row["entry"]: {str(name): value for name, value in row.items()} for row in rows.mappings()}
    return sorted(found.values(), key=_place, reverse=not asked.oldest_first)[: asked.limit]


def _select(
    connection: AsyncConnection, table: Table, asked: Asked, named: Mapping[str, Patient] | None
) -> Select[Any]:
    a = table.c
    by: list[ColumnElement[Any]] = [_time(connection, table, asked, named), a.entry]
    by = by if asked.oldest_first else [each.desc() for each in by]
    narrowed = _narrowed(connection, table, asked, named, paged=True)
    return select(*_COLUMNS[table.name]).where(true(), *narrowed).order_by(*by).limit(asked.limit)


def _time(
    connection: AsyncConnection, table: Table, asked: Asked, named: Mapping[str, Patient] | None
) -> ColumnElement[Any]:
    """What the entries are sorted by. Those of one patient, transfer or person are found by their own index and sorted then: PostgreSQL,
    which takes an act for a hundred entries, would walk through the log by time and hope to meet enough of them soon.
    """
    at = table.c.at
    few = (
        named is not None
        or asked.entries is not None
        or any(all(each.column in _FEW for each in group) for group in asked.fits)
    )
    return func.date_trunc("microseconds", at) if few and is_postgresql(connection) else at


_FEW = frozenset({"transfer_id", "event_id", "request_id", "user_id"})
"""What few entries have in common."""

_COLUMNS: Mapping[str, Sequence[ColumnElement[Any]]] = {
    table.name: (leaf, *(table.c[name] for name in FIELDS))
    for table, leaf in (
        (audit_pending, literal(None, BigInteger).label("leaf_index")),
        (audit_entry, audit_entry.c.leaf_index),
    )
}
"""The same columns from both, by table."""


def _narrowed(
    connection: AsyncConnection,
    table: Table,
    asked: Asked,
    named: Mapping[str, Patient] | None,
    *,
    paged: bool,
) -> list[ColumnElement[bool]]:
    a = table.c
    narrow: list[ColumnElement[bool]] = []
    if named is not None:
        narrow.append(among(a.person_id, named, connection))
    if asked.entries is not None:
        narrow.append(a.entry.in_(asked.entries))
    narrow += [or_(*(a[each.column] == each.value for each in group)) for group in asked.fits]
    if asked.codes is not None:
        narrow.append(among(a.code, [each.value for each in asked.codes], connection))
    if asked.outcomes is not None:
        narrow.append(a.outcome.in_(sorted(asked.outcomes)))
    if table is audit_entry:
        narrow += _of_acts(connection, asked)
    for since, before in asked.at:
        narrow += [a.at >= since] if since else []
        narrow += [a.at < before] if before else []
    if asked.flag is not None:
        narrow.append(a.detail[asked.flag].as_boolean())
    if asked.left is not None:
        x = t.transfer.c
        as_receiver = and_(x.receiver == asked.left, is_receivers(t.transfer))
        of_its = select(x.transfer_id).where(or_(x.sender == asked.left, as_receiver))
        narrow.append(
            or_(
                and_(a.code == Code.DISCLOSURE_SENT.value, a.trust == asked.left),
                and_(
                    a.code.in_((Code.RECORD_READ.value, Code.RECORD_SEARCHED.value)),
                    a.trust != asked.left,
                    a.transfer_id.in_(of_its),
                ),
            )
        )
    if paged and asked.after:
        at, entry = asked.after
        narrow.append(
            or_(a.at > at, and_(a.at == at, a.entry > entry))
            if asked.oldest_first
            else or_(a.at < at, and_(a.at == at, a.entry < entry))
        )
        # Said again by itself, so that the index by time begins there.
        narrow.append(a.at >= at if asked.oldest_first else a.at <= at)
    return narrow


def _of_acts(connection: AsyncConnection, asked: Asked) -> Iterator[ColumnElement[bool]]:
    """What is asked, as far as it can be said of acts as they are stored: only those that may fit are taken apart."""
    a = audit_entry.c
    if asked.entries is not None:
        yield or_(false(), *map(acts.may_be_of, asked.entries))
    if _is_notable(asked):
        yield a.notable
    elif asked.codes is not None and len(asked.codes) <= _SOUGHT_MAX:
        yield or_(false(), *(acts.may_say(connection, "code", each.value) for each in sorted(asked.codes)))
    for group in asked.fits:
        if any(each.column == "counterpart" for each in group):
            yield or_(
                *(
                    acts.may_say(connection, each.column, each.value)
                    if each.column == "counterpart" and each.value is not None
                    else a[each.column] == each.value
                    for each in group
                )
            )


_SOUGHT_MAX = 8
"""Of so many codes each is looked for in an act's text: more are soon met, and cost more than taking it apart."""


def _is_notable(asked: Asked) -> bool:
    refused = asked.outcomes is not None and 0 not in asked.outcomes
    of_glass = asked.codes is not None and all(each.value.startswith("break-glass-") for each in asked.codes)
    return refused or of_glass


# -- who may see it ---------------------------------------------------------------------------------------------


def _says_whom(asked: Asked) -> bool:
    """Whether the question itself names a patient, or a transfer, which is one patient's."""
    return bool(asked.patients) or _says_which(asked)


def _says_which(asked: Asked) -> bool:
    """Whether the question itself names a transfer."""
    return any(each.column == "transfer_id" for group in asked.fits for each in group)


@dataclass(frozen=True, slots=True)
class _Theirs:
    """Whose patients and transfers some entries name: those of the trusts in ``scope``."""

    scope: Scope
    patients: Collection[str]
    transfers: Collection[str]

    def shown(self, row: Row, asked: Asked) -> Row | None:
        """An entry as it may be seen; None: not at all. What belongs to a transfer is for that transfer's parties, also where the patient
        is known to others: anybody can write down a number.
        """
        trusts = self.scope.trusts or frozenset()
        has_patient = row["person_id"] in self.patients
        has_transfer = row["transfer_id"] is None or row["transfer_id"] in self.transfers
        visible = row["trust"] in trusts
        if not self.scope.own_acts_only:
            visible = visible or row["counterpart"] in trusts or (has_patient and has_transfer)
        if not visible:
            return None
        if row["code"] not in IN_VAIN:
            return row
        if row["person_id"] and not has_patient:
            return None if _says_whom(asked) else row | {"person_id": None, "transfer_id": None}
        if not has_transfer:
            return None if _says_which(asked) else row | {"transfer_id": None}
        return row


async def _seen(
    connection: AsyncConnection,
    rows: Sequence[Row],
    scope: Scope,
    named: Mapping[str, Patient] | None,
    asked: Asked,
) -> list[Row]:
    """Those of these entries that the reader may see, as they may see them."""
    if scope.trusts is None:
        return list(rows)
    persons = {row["person_id"] for row in rows if row["person_id"]}
    transfers = {row["transfer_id"] for row in rows if row["transfer_id"]}
    theirs = _Theirs(
        scope,
        await _theirs(connection, scope.trusts, persons, named),
        await _their_transfers(connection, scope.trusts, transfers),
    )
    return [seen for row in rows if (seen := theirs.shown(row, asked))]


async def _count(
    connection: AsyncConnection, asked: Asked, scope: Scope, named: Mapping[str, Patient] | None
) -> int:
    """How many the reader may see. Counted by patient, so that each patient is judged once."""
    per_table = []
    for table in (audit_pending, audit_entry):
        a = table.c
        tests = (
            _touches(connection, a, scope),
            among(a.code, [each.value for each in IN_VAIN], connection),
            _of_their_transfer(connection, a, scope),
        )
        groups = (
            a.person_id,
            *(
                case((test, 1), else_=0).label(name)
                for test, name in zip(tests, ("acts", "vain", "has_transfer"), strict=True)
            ),
        )
        where = _narrowed(connection, table, asked, named, paged=False)
        counted = select(*groups).where(true(), *where).subquery()
        per_table.append(select(*counted.c, func.count().label("number")).group_by(*counted.c))
    rows = (await connection.execute(union_all(*per_table))).all()
    if scope.trusts is None:
        return sum(row.number for row in rows)
    theirs = await _theirs(connection, scope.trusts, {row.person_id for row in rows if row.person_id}, named)
    return sum(row.number for row in rows if _counts(row, scope, theirs, asked))


def _touches(connection: AsyncConnection, a: Any, scope: Scope) -> ColumnElement[bool]:
    if scope.trusts is None:
        return true()
    acted = among(a.trust, scope.trusts, connection)
    return acted if scope.own_acts_only else or_(acted, among(a.counterpart, scope.trusts, connection))


def _of_their_transfer(connection: AsyncConnection, a: Any, scope: Scope) -> ColumnElement[bool]:
    if scope.trusts is None:
        return true()
    theirs = select(t.transfer.c.transfer_id).where(_at_an_end(connection, scope.trusts))
    return or_(a.transfer_id.is_(None), a.transfer_id.in_(theirs))


def _counts(row: Any, scope: Scope, theirs: Collection[str], asked: Asked) -> bool:
    """As `_Theirs.shown`."""
    has_patient = row.person_id in theirs
    if row.vain and (
        (_says_whom(asked) and row.person_id and not has_patient)
        or (_says_which(asked) and not row.has_transfer)
    ):
        return False
    return bool(row.acts) or bool(has_patient and row.has_transfer and not scope.own_acts_only)


# -- that it was read -------------------------------------------------------------------------------------------


async def _read(
    connection: AsyncConnection,
    asked: Asked,
    asking: Asking,
    named: Mapping[str, Patient] | None,
    found: Page,
) -> list[AuditEntry]:
    """What is written of a question: an entry for each patient it names, one if it names nobody."""
    about = await _about(connection, asked, named, found)
    code = Code.AUDIT_EXPORTED if asking.exported else Code.AUDIT_READ
    detail = {**asking.detail, "parameters": sorted(set(asking.parameters)), "entries": len(found.rows)}
    return [
        AuditEntry(
            code,
            asking.at,
            asking.system,
            person_id=person_id,
            transfer_id=transfer_id,
            detail=detail,
            **asking.who,
        )
        for person_id, transfer_id in about
    ]


async def _about(
    connection: AsyncConnection, asked: Asked, named: Mapping[str, Patient] | None, found: Page
) -> list[tuple[str | None, str | None]]:
    """Patients and transfers that a question names: by number, as a transfer, or as one entry."""
    if named:
        return [(record, None) for record in sorted({each.record for each in named.values()})]
    if asked.entries is not None and found.rows:
        return sorted({(row["person_id"], row["transfer_id"]) for row in found.rows}, key=str)
    x = t.transfer.c
    wanted = {
        each.value for group in asked.fits for each in group if each.column == "transfer_id" and each.value
    }
    if not wanted:
        return [(None, None)]
    rows = await connection.execute(
        select(x.person_id, x.transfer_id).where(among(x.transfer_id, wanted, connection))
    )
    return [(row.person_id, row.transfer_id) for row in rows] or [(None, None)]
