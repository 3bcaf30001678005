"""`hub transfers show`: a transfer's facts in the order in which they happened, each with its source and the effect it has there.

For the duty team: the hub's own words and ids, no patient. A fact that came late stands where it happened, with what it did to
the story; one that was taken back says so.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from hub.domain.transfer import HUB, REQUEST_STATUS, TASK_STATUS, Move, Step, Transfer, counting, fold

Row = Mapping[str, Any]

_LATE_S = 600
"""Heard of this much later than it happened, and it is said."""


def timeline(transfer: Transfer, due_at: datetime | None, due_clock: str | None) -> Iterator[str]:
    """The lines; times are UTC."""
    yield f"Transfer {transfer.id}  {transfer.sender} → {transfer.receiver}"
    wishes = (("priority", transfer.priority), ("specialty", transfer.specialty), ("type", transfer.kind))
    asked = [f"{name} {value}" for name, value in wishes if value]
    inferred = ["inferred: nobody asked for it"] if transfer.inferred else []
    yield f"  {transfer.state}, version {transfer.version}" + "".join(
        f", {each}" for each in (*asked, *inferred)
    )
    yield f"  Task {TASK_STATUS[transfer.state]}, ServiceRequest {REQUEST_STATUS[transfer.state]}"
    if due_at is not None:
        yield f"  waits: clock {due_clock} rings at {_at(due_at)}"
    yield ""
    for each in facts(transfer):
        yield f"  {_at(each['occurred_at'])}  {each['effect']}"
        yield f"{'':21}because {each['because']} [{each['source']}]"


def facts(transfer: Transfer) -> Iterator[dict[str, Any]]:
    """Each fact in its place in the story: step, effect, why, who, when it happened and when the hub heard of it."""
    live = {fact.event_id for fact in counting(transfer.facts)}
    for move in fold(transfer.facts):
        fact = move.fact
        yield {
            "occurred_at": fact.occurred_at,
            "received_at": fact.received_at,
            "step": fact.step.value,
            "by": fact.by,
            "party": fact.party.value,
            "before": move.before,
            "after": move.after,
            "effect": _effect(move, counts=fact.step is Step.RETRACT or fact.event_id in live),
            "because": fact.because,
            "source": _source(move),
            "event_id": fact.event_id,
        }


def _effect(move: Move, *, counts: bool) -> str:
    step = move.fact.step
    if move.after is None:
        found = f"{step}: kept; from {move.before or 'nothing'} it leads nowhere"
    elif move.after is move.before:
        found = f"{step}: stays {move.after}"
    else:
        found = f"{step}: {move.before or 'new'} → {move.after}"
    return found if counts else f"{found} (taken back later)"


def _source(move: Move) -> str:
    fact = move.fact
    source = f"the hub's clock {fact.clock}" if fact.by == HUB and fact.clock else f"event {fact.event_id}"
    late = (fact.received_at - fact.occurred_at).total_seconds() > _LATE_S
    return f"{source}, heard at {_at(fact.received_at)}" if late else source


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}Z"
