"""What is older than the policy keeps it: looked at, and let go.

Held back, whatever the policy says: what belongs to a transfer that is not over, a message in quarantine, a row that was not
delivered and the message that it tells of, and what an order not to destroy names. What goes is emptied where it lies, so that the
row still says that it was there, by which hash, and what became of it; only what says nothing of a message is deleted.

`let_go` works in transactions of a few hundred rows. Each writes an audit entry of its own, so that at any moment the book says
exactly what is gone; stopped half way, it is run again.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Select,
    Table,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    literal_column,
    null,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from hub.audit.entries import AuditEntry, Code
from hub.domain.rejection import Disposition
from hub.domain.retention import Kind, Policy, Rule
from hub.domain.transfer import ENDED
from hub.store import tables as t
from hub.store.write import write_audit

BATCH = 500
"""Rows of one transaction: short enough that nobody who writes has to wait for it."""

_m, _e, _o, _t = t.message.c, t.event.c, t.outbox.c, t.transfer.c
_s, _told, _a, _u = t.subscription.c, t.subscription_event.c, t.delivery_attempt.c, t.used_assertion.c


@dataclass(frozen=True, slots=True)
class Aged:
    """How much of one kind goes: what is older than ``before``. ``bytes`` as they lie in the database."""

    rule: Rule
    before: datetime
    rows: int
    bytes: int
    oldest: datetime | None = None


async def plan(engine: AsyncEngine, policy: Policy, now: datetime) -> list[Aged]:
    """What would go at ``now``, kind by kind. Changes nothing."""
    async with engine.connect() as connection:
        return [await _count(connection, policy, rule, now) for rule in policy.ages_out]


async def let_go(
    engine: AsyncEngine, policy: Policy, now: datetime, by: str, *, batch: int = BATCH
) -> list[Aged]:
    """Let go of what the policy keeps no longer; ``by`` is who ordered it. What went, kind by kind."""
    return [await _let_go(engine, policy, rule, now, by, batch) for rule in policy.ages_out]


async def _count(connection: AsyncConnection, policy: Policy, rule: Rule, now: datetime) -> Aged:
    before = rule.before(now)
    found = _WAYS[rule.kind].find(before, policy).subquery()
    query = select(func.count(), func.coalesce(func.sum(found.c.bytes), 0), func.min(found.c.since))
    rows, size, oldest = (await connection.execute(query.select_from(found))).one()
    return Aged(rule, before, rows, int(size), oldest)


async def _let_go(
    engine: AsyncEngine, policy: Policy, rule: Rule, now: datetime, by: str, batch: int
) -> Aged:
    before, rows, size = rule.before(now), 0, 0
    way = _WAYS[rule.kind]
    while True:
        async with engine.begin() as connection:
            query = way.find(before, policy).order_by("since").limit(batch)
            if way.locks is not None:
                # A transfer that is opened again at this moment waits for us, or we see it open.
                query = query.with_for_update(read=True, of=way.locks)
            found = (await connection.execute(query)).all()
            keys = tuple(way.table.primary_key.columns)
            aged = {tuple(row)[: len(keys)]: row.bytes for row in found}
            gone = await _changed(connection, way, keys, aged) if aged else []
            if gone:
                freed = sum(aged[key] for key in gone)
                detail = {
                    "kind": rule.kind.value,
                    "rows": len(gone),
                    "bytes": freed,
                    "before": before.isoformat(),
                    "policy": policy.digest,
                }
                entry = AuditEntry(Code.RETENTION_APPLIED, now, "cli", user_id=by, detail=detail)
                await write_audit(connection, [entry])
                rows, size = rows + len(gone), size + freed
        if len(found) < batch:
            return Aged(rule, before, rows, size)


async def _changed(
    connection: AsyncConnection, way: "_Way", keys: tuple[Column[Any], ...], aged: Collection[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """The rows that this transaction let go. What another one did at the same moment, or what is to be sent again since, is not among them."""
    changed = way.change(and_(tuple_(*keys).in_(list(aged)), way.still)).returning(*keys)
    return [tuple(row) for row in await connection.execute(changed)]


@dataclass(frozen=True, slots=True)
class _Way:
    """How a kind is found and let go: ``find`` gives the key of ``table``, ``bytes``, and ``since``, from when it counts. ``still`` must hold
    of a row when its turn comes.
    """

    table: Table
    find: Callable[[datetime, Policy], Select[Any]]
    emptied: Mapping[str, Any] | None = None
    """Columns and what is in them then; None: the row is deleted."""
    locks: Table | None = None
    still: ColumnElement[bool] = field(default_factory=true)

    def change(self, which: ColumnElement[bool]) -> Any:
        if self.emptied is None:
            return delete(self.table).where(which)
        return update(self.table).where(which).values(dict(self.emptied))


def _length(*columns: Any) -> ColumnElement[int]:
    total: ColumnElement[int] = func.length(columns[0])
    for each in columns[1:]:
        total = total + func.coalesce(func.length(cast(each, Text)), 0)
    return total


def _over(before: datetime, policy: Policy) -> ColumnElement[bool]:
    """The transfer is over for long enough, and nobody has ordered to keep it."""
    return and_(
        _t.state.in_([state.value for state in ENDED]),
        _t.changed_at < before,
        _t.transfer_id.not_in(policy.held_transfers),
        _t.sender.not_in(policy.held_trusts),
        _t.receiver.not_in(policy.held_trusts),
    )


def _all_delivered(event_id: Any) -> ColumnElement[bool]:
    # Written out, as the index on pending rows has it.
    waits = exists().where(_o.event_id == event_id, _o.state == literal_column("'pending'"))
    return ~waits


def _message_of_transfer(before: datetime, policy: Policy) -> Select[Any]:
    return (
        select(_m.event_id, _length(_m.raw).label("bytes"), _m.received_at.label("since"))
        .join(t.event, _e.event_id == _m.event_id)
        .join(t.transfer, _t.transfer_id == _e.transfer_id)
        .where(
            _m.raw.is_not(None),
            # Before its transfer was over: the bound that the index knows.
            _m.received_at < before,
            _m.disposition != Disposition.QUARANTINED.value,
            _over(before, policy),
            _all_delivered(_m.event_id),
        )
    )


def _message_alone(before: datetime, policy: Policy) -> Select[Any]:
    of_a_transfer = exists().where(_e.event_id == _m.event_id, _e.transfer_id.is_not(None))
    return select(_m.event_id, _length(_m.raw).label("bytes"), _m.received_at.label("since")).where(
        _m.raw.is_not(None),
        _m.received_at < before,
        _m.disposition != Disposition.QUARANTINED.value,
        _m.trust.not_in(policy.held_trusts),
        ~of_a_transfer,
        _all_delivered(_m.event_id),
    )


_CONTENT = (_e.payload, _e.changes, _e.unmapped, _e.stay)


def _content_of_transfer(before: datetime, policy: Policy) -> Select[Any]:
    return (
        select(_e.event_id, _length(*_CONTENT).label("bytes"), _e.received_at.label("since"))
        .join(t.transfer, _t.transfer_id == _e.transfer_id)
        .where(
            _e.payload.is_not(None),
            _e.received_at < before,
            _over(before, policy),
            _all_delivered(_e.event_id),
        )
    )


def _content_alone(before: datetime, policy: Policy) -> Select[Any]:
    return select(_e.event_id, _length(*_CONTENT).label("bytes"), _e.received_at.label("since")).where(
        _e.payload.is_not(None),
        _e.received_at < before,
        # So written that no index of transfers can tempt the planner: most events of a busy hub have none.
        func.coalesce(_e.transfer_id, "") == "",
        _e.trust.not_in(policy.held_trusts),
        _all_delivered(_e.event_id),
    )


_DELIVERED = and_(_o.state == literal_column("'sent'"), _o.payload.is_not(None))


def _news(before: datetime, policy: Policy) -> Select[Any]:
    return (
        select(_o.seq, _length(_o.payload).label("bytes"), _o.sent_at.label("since"))
        .join(t.transfer, _t.transfer_id == _o.transfer_id)
        .where(_DELIVERED, _o.sent_at < before, _over(before, policy))
    )


def _receipt(before: datetime, policy: Policy) -> Select[Any]:
    return select(_o.seq, _length(_o.payload).label("bytes"), _o.sent_at.label("since")).where(
        _DELIVERED,
        _o.sent_at < before,
        _o.transfer_id.is_(None),
        _o.receiver.not_in(policy.held_trusts),
    )


def _nothing() -> Any:
    return literal_column("0").label("bytes")


def _told_event(before: datetime, policy: Policy) -> Select[Any]:
    del policy
    return (
        select(_told.seq, _nothing(), _told.at.label("since"))
        .join(t.subscription, _s.subscription_id == _told.subscription_id)
        # A number that was not given, or not told yet, may still be asked for by the one that tells.
        .where(_told.at < before, _told.number <= _s.told_number)
    )


def _attempt(before: datetime, policy: Policy) -> Select[Any]:
    del policy
    return select(_a.attempt, _nothing(), _a.at.label("since")).where(_a.at < before)


def _assertion(before: datetime, policy: Policy) -> Select[Any]:
    del policy
    return select(_u.client_id, _u.jti, _nothing(), _u.expires_at.label("since")).where(
        _u.expires_at < before
    )


# A record's key is a hospital's own number of the patient or of the stay.
_RAW: Mapping[str, Any] = {"raw": None, "key": None}
_SAID: Mapping[str, Any] = {"payload": None, "changes": [], "unmapped": [], "stay": null()}

_WITH_BYTES = and_(_m.raw.is_not(None), _m.disposition != Disposition.QUARANTINED.value)

_WAYS: Mapping[Kind, _Way] = {
    Kind.MESSAGE_OF_TRANSFER: _Way(t.message, _message_of_transfer, _RAW, t.transfer, _WITH_BYTES),
    Kind.MESSAGE_ALONE: _Way(t.message, _message_alone, _RAW, still=_WITH_BYTES),
    Kind.CONTENT_OF_TRANSFER: _Way(t.event, _content_of_transfer, _SAID, t.transfer, _e.payload.is_not(None)),
    Kind.CONTENT_ALONE: _Way(t.event, _content_alone, _SAID, still=_e.payload.is_not(None)),
    Kind.NEWS: _Way(t.outbox, _news, {"payload": None}, t.transfer, _DELIVERED),
    Kind.RECEIPT: _Way(t.outbox, _receipt, {"payload": None}, still=_DELIVERED),
    Kind.TOLD: _Way(t.subscription_event, _told_event),
    Kind.ATTEMPT: _Way(t.delivery_attempt, _attempt),
    Kind.ASSERTION: _Way(t.used_assertion, _assertion),
}
