"""By what a patient is known outside, for whoever may hear it: the audit itself names patients by the hub's own ids."""

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.ids import NHS_AUTHORITY
from hub.fhir.audit_event import KnownAs, LocalNumber
from hub.store.bulk import among
from hub.store.tables import person, person_identifier


async def known_as(engine: AsyncEngine, person_ids: Collection[str]) -> dict[str, KnownAs]:
    """Records → their NHS number and a hospital's number; a record without a number has that of the one it was merged into."""
    if not person_ids:
        return {}
    p, i = person.c, person_identifier.c
    async with engine.connect() as connection:
        merged = {
            row.person_id: row.merged_into
            for row in await connection.execute(
                select(p.person_id, p.merged_into).where(
                    among(p.person_id, person_ids, connection), p.merged_into.is_not(None)
                )
            )
        }
        rows = await connection.execute(
            select(i.person_id, i.authority, i.value)
            .where(among(i.person_id, {*person_ids, *merged.values()}, connection))
            .order_by(i.person_id, i.authority, i.value)
        )
        numbers: dict[str, list[tuple[str, str]]] = {}
        for row in rows:
            numbers.setdefault(row.person_id, []).append((row.authority, row.value))
    return {
        each: _known([*numbers.get(each, ()), *numbers.get(merged.get(each, ""), ())]) for each in person_ids
    }


def _known(numbers: list[tuple[str, str]]) -> KnownAs:
    nhs = next((value for authority, value in numbers if authority == NHS_AUTHORITY), None)
    for authority, value in numbers:
        if authority != NHS_AUTHORITY:
            ods, _, system = authority.partition("|")
            return KnownAs(nhs, LocalNumber(ods, system, value))
    return KnownAs(nhs)
