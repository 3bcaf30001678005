"""`hub transfers show`: a transfer's facts in the order in which they happened, each with its source and why it had the effect
it had. For the duty team: the hub's own words and ids, no patient.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hub.domain.transfer import HUB, REQUEST_STATUS, TASK_STATUS, State, Step

Row = Mapping[str, Any]


def timeline(transfer: Row, history: Sequence[Row]) -> Iterator[str]:
    """The lines, times in UTC. ``history`` is as `hub.store.queries.transfer_history` gives it."""
    state = State(transfer["state"])
    yield f"Transfer {transfer['transfer_id']}  {transfer['sender']} \u2192 {transfer['receiver']}"
    asked = [f"{name} {transfer[name]}" for name in ("priority", "specialty", "kind") if transfer[name]]
    inferred = ["inferred: nobody asked for it"] if transfer["inferred"] else []
    yield f"  {state}, version {transfer['version']}" + "".join(f", {each}" for each in (*asked, *inferred))
    yield f"  Task {TASK_STATUS[state]}, ServiceRequest {REQUEST_STATUS[state]}"
    if transfer["due_at"] is not None:
        yield f"  waits: clock {transfer['due_clock']} rings at {_at(transfer['due_at'])}"
    yield ""
    for row in _as_it_happened(history):
        yield f"  {_at(row['occurred_at'])}  {_effect(row):<32}  {row['because']}{_source(row)}"


def as_json(transfer: Row, history: Sequence[Row]) -> dict[str, Any]:
    """The same as plain data."""
    state = State(transfer["state"])
    fhir = {"Task.status": TASK_STATUS[state], "ServiceRequest.status": REQUEST_STATUS[state]}
    return {**transfer, "fhir": fhir, "facts": [dict(row) for row in _as_it_happened(history)]}


def _as_it_happened(history: Sequence[Row]) -> list[Row]:
    """The request opens the story whatever its clock said, as in the fold."""
    ordered = sorted(
        history,
        key=lambda row: (row["occurred_at"], row["sequence"] or 0, row["received_at"], row["event_id"]),
    )
    opening = [row for row in ordered if row["step"] in {Step.REQUEST, Step.DRAFT}][:1]
    return [*opening, *(row for row in ordered if row not in opening)]


def _effect(row: Row) -> str:
    before, after = row["from_state"], row["to_state"]
    if before == after:
        return f"{row['step']} (stays {after})"
    return f"{row['step']}: {before or 'new'} \u2192 {after}"


def _source(row: Row) -> str:
    source = f"{row['by']} clock {row['clock']}" if row["by"] == HUB else f"event {row['event_id']}"
    late = row["received_at"] - row["occurred_at"]
    heard = f", heard at {_at(row['received_at'])}" if late.total_seconds() > 600 else ""
    return f"  [{source}{heard}]"


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}Z"
