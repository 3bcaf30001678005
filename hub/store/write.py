"""Writing a batch's effects: one statement a table, rows in the order in which they were decided."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.audit.entries import AuditEntry
from hub.audit.leaf import said_by
from hub.domain.clocks import Clocks, next_due
from hub.domain.ids import TransferId
from hub.domain.message import Stay
from hub.domain.rejection import Disposition
from hub.domain.transfer import Step, Transfer, final_state, fold
from hub.journey.effects import Effects, Happened, Outgoing
from hub.journey.identify import Identified
from hub.journey.taken import Taken
from hub.store import subscribed, waiting
from hub.store import tables as t
from hub.store.bulk import insert_ignoring, insert_rows, update_rows
from hub.store.load import first_key
from hub.store.packing import pack

Row = dict[str, Any]


async def write_effects(
    connection: AsyncConnection,
    effects: Sequence[Effects],
    now: datetime,
    clocks: Clocks,
    *,
    again: bool = False,
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
    await _write_persons(connection, happened)
    await insert_rows(connection, t.event, [_event(each) for each in happened])
    # What a message of yesterday does now changes its transfer now: whoever asks for what has changed since must find it.
    await _write_transfers(connection, happened, clocks, now if again else None)
    await insert_rows(connection, t.outbox, [outbox_row(out, now) for each in effects for out in each.outbox])
    await write_audit(connection, [entry for each in effects for entry in each.audit])


async def write_audit(connection: AsyncConnection, entries: Sequence[AuditEntry]) -> None:
    """Append to the book. The sealer takes it from there (`hub.store.sealing`)."""
    rows = waiting.rows(said_by(entries))
    await insert_rows(connection, t.audit_batch, list(rows))


def _message(effects: Effects) -> Row:
    received, rejection = effects.received, effects.rejection
    is_first = effects.first_event_id is None
    return {
        "event_id": received.event_id,
        "trust": received.trust,
        "topic": received.position.topic if received.position else None,
        "partition": received.position.partition if received.position else None,
        "offset": received.position.offset if received.position else None,
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
    return {
        "person_id": person.id,
        "birth_date": person.birth_date,
        "created_at": person.created_at,
        "sensitivity": person.sensitivity,
        "restricted_by": person.restricted_by,
    }


def _person_identifiers(happened: Happened) -> list[Row]:
    return [
        {
            "authority": key.authority,
            "value": key.value,
            "person_id": _known_by(happened.identified),
            "event_id": happened.canonical.event_id,
        }
        for key in happened.identified.new_keys
    ]


def _known_by(identified: Identified) -> str:
    """Whose the new keys are: the author's own record's, also of one that is merged or that is merged as soon as it is met."""
    return identified.created.id if identified.created else identified.record_id or identified.person_id


async def _write_persons(connection: AsyncConnection, happened: Sequence[Happened]) -> None:
    """Merges, partings, labels and dates of birth that are learned later: rare, so a statement each."""
    for each in happened:
        identified = each.identified
        for merged in identified.merged:
            await connection.execute(
                update(t.person)
                .where(t.person.c.person_id == merged.loser)
                .values(merged_into=merged.survivor)
            )
            link = {
                "person_id": merged.loser,
                "event_id": each.canonical.event_id,
                "linked_to": merged.survivor,
                "kind": merged.basis,
            }
            await connection.execute(insert_ignoring(connection, t.person_link), [link])
        if identified.sensitivity and identified.created is None:
            label = None if identified.sensitivity == "U" else identified.sensitivity
            await connection.execute(
                update(t.person)
                .where(t.person.c.person_id == _known_by(identified))
                .values(sensitivity=label, restricted_by=each.canonical.trust if label else None)
            )
        if identified.birth_date:
            await connection.execute(
                update(t.person)
                .where(t.person.c.person_id == _known_by(identified))
                .values(birth_date=identified.birth_date)
            )


def _said_of_stay(stay: Stay | None, event_type: str) -> Row | None:
    """What `hub.store.load` makes a `Stay` of again. ``event_type`` is what the event was to a transfer, if it was anything."""
    if stay is None:
        return None
    times = {"stated_at": stay.stated_at, "began_at": stay.began_at}
    more = {name: at.isoformat() if at else None for name, at in times.items()} | {"deceased": stay.deceased}
    more |= {"event_type": stay.event_type if stay.event_type != event_type else None}
    said = dataclasses.asdict(stay.encounter) | more
    return {
        name: value for name, value in said.items() if value is not None or name in {"key", "encounter_class"}
    }


def _event(happened: Happened) -> Row:
    canonical = happened.canonical
    return {
        "event_id": canonical.event_id,
        "trust": canonical.trust,
        "event_type": happened.event_type,
        "person_id": happened.identified.person_id,
        "transfer_id": happened.transfer_id,
        "encounter_key": canonical.encounter.key if canonical.encounter else None,
        "occurred_at": canonical.occurred_at,
        "received_at": canonical.received.received_at,
        "sequence": canonical.sequence,
        "stay": _said_of_stay(canonical.stay, happened.event_type),
        "flags": [{"code": f.code.value, "path": f.path, "detail": f.detail} for f in happened.flags],
        "changes": [
            {"path": c.path, "before": c.before, "after": c.after, "rule": c.rule, "source": c.source}
            for c in canonical.changes
        ],
        "unmapped": [{"path": u.path, "value": u.value, "why": u.why} for u in canonical.unmapped],
        "payload": pack(b"[%b]" % b",".join(happened.written)),
    }


async def _write_transfers(
    connection: AsyncConnection, happened: Sequence[Happened], clocks: Clocks, changed_at: datetime | None
) -> None:
    """What a batch did to transfers, and the earlier events that are part of one now. ``changed_at`` None: when its messages came."""
    all_taken = [taken for each in happened for taken in each.taken]
    if changed_at is not None:
        all_taken = [
            dataclasses.replace(each, transfer=dataclasses.replace(each.transfer, changed_at=changed_at))
            for each in all_taken
        ]
    await write_taken(connection, all_taken, clocks)
    for each in happened:
        for event_id, taken in each.adopted:
            await connection.execute(
                update(t.event).where(t.event.c.event_id == event_id).values(transfer_id=taken.transfer.id)
            )


async def write_taken(connection: AsyncConnection, taken: Sequence[Taken], clocks: Clocks) -> None:
    """New transfers as they stand after the batch, changed ones brought up to date, and every fact."""
    last = {each.transfer.id: each.transfer for each in taken}
    new = {each.transfer.id for each in taken if each.created}
    asked_for = {each.transfer.id for each in taken if each.created or each.fact.step in _WISHES}
    await insert_rows(connection, t.transfer, [_transfer(last[each], clocks) for each in last if each in new])
    changed = [each for each in last.values() if each.id not in new]
    names = ("transfer_id", "state", "version", "changed_at", "inferred", "due_at", "due_clock")
    rows = [_transfer(each, clocks) for each in changed if each.id not in asked_for]
    await update_rows(
        connection, t.transfer, ["transfer_id"], [{name: row[name] for name in names} for row in rows]
    )
    wishes = [_transfer(each, clocks) for each in changed if each.id in asked_for]
    await update_rows(connection, t.transfer, ["transfer_id"], wishes)
    await _write_identifiers(connection, [last[each] for each in last if each in asked_for], new)
    await insert_rows(connection, t.transfer_history, [row for each in taken for row in _history(each)])
    await subscribed.record(connection, [each.transfer for each in taken])


_WISHES = frozenset({Step.REQUEST, Step.UPDATE})
"""Steps that say anew what is asked for."""


async def _write_identifiers(
    connection: AsyncConnection, transfers: Sequence[Transfer], new: set[TransferId]
) -> None:
    rows = {
        each.id: [{"transfer_id": each.id, "system": r.system, "value": r.value} for r in each.requests]
        for each in transfers
    }
    table = t.transfer_identifier
    await insert_rows(connection, table, [row for each in rows if each in new for row in rows[each]])
    again = [row for each in rows if each not in new for row in rows[each]]
    if again:
        await connection.execute(insert_ignoring(connection, table), again)


def due_columns(transfer: Transfer, clocks: Clocks) -> Row:
    """When the transfer's next clock rings, if one runs."""
    due = next_due(transfer, clocks)
    return {"due_at": due.at if due else None, "due_clock": due.name if due else None}


def _transfer(transfer: Transfer, clocks: Clocks) -> Row:
    return {
        "transfer_id": transfer.id,
        "person_id": transfer.person_id,
        "sender": transfer.sender,
        "receiver": transfer.receiver,
        "sender_code": transfer.sender_code,
        "receiver_code": transfer.receiver_code,
        "state": transfer.state.value,
        "version": transfer.version,
        "requested_at": transfer.requested_at,
        "changed_at": transfer.changed_at,
        "correlation_id": transfer.correlation_id,
        "origin_encounter": transfer.origin_encounter,
        "specialty": transfer.specialty,
        "priority": transfer.priority,
        "kind": transfer.kind,
        "inferred": transfer.inferred,
        "replaces": transfer.replaces,
        **due_columns(transfer, clocks),
    }


def _history(taken: Taken) -> list[Row]:
    """A row for each fact, with the state after it was learned."""
    transfer, facts = taken.transfer, taken.transfer.facts
    first = len(facts) - len(taken.facts)
    rows: list[Row] = []
    before = taken.before
    for number, fact in enumerate(taken.facts, first + 1):
        is_last = number == len(facts)
        after = transfer.state if is_last else final_state(fold(facts[:number])) or transfer.state
        rows.append(
            {
                "transfer_id": transfer.id,
                "version": number,
                "from_state": before.value if before else None,
                "to_state": after.value,
                "step": fact.step.value,
                "by": fact.by,
                "event_id": fact.event_id,
                "occurred_at": fact.occurred_at,
                "received_at": fact.received_at,
                "sequence": fact.sequence,
                "because": fact.because,
                "encounter_key": fact.encounter,
                "retracts": sorted(fact.retracts) or None,
                "until": fact.until,
                "clock": fact.clock,
                "stated_at": fact.stated_at,
            }
        )
        before = after
    return rows


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
