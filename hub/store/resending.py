"""Sending again what a receiver's topic holds no longer: the mend when a topic was made anew or lost its end."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.incident import IncidentKind
from hub.store.bulk import numbered
from hub.store.incidents import close_incident, open_incidents
from hub.store.outbox import FORGOTTEN
from hub.store.queries import NotFoundError
from hub.store.tables import outbox
from hub.store.write import write_audit

_c = outbox.c
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Sent:
    """A row that is marked as sent. ``is_kept``: its content has not aged out."""

    seq: int
    event_id: str
    sent_at: datetime
    is_kept: bool


async def sent_after(
    engine: AsyncEngine, receiver: str, topics: Collection[str], after: int, since: datetime
) -> list[Sent]:
    """What was sent to these topics of a receiver ``since``, and after the row with number ``after`` (0: whatever it was): in the order of
    sending, which is not always that of the numbers. What a receiver fetched or was posted never lay in a topic.

    To be asked before the topics are read: what is sent meanwhile would seem to be missing. Raises NotFoundError: no such number was sent.
    """
    ours = and_(_c.receiver == receiver, _c.topic.in_(topics), _c.state == "sent")
    lay_there = or_(_c.sent_partition >= 0, _c.sent_partition == FORGOTTEN)
    async with engine.connect() as connection:
        behind = _c.sent_at >= since
        if after:
            at = await connection.scalar(select(_c.sent_at).where(ours, _c.seq == after))
            if at is None:
                raise NotFoundError(str(after))
            behind = and_(behind, or_(_c.sent_at > at, and_(_c.sent_at == at, _c.seq > after)))
        query = (
            select(_c.seq, _c.event_id, _c.sent_at, _c.payload.is_not(None))
            .where(ours, lay_there, behind)
            .order_by(_c.sent_at, _c.seq)
        )
        return [Sent(*tuple(row)) for row in await connection.execute(query)]


async def send_again(
    engine: AsyncEngine,
    receiver: str,
    topics: Collection[str],
    gone: Sequence[Sent],
    because: str,
    now: datetime,
    by: str,
) -> int:
    """Let these rows wait as if they had never been sent; how many do. What was sent again since they were looked for is left alone.

    Audited, with ``by``, the operator; closes the incidents that said that what was sent to these topics is gone, unless nothing waits.
    """
    waiting, seqs = 0, sorted(each.seq for each in gone)
    seen = max((each.sent_at for each in gone), default=now)
    async with engine.begin() as connection:
        for at in range(0, len(seqs), _AT_ONCE):
            these = numbered(_c.seq, seqs[at : at + _AT_ONCE], connection)
            done = await connection.execute(
                update(outbox)
                .where(these, _c.state == "sent", _c.sent_at <= seen, _c.payload.is_not(None))
                .values(state="pending", sent_at=None, sent_partition=None, sent_offset=None)
            )
            waiting += done.rowcount
        if not waiting:
            return 0
        detail = {"rows": waiting, "first_seq": seqs[0], "last_seq": seqs[-1], "because": because}
        entry = AuditEntry(Code.DELIVERY_RETRY, now, "cli", counterpart=receiver, user_id=by, detail=detail)
        await write_audit(connection, [entry])
        for subject, incident in (await open_incidents(connection, IncidentKind.SENT_RECORDS_GONE)).items():
            if subject.partition("/")[0] in topics:
                await close_incident(connection, incident, because, "cli", now, by)
    return waiting
