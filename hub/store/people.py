"""By which numbers and which date of birth a patient is known, and the mends of what is wrong in it: a number that is not theirs, because a hospital has
registered somebody under another patient's, and a date of birth that was mistyped.

Under the locks of a batch (decision 0002), the number's first: a message with it is decided before or after, never in between.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.clocks import Clocks
from hub.domain.ids import NHS_AUTHORITY, PersonId, PersonKey, parse_nhs_number
from hub.domain.transfer import Transfer
from hub.domain.trust import Directory
from hub.journey.advance import hears_who_it_is
from hub.journey.known import Known, Person
from hub.journey.ring import number_taken
from hub.store import tables as t
from hub.store.bulk import among
from hub.store.clocks import write_rung
from hub.store.load import load_people, lock_key
from hub.store.queries import NotFoundError
from hub.store.write import write_audit

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A number that is, or was, said to be a person's. ``record`` is the one of the person's records that it is about."""

    record: Person
    transfers: tuple[Transfer, ...]
    """Of all the person's records: whoever is a party of one may have been told the number."""

    @property
    def told(self) -> list[Transfer]:
        """Those whose hospitals are told by the hub; the others have to be phoned, as far as it matters to them."""
        return [each for each in self.transfers if hears_who_it_is(each)]


@dataclass(frozen=True, slots=True)
class Born:
    """A person whose date of birth is said. ``otherwise`` are those of their records that hold another date, or none."""

    person_id: PersonId
    otherwise: tuple[Person, ...]
    open_transfers: tuple[Transfer, ...]


async def known_by(engine: AsyncEngine, number: str, reader: str, now: datetime) -> list[Row]:
    """The records of everybody who is known by this number, whoever issued it, or by this id of the hub's: their numbers, what was taken from
    them, their transfers. These are patients' data, so that ``reader`` has read them is written down first, for each patient.
    """
    i = t.person_identifier.c
    nhs = and_(i.authority == NHS_AUTHORITY, i.value == parse_nhs_number(number).digits)
    async with engine.begin() as connection:
        rows = await connection.execute(select(i.person_id).where(or_(i.value == number, nhs)))
        known = await load_people(connection, {*rows.scalars(), number})
        people = sorted({known.root(each).id for each in known.persons})
        entries = [
            AuditEntry(Code.IDENTITY_READ, now, "cli", person_id=each, user_id=reader) for each in people
        ]
        await write_audit(connection, entries)
    return [_row(record, known) for each in people for record in known.group(each)]


def _row(record: Person, known: Known) -> Row:
    own = [each for each in known.transfers_of_person(record.id) if each.person_id == record.id]
    return {
        "person_id": record.id,
        "merged_into": record.merged_into,
        "birth_date": record.birth_date,
        "numbers": [{"of": key.authority, "number": key.value} for key in sorted(record.keys)],
        "not_theirs": [{"of": key.authority, "number": key.value} for key in sorted(record.not_theirs)],
        "transfers": [
            {
                "transfer_id": each.id,
                "sender": each.sender,
                "receiver": each.receiver,
                "state": each.state.value,
                "open": each.is_open,
            }
            for each in own
        ],
    }


async def case_of(engine: AsyncEngine, person_id: str, key: PersonKey, *, back: bool = False) -> Case:
    """What `take_number`, or `take_back`, would be about. Raises NotFoundError."""
    async with engine.connect() as connection:
        return (await _case(connection, person_id, key, back=back))[0]


async def take_number(
    engine: AsyncEngine,
    person_id: str,
    key: PersonKey,
    because: str,
    directory: Directory,
    clocks: Clocks,
    now: datetime,
    by: str,
) -> Case:
    """Take a number from the record of this person that has it. Nobody has it then, and who gives it for this person asks a question. The hospitals
    of their open transfers are told. Audited, with ``by``, the operator. Raises NotFoundError: this person is not known by that number.
    """
    async with engine.begin() as connection:
        case, _ = await _case(connection, person_id, key)
        i, taken = t.person_identifier, t.person_not_theirs
        await connection.execute(delete(i).where(i.c.value == key.value, i.c.authority == key.authority))
        row = {
            "person_id": case.record.id,
            "authority": key.authority,
            "value": key.value,
            "since": now,
        }
        await connection.execute(insert(taken), [row])
        detail = {"transfers": [each.id for each in case.transfers if each.is_open]}
        await write_audit(connection, [_said(case, key, because, now, by, detail)])
        rung = [number_taken(each, whose(key), directory, now, by) for each in case.told]
        await write_rung(connection, rung, clocks, now)
    return case


async def take_back(
    engine: AsyncEngine, person_id: str, key: PersonKey, because: str, now: datetime, by: str
) -> Case:
    """What `take_number` said was wrong: the person's next message with the number brings it back, if nobody else has it by then. Audited.
    Raises NotFoundError: it was not said of this person.
    """
    async with engine.begin() as connection:
        case, records = await _case(connection, person_id, key, back=True)
        taken = t.person_not_theirs.c
        await connection.execute(
            delete(t.person_not_theirs).where(
                among(taken.person_id, records, connection),
                taken.authority == key.authority,
                taken.value == key.value,
            )
        )
        await write_audit(connection, [_said(case, key, because, now, by, {"taken_back": True})])
    return case


async def born_of(engine: AsyncEngine, person_id: str, birth_date: str) -> Born:
    """What `set_birth_date` would be about. Raises NotFoundError."""
    async with engine.connect() as connection:
        return await _born(connection, person_id, birth_date)


async def set_birth_date(
    engine: AsyncEngine, person_id: str, birth_date: str, because: str, now: datetime, by: str
) -> Born:
    """Let all of a person's records hold this date of birth (a FHIR date): what gives another one for them asks a question from now on, and what gives
    this one does not. Audited, with ``by``, the operator, if any held another. Raises NotFoundError.
    """
    async with engine.begin() as connection:
        born = await _born(connection, person_id, birth_date)
        records = [each.id for each in born.otherwise]
        if not records:
            return born
        await connection.execute(
            update(t.person)
            .where(among(t.person.c.person_id, records, connection))
            .values(birth_date=birth_date)
        )
        transfers = [each.id for each in born.open_transfers]
        detail = {"because": because, "records": records, "transfers": transfers}
        said = AuditEntry(
            Code.IDENTITY_BIRTH_DATE_SET, now, "cli", person_id=born.person_id, user_id=by, detail=detail
        )
        await write_audit(connection, [said])
    return born


async def _born(connection: AsyncConnection, person_id: str, birth_date: str) -> Born:
    """A person's records and open transfers, locked."""
    known = await load_people(connection, [person_id])
    person = PersonId(person_id)
    if person not in known.persons:
        raise NotFoundError(person_id)
    otherwise = tuple(each for each in known.group(person) if each.birth_date != birth_date)
    transfers = tuple(each for each in known.transfers_of_person(person) if each.is_open)
    return Born(known.root(person).id, otherwise, transfers)


def whose(key: PersonKey) -> str:
    """What kind of number it is, without the number."""
    return (
        "an NHS number"
        if key.authority == NHS_AUTHORITY
        else f"a number of {key.authority.partition('|')[0]}"
    )


async def _case(
    connection: AsyncConnection, person_id: str, key: PersonKey, *, back: bool = False
) -> tuple[Case, list[PersonId]]:
    """Whose number it is said to be, or not to be, locked; with all the person's records."""
    await lock_key(connection, key)
    known = await load_people(connection, [person_id])
    records = known.group(PersonId(person_id))
    about = [each for each in records if key in (each.not_theirs if back else each.keys)]
    if not about:
        raise NotFoundError(person_id)
    case = Case(about[0], tuple(known.transfers_of_person(PersonId(person_id))))
    return case, [each.id for each in records]


def _said(case: Case, key: PersonKey, because: str, now: datetime, by: str, more: Row) -> AuditEntry:
    detail = {"authority": key.authority, "because": because, **more}
    return AuditEntry(
        Code.IDENTITY_NUMBER_TAKEN, now, "cli", person_id=case.record.id, user_id=by, detail=detail
    )
