"""Whom a record stands for, and by what a patient is known outside, for whoever may hear it: the audit itself names patients by the
hub's own ids.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.domain.ids import NHS_AUTHORITY
from hub.fhir.audit_event import KnownAs, LocalNumber
from hub.store.bulk import among
from hub.store.tables import person, person_identifier


@dataclass(frozen=True, slots=True)
class Patient:
    """One patient: all records, and the one that stands for them."""

    record: str
    records: frozenset[str]


async def patients_of(connection: AsyncConnection, persons: Iterable[str]) -> dict[str, Patient]:
    """Each of these records → the patient whom it stands for, however many merges lie between."""
    p = person.c
    into: dict[str, str] = {}
    known: set[str] = set()
    new = set(persons)
    while new:
        known |= new
        rows = await connection.execute(
            select(p.person_id, p.merged_into).where(
                p.merged_into.is_not(None),
                or_(among(p.person_id, new, connection), among(p.merged_into, new, connection)),
            )
        )
        into |= {row.person_id: row.merged_into for row in rows}
        new = {*into, *into.values()} - known
    stands_for: dict[str, set[str]] = {}
    for each in known:
        stands_for.setdefault(_root(each, into), set()).add(each)
    return {
        each: Patient(root, frozenset(records)) for root, records in stands_for.items() for each in records
    }


def _root(record: str, into: Mapping[str, str]) -> str:
    while record in into:
        record = into[record]
    return record


async def known_as(
    engine: AsyncEngine, person_ids: Collection[str], patients: Mapping[str, Patient] | None = None
) -> dict[str, KnownAs]:
    """Records → the numbers that their patient has now, whichever of the records has them. ``patients``: those that are known already."""
    if not person_ids:
        return {}
    i = person_identifier.c
    async with engine.connect() as connection:
        found = dict(patients or {})
        if missing := set(person_ids) - found.keys():
            found |= await patients_of(connection, missing)
        records = {each for one in person_ids for each in found[one].records}
        # Ids of messages sort by time: of two numbers the newer one stands.
        rows = await connection.execute(
            select(i.person_id, i.authority, i.value)
            .where(among(i.person_id, records, connection))
            .order_by(i.event_id.desc(), i.authority, i.value)
        )
        numbers: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            numbers.setdefault(row.person_id, []).append((row.authority, row.value))
    return {one: _known(found[one], numbers) for one in person_ids}


def _known(patient: Patient, numbers: Mapping[str, Sequence[tuple[str, str]]]) -> KnownAs:
    """The numbers of the record that stands for the others go before theirs."""
    in_order = [patient.record, *sorted(patient.records - {patient.record})]
    said = [number for record in in_order for number in numbers.get(record, ())]
    nhs = next((value for authority, value in said if authority == NHS_AUTHORITY), None)
    for authority, value in said:
        if authority != NHS_AUTHORITY:
            ods, _, system = authority.partition("|")
            return KnownAs(nhs, LocalNumber(ods, system, value))
    return KnownAs(nhs)
