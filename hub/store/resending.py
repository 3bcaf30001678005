"""Sending again what a receiver's topic holds no longer: the mend when a topic was made anew or lost its end."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.incident import IncidentKind
from hub.store.bulk import numbered
from hub.store.incidents import close_incident, open_incidents
from hub.store.tables import outbox
from hub.store.write import write_audit

_c = outbox.c
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Sent:
    """A row that is marked as sent. ``is_kept``: its content has not aged out."""

    seq: int
    event_id: str
    is_kept: bool


async def sent_after(engine: AsyncEngine, receiver: str, topics: Collection[str], after: int) -> list[Sent]:
    """What was sent to these topics of a receiver behind number ``after``, in sequence. To be asked before the topics are read: what is
    sent meanwhile would seem to be missing.
    """
    query = (
        select(_c.seq, _c.event_id, _c.payload.is_not(None))
        .where(_c.receiver == receiver, _c.topic.in_(topics), _c.state == "sent", _c.seq > after)
        .order_by(_c.seq)
    )
    async with engine.connect() as connection:
        return [Sent(*tuple(row)) for row in await connection.execute(query)]


async def send_again(
    engine: AsyncEngine,
    receiver: str,
    topics: Collection[str],
    seqs: Sequence[int],
    because: str,
    now: datetime,
    by: str,
) -> int:
    """Let these rows wait as if they had never been sent; how many do. Audited, with ``by``, the operator; closes the incidents that said
    that what was sent to these topics is gone.
    """
    waiting = 0
    async with engine.begin() as connection:
        for at in range(0, len(seqs), _AT_ONCE):
            these = numbered(_c.seq, seqs[at : at + _AT_ONCE], connection)
            done = await connection.execute(
                update(outbox)
                .where(and_(these, _c.state == "sent", _c.payload.is_not(None)))
                .values(state="pending", sent_at=None, sent_partition=None, sent_offset=None)
            )
            waiting += done.rowcount
        if waiting:
            detail = {"rows": waiting, "first_seq": min(seqs), "last_seq": max(seqs), "because": because}
            entry = AuditEntry(
                Code.DELIVERY_RETRY, now, "cli", counterpart=receiver, user_id=by, detail=detail
            )
            await write_audit(connection, [entry])
        for subject, incident in (await open_incidents(connection, IncidentKind.SENT_RECORDS_GONE)).items():
            if subject.rpartition("/")[0] in topics:
                await close_incident(connection, incident, because, "cli", now, by)
    return waiting
