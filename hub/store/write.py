"""Writing a batch's effects: one statement a table, rows in the order in which they were decided."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.audit.entries import AuditEntry
from hub.domain.rejection import Disposition
from hub.journey.effects import Effects, Happened, Outgoing
from hub.store import tables as t
from hub.store.bulk import insert_rows, update_rows
from hub.store.load import first_key
from hub.store.packing import pack

Row = dict[str, Any]


async def write_effects(
    connection: AsyncConnection, effects: Sequence[Effects], now: datetime, *, again: bool = False
) -> None:
    """Write what a batch causes. ``again``: the message rows exist (a retry) and are brought up to date."""
    if again:
        await _update_messages(connection, effects, now)
    else:
        await insert_rows(connection, t.message, [_message(each) for each in effects])
    happened = [each.happened for each in effects if each.happened is not None]
    await insert_rows(connection, t.person, [_person(each) for each in happened if each.identified.created])
    await insert_rows(
        connection, t.person_identifier, [row for each in happened for row in _person_identifiers(each)]
    )
    await insert_rows(connection, t.event, [_event(each) for each in happened])
    await _write_transfers(connection, happened)
    await insert_rows(connection, t.outbox, [outbox_row(out, now) for each in effects for out in each.outbox])
    await write_audit(connection, [entry for each in effects for entry in each.audit])


async def write_audit(connection: AsyncConnection, entries: Sequence[AuditEntry]) -> None:
    """Append to the book."""
    await insert_rows(connection, t.audit_entry, [_audit(entry) for entry in entries])


def _message(effects: Effects) -> Row:
    received, rejection = effects.received, effects.rejection
    is_first = effects.first_event_id is None
    return {
        "event_id": received.event_id,
        "trust": received.trust,
        "topic": received.position.topic,
        "partition": received.position.partition,
        "offset": received.position.offset,
        "message_id": effects.message_id,
        "first_key": first_key(received.trust, effects.message_id) if is_first else None,
        "first_event_id": effects.first_event_id,
        "headers": dict(received.headers),
        "key": received.key,
        # A duplicate's bytes are those of the first; a conflict's are not.
        "raw": None if effects.disposition is Disposition.DUPLICATE else pack(received.raw),
        "raw_size": len(received.raw),
        "sha256": effects.sha256,
        "received_at": received.received_at,
        "disposition": effects.disposition.value,
        "why": rejection.why.value if rejection else None,
        "at": rejection.at if rejection else None,
        "detail": rejection.detail if rejection else None,
        "retries": 0,
    }


async def _update_messages(connection: AsyncConnection, effects: Sequence[Effects], now: datetime) -> None:
    for each in effects:
        rejection = each.rejection
        await connection.execute(
            update(t.message)
            .where(t.message.c.event_id == each.received.event_id)
            .values(
                disposition=each.disposition.value,
                why=rejection.why.value if rejection else None,
                at=rejection.at if rejection else None,
                detail=rejection.detail if rejection else None,
                retries=t.message.c.retries + 1,
                retried_at=now,
            )
        )


def _person(happened: Happened) -> Row:
    person = happened.identified.created
    assert person is not None
    return {"person_id": person.id, "birth_date": person.birth_date, "created_at": person.created_at}


def _person_identifiers(happened: Happened) -> list[Row]:
    return [
        {
            "authority": key.authority,
            "value": key.value,
            "person_id": happened.identified.person_id,
            "event_id": happened.canonical.event_id,
        }
        for key in happened.identified.new_keys
    ]


def _event(happened: Happened) -> Row:
    canonical, fact, transfer = happened.canonical, happened.fact, happened.transfer
    return {
        "event_id": canonical.event_id,
        "trust": canonical.trust,
        "event_type": happened.event_type,
        "person_id": happened.identified.person_id,
        "transfer_id": transfer.id if transfer else None,
        "encounter_key": canonical.encounter.key if canonical.encounter else None,
        "step": fact.step.value if fact else None,
        "occurred_at": canonical.occurred_at,
        "received_at": canonical.received.received_at,
        "sequence": canonical.sequence,
        "because": fact.because if fact else "",
        "flags": [{"code": f.code.value, "path": f.path, "detail": f.detail} for f in happened.flags],
        "changes": [
            {"path": c.path, "before": c.before, "after": c.after, "rule": c.rule, "source": c.source}
            for c in canonical.changes
        ],
        "unmapped": [{"path": u.path, "value": u.value, "why": u.why} for u in canonical.unmapped],
        "payload": pack(orjson.dumps(canonical.resources)),
    }


async def _write_transfers(connection: AsyncConnection, happened: Sequence[Happened]) -> None:
    """New transfers as they stand after the batch, changed ones brought up to date, and every state they had."""
    last = {each.transfer.id: each.transfer for each in happened if each.transfer is not None}
    new = {each.transfer.id for each in happened if each.created and each.transfer is not None}
    rows = [
        {
            "transfer_id": each.id,
            "person_id": each.person_id,
            "sender": each.sender,
            "receiver": each.receiver,
            "sender_code": each.sender_code,
            "receiver_code": each.receiver_code,
            "state": each.state.value,
            "version": each.version,
            "requested_at": each.requested_at,
            "changed_at": each.changed_at,
            "correlation_id": each.correlation_id,
            "origin_encounter": each.origin_encounter,
        }
        for each in last.values()
    ]
    await insert_rows(connection, t.transfer, [row for row in rows if row["transfer_id"] in new])
    changed = [row for row in rows if row["transfer_id"] not in new]
    await update_rows(
        connection,
        t.transfer,
        ["transfer_id"],
        [{name: row[name] for name in ("transfer_id", "state", "version", "changed_at")} for row in changed],
    )
    await insert_rows(
        connection,
        t.transfer_identifier,
        [
            {"transfer_id": each.id, "system": request.system, "value": request.value}
            for each in last.values()
            if each.id in new
            for request in each.requests
        ],
    )
    await insert_rows(
        connection, t.transfer_history, [_history(each) for each in happened if each.fact is not None]
    )


def _history(happened: Happened) -> Row:
    transfer, fact = happened.transfer, happened.fact
    assert transfer is not None
    assert fact is not None
    return {
        "transfer_id": transfer.id,
        "version": transfer.version,
        "from_state": happened.before.value if happened.before else None,
        "to_state": transfer.state.value,
        "step": fact.step.value,
        "event_id": fact.event_id,
        "occurred_at": fact.occurred_at,
        "recorded_at": fact.received_at,
        "because": fact.because,
    }


def outbox_row(out: Outgoing, now: datetime) -> Row:
    """A row for the dispatcher; its number is given by the database."""
    return {
        "receiver": out.receiver,
        "topic": out.topic,
        "key": out.key,
        "headers": dict(out.headers),
        "payload": out.payload,
        "event_id": out.event_id,
        "transfer_id": out.transfer_id,
        "person_id": out.person_id,
        "created_at": now,
        "state": "pending",
        "attempts": 0,
    }


def _audit(entry: AuditEntry) -> Row:
    return {
        "code": entry.code.value,
        "at": entry.at,
        "occurred_at": entry.occurred_at,
        "outcome": int(entry.outcome),
        "trust": entry.trust,
        "system": entry.system,
        "counterpart": entry.counterpart,
        "event_id": entry.event_id,
        "person_id": entry.person_id,
        "transfer_id": entry.transfer_id,
        "detail": dict(entry.detail),
    }
