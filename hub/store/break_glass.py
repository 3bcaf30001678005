"""Breaking the glass: a clinician sees a patient without a relationship, for an hour; it is audited, told, and looked at afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.incident import IncidentKind
from hub.domain.transfer import GLASS_BROKEN, HUB, Transfer
from hub.domain.trust import Directory
from hub.fhir.outgoing import Occasion
from hub.journey.route import from_the_hub
from hub.store import tables as t
from hub.store.bulk import insert_rows
from hub.store.incidents import close_incident, open_incident, open_incidents
from hub.store.load import lock_user, with_facts
from hub.store.queries import NotFoundError
from hub.store.search import one_record
from hub.store.write import outbox_row, write_audit

LASTS = timedelta(minutes=60)
REASON_MIN = 20
"""Characters: a word is no reason (DOMAIN, 5.4)."""
ASKED_TWICE = timedelta(minutes=5)
"""Who asks again so soon, with the same words, has heard no answer or clicked twice: that is one grant."""

_b = t.break_glass.c


@dataclass(frozen=True, slots=True)
class Grant:
    """Who sees whom, until when (UTC). ``reason`` is the user's own words and is kept in this table only."""

    id: str
    trust: OdsCode
    user_id: str
    role_id: str
    person_id: str
    reason: str
    granted_at: datetime

    @property
    def expires_at(self) -> datetime:
        return self.granted_at + LASTS


async def open_for(engine: AsyncEngine, trust: str, user_id: str, now: datetime) -> frozenset[str]:
    """The patients, merged records included, for whom this user's grant holds at ``now``."""
    query = select(_b.person_id).where(
        _b.user_id == user_id, _b.trust == trust, _b.granted_at <= now, _b.expires_at > now
    )
    async with engine.connect() as connection:
        return await one_record(connection, set((await connection.execute(query)).scalars()))


async def grant(
    engine: AsyncEngine, given: Grant, persons: Sequence[str], source: str, directory: Directory
) -> Grant:
    """Let the user see the patient, and tell every trust whose transfers they are, in one transaction; the grant that holds, which is one
    of a moment ago if they ask twice.

    ``persons`` are all records of the patient.
    """
    async with engine.begin() as connection:
        await lock_user(connection, given.trust, given.user_id)
        before = await _of_a_moment_ago(connection, given, persons)
        if before is not None:
            return before
        rows = await connection.execute(
            select(t.transfer).where(t.transfer.c.person_id.in_(persons)).order_by(t.transfer.c.changed_at)
        )
        transfers = await with_facts(connection, rows.all())
        owners = {
            end: each
            for each in transfers
            for end in (each.sender, each.receiver)
            if end != given.trust and end in directory and each.party(end) is not None
        }
        await connection.execute(
            insert(t.break_glass).values(
                grant_id=given.id,
                trust=given.trust,
                user_id=given.user_id,
                role_id=given.role_id,
                person_id=given.person_id,
                reason=given.reason,
                granted_at=given.granted_at,
                expires_at=given.expires_at,
            )
        )
        for owner, transfer in sorted(owners.items()):
            await _tell(connection, given, owner, transfer, directory)
            detail = {"grant": given.id, "owner": owner, "by": given.trust}
            subject = f"{given.id} {owner}"
            await open_incident(
                connection, IncidentKind.GLASS_BROKEN, subject, detail, source, given.granted_at
            )
        said = {"grant": given.id, "owners": sorted(owners), "until": given.expires_at.isoformat()}
        entry = AuditEntry(
            Code.GLASS_BROKEN,
            given.granted_at,
            source,
            trust=given.trust,
            person_id=given.person_id,
            user_id=given.user_id,
            role_id=given.role_id,
            detail=said,
        )
        await write_audit(connection, [entry])
    return given


async def _of_a_moment_ago(connection: AsyncConnection, given: Grant, persons: Sequence[str]) -> Grant | None:
    """The same user's grant, in the same role and for the same reason, for the same patient."""
    query = select(_b.grant_id, _b.person_id, _b.granted_at).where(
        _b.trust == given.trust,
        _b.user_id == given.user_id,
        _b.role_id == given.role_id,
        _b.person_id.in_(persons),
        _b.reason == given.reason,
        _b.granted_at > given.granted_at - ASKED_TWICE,
    )
    row = (await connection.execute(query.order_by(_b.granted_at.desc()).limit(1))).one_or_none()
    return (
        replace(given, id=row.grant_id, person_id=row.person_id, granted_at=row.granted_at) if row else None
    )


async def _tell(
    connection: AsyncConnection, given: Grant, owner: OdsCode, transfer: Transfer, directory: Directory
) -> None:
    """A message for the owner's privacy officer, in its inbox like any other."""
    identity = time_ordered_id(given.granted_at, GLASS_BROKEN, given.id, owner)
    note = (
        f"For your privacy officer: a clinician of {given.trust}, in role {given.role_id}, has broken the glass for this patient until "
        f"{given.expires_at:%Y-%m-%d %H:%M} UTC. Grant {given.id}. Please look at it within five working days."
    )
    told = from_the_hub(Occasion(EventId(identity), HUB, given.granted_at, given.granted_at), transfer, GLASS_BROKEN, note, directory)  # fmt: skip
    rows = [outbox_row(out, given.granted_at) for out in told if out.receiver == owner]
    await insert_rows(connection, t.outbox, rows)


async def grants(engine: AsyncEngine, *, open_only: bool = False) -> list[dict[str, Any]]:
    """Every grant, the last first; ``open_only``: those that nobody has looked at."""
    query = select(t.break_glass).order_by(_b.granted_at.desc())
    if open_only:
        query = query.where(_b.reviewed_at.is_(None))
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(query)).mappings()]


async def review(engine: AsyncEngine, grant_id: str, by: str, verdict: str, now: datetime) -> None:
    """Somebody looked at it: ``verdict`` is justified or not-justified; audited. Raises NotFoundError."""
    async with engine.begin() as connection:
        row = (
            await connection.execute(
                update(t.break_glass)
                .where(_b.grant_id == grant_id, _b.reviewed_at.is_(None))
                .values(reviewed_at=now, reviewed_by=by, verdict=verdict)
                .returning(_b.trust, _b.person_id, _b.user_id)
            )
        ).one_or_none()
        if row is None:
            raise NotFoundError(grant_id)
        for subject, incident in (await open_incidents(connection, IncidentKind.GLASS_BROKEN)).items():
            if subject.startswith(f"{grant_id} "):
                await close_incident(connection, incident, verdict, "cli", now, by)
        detail = {"grant": grant_id, "reviewed_user": row.user_id, "verdict": verdict}
        entry = AuditEntry(
            Code.GLASS_REVIEWED,
            now,
            "cli",
            trust=row.trust,
            person_id=row.person_id,
            user_id=by,
            detail=detail,
        )
        await write_audit(connection, [entry])


async def close_ended(engine: AsyncEngine, now: datetime) -> list[str]:
    """Write down of each grant whose hour is over that it is; their ids. Several may do it: each is written down once."""
    async with engine.begin() as connection:
        rows = (
            await connection.execute(
                update(t.break_glass)
                .where(_b.expires_at <= now, _b.closed_at.is_(None))
                .values(closed_at=now)
                .returning(_b.grant_id, _b.trust, _b.person_id, _b.user_id, _b.role_id, _b.expires_at)
            )
        ).all()
        entries = [
            AuditEntry(
                Code.GLASS_CLOSED,
                now,
                "clock",
                trust=row.trust,
                person_id=row.person_id,
                occurred_at=row.expires_at,
                user_id=row.user_id,
                role_id=row.role_id,
                detail={"grant": row.grant_id},
            )
            for row in rows
        ]
        await write_audit(connection, entries)
    return [row.grant_id for row in rows]
