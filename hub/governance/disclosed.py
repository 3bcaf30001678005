"""Entries as AuditEvents, for those that the audit is passed on to."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from hub.domain.delivery import Outgoing
from hub.fhir import decimals
from hub.fhir.audit_event import KnownAs, Observer, audit_event
from hub.fhir.headers import CONTENT_TYPE, CONTENT_TYPE_FHIR
from hub.store.patients import known_as

Row = Mapping[str, Any]


def as_audit_events(
    engine: AsyncEngine, to: str, names: Mapping[str, str], observer: Observer
) -> Callable[[Sequence[Row]], Awaitable[list[Outgoing]]]:
    """Sealed entries → what a feed sends: keyed by the event that the entry is about, named by that and the entry's number, numbered by
    its leaf. After a backup was put back the same event's entry can have the same leaf and be another act, but not the same name.
    """

    async def render(rows: Sequence[Row]) -> list[Outgoing]:
        patients = await known_as(engine, {row["person_id"] for row in rows if row["person_id"]})
        return [_outgoing(row, to, patients.get(row["person_id"]), names, observer) for row in rows]

    return render


def _outgoing(
    row: Row, to: str, person: KnownAs | None, names: Mapping[str, str], observer: Observer
) -> Outgoing:
    about = row["event_id"] or f"entry-{row['entry']}"
    return Outgoing(
        seq=row["leaf_index"],
        receiver="audit",
        topic=to,
        key=about,
        headers={CONTENT_TYPE: CONTENT_TYPE_FHIR},
        payload=decimals.dumps(audit_event(row, person, names, observer)),
        event_id=f"{about}/{row['entry']}",
    )
