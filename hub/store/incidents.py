"""Incidents: what a person has to look at, opened once and closed once, audited both times. Inside the caller's transaction."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.domain.ids import time_ordered_id
from hub.domain.incident import IncidentKind
from hub.store.bulk import insert_ignoring
from hub.store.tables import incident
from hub.store.write import write_audit

_i = incident.c


async def open_incidents(connection: AsyncConnection, kind: IncidentKind) -> dict[str, str]:
    """The open incidents of a kind: subject → id."""
    query = select(_i.subject, _i.incident_id).where(_i.kind == kind, _i.closed_at.is_(None))
    return {row.subject: row.incident_id for row in await connection.execute(query)}


async def open_incident(
    connection: AsyncConnection,
    kind: IncidentKind,
    subject: str,
    detail: Mapping[str, Any],
    source: str,
    now: datetime,
    *,
    since: datetime | None = None,
) -> bool:
    """Open an incident of ``kind`` about ``subject``, unless one is open already; whether it was opened.

    ``since`` (default ``now``) is when its cause began. Processes that see the same cause give the incident the same id, so
    that one of them opens it; and closed by a person, the same cause does not open it again.
    """
    if subject in await open_incidents(connection, kind):
        return False
    incident_id = time_ordered_id(since or now, kind, subject)
    row = {
        "incident_id": incident_id,
        "kind": kind,
        "subject": subject,
        "opened_at": now,
        "detail": dict(detail),
    }
    if not (await connection.execute(insert_ignoring(connection, incident).values(row))).rowcount:
        return False
    said = {"incident": incident_id, "kind": kind, **detail}
    opened = AuditEntry(Code.INCIDENT_OPENED, now, source, Outcome.SERIOUS_FAILURE, detail=said)
    await write_audit(connection, [opened])
    return True


async def close_incident(
    connection: AsyncConnection,
    incident_id: str,
    because: str,
    source: str,
    now: datetime,
    by: str | None = None,
) -> bool:
    """Close it; whether it was open. ``by`` is the operator, where one did it."""
    done = await connection.execute(
        update(incident)
        .where(_i.incident_id == incident_id, _i.closed_at.is_(None))
        .values(closed_at=now, closed_because=because)
    )
    if not done.rowcount:
        return False
    said = {"incident": incident_id, "because": because}
    entry = AuditEntry(Code.INCIDENT_CLOSED, now, source, user_id=by, detail=said)
    await write_audit(connection, [entry])
    return True
