"""The life of a transfer: states, steps, who may take them, and where they lead.

Everything that affects a transfer's state is in this file. A state is never set: it is the fold
of the facts that are known, in the order in which they happened, so that facts that arrive late, early or twice
end in the same state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from hub.domain.ids import EventId, Identifier, OdsCode, PersonId, TransferId


class State(StrEnum):
    REQUESTED = "requested"
    RECEIVED = "received"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    READY = "ready"
    IN_TRANSIT = "in-transit"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class Step(StrEnum):
    REQUEST = "request"
    UPDATE = "update"
    CANCEL = "cancel"
    RECEIVE = "receive"
    ACCEPT = "accept"
    REJECT = "reject"
    ALLOCATE_BED = "allocate-bed"
    DEPART = "depart"
    ADMIT = "admit"


class Party(StrEnum):
    SENDER = "sender"
    RECEIVER = "receiver"


WHO_MAY: Mapping[Step, Party] = {
    Step.REQUEST: Party.SENDER,
    Step.UPDATE: Party.SENDER,
    Step.CANCEL: Party.SENDER,
    Step.DEPART: Party.SENDER,
    Step.RECEIVE: Party.RECEIVER,
    Step.ACCEPT: Party.RECEIVER,
    Step.REJECT: Party.RECEIVER,
    Step.ALLOCATE_BED: Party.RECEIVER,
    Step.ADMIT: Party.RECEIVER,
}

# A step that leads back to its own state is news without a move: it is kept, told and audited.
# A step that is not listed cannot be taken from there.
TRANSITIONS: Mapping[State | None, Mapping[Step, State]] = {
    None: {Step.REQUEST: State.REQUESTED},
    State.REQUESTED: {
        Step.REQUEST: State.REQUESTED,
        Step.UPDATE: State.REQUESTED,
        Step.RECEIVE: State.RECEIVED,
        Step.ACCEPT: State.ACCEPTED,
        Step.REJECT: State.REJECTED,
        Step.ALLOCATE_BED: State.READY,
        Step.DEPART: State.IN_TRANSIT,
        Step.ADMIT: State.COMPLETED,
        Step.CANCEL: State.CANCELLED,
    },
    State.RECEIVED: {
        Step.REQUEST: State.RECEIVED,
        Step.UPDATE: State.RECEIVED,
        Step.RECEIVE: State.RECEIVED,
        Step.ACCEPT: State.ACCEPTED,
        Step.REJECT: State.REJECTED,
        Step.ALLOCATE_BED: State.READY,
        Step.DEPART: State.IN_TRANSIT,
        Step.ADMIT: State.COMPLETED,
        Step.CANCEL: State.CANCELLED,
    },
    State.ACCEPTED: {
        Step.REQUEST: State.ACCEPTED,
        Step.UPDATE: State.ACCEPTED,
        Step.RECEIVE: State.ACCEPTED,
        Step.ACCEPT: State.ACCEPTED,
        Step.REJECT: State.REJECTED,
        Step.ALLOCATE_BED: State.READY,
        Step.DEPART: State.IN_TRANSIT,
        Step.ADMIT: State.COMPLETED,
        Step.CANCEL: State.CANCELLED,
    },
    State.READY: {
        Step.REQUEST: State.READY,
        Step.UPDATE: State.READY,
        Step.RECEIVE: State.READY,
        Step.ACCEPT: State.READY,
        Step.REJECT: State.REJECTED,
        Step.ALLOCATE_BED: State.READY,
        Step.DEPART: State.IN_TRANSIT,
        Step.ADMIT: State.COMPLETED,
        Step.CANCEL: State.CANCELLED,
    },
    # Once the patient has left, an answer that was on its way is news, not a move; a refusal or a
    # cancellation can no longer be obeyed and is answered with a denial.
    State.IN_TRANSIT: {
        Step.UPDATE: State.IN_TRANSIT,
        Step.RECEIVE: State.IN_TRANSIT,
        Step.ACCEPT: State.IN_TRANSIT,
        Step.ALLOCATE_BED: State.IN_TRANSIT,
        Step.DEPART: State.IN_TRANSIT,
        Step.ADMIT: State.COMPLETED,
    },
    State.COMPLETED: {
        Step.RECEIVE: State.COMPLETED,
        Step.ACCEPT: State.COMPLETED,
        Step.ALLOCATE_BED: State.COMPLETED,
        Step.DEPART: State.COMPLETED,
        Step.ADMIT: State.COMPLETED,
    },
    # A refusal stays open until the sender withdraws or sends it elsewhere (BaRS REFRESP02).
    State.REJECTED: {
        Step.REJECT: State.REJECTED,
        Step.ACCEPT: State.ACCEPTED,
        Step.ALLOCATE_BED: State.READY,
        Step.CANCEL: State.CANCELLED,
    },
    State.CANCELLED: {Step.CANCEL: State.CANCELLED},
}

ENDED = frozenset({State.COMPLETED, State.CANCELLED})
"""No step leads out of these."""

HELD = frozenset({State.ACCEPTED, State.READY})
"""The receiver has said yes and the patient has not left."""


def advance(state: State | None, step: Step) -> State | None:
    """Where this step leads, or None if it cannot be taken from here."""
    return TRANSITIONS[state].get(step)


# FHIR Task.status of the answer → the step, by who says it (NHS England workflow guide; R4 task-status).
STEP_OF_TASK: Mapping[Party, Mapping[str, Step]] = {
    Party.RECEIVER: {
        "received": Step.RECEIVE,
        "accepted": Step.ACCEPT,
        "rejected": Step.REJECT,
        "ready": Step.ALLOCATE_BED,
        "completed": Step.ADMIT,
    },
    Party.SENDER: {"cancelled": Step.CANCEL, "in-progress": Step.DEPART},
}

# The receiver's own Encounter in a BaRS response → the step (BaRS REFRESP03, REFRESP02, REFREQ8B to 8D).
STEP_OF_BARS_ENCOUNTER: Mapping[str, Step] = {
    "planned": Step.ACCEPT,
    "cancelled": Step.REJECT,
    "in-progress": Step.ADMIT,
    "finished": Step.ADMIT,
}

# What the hub says of a transfer as a FHIR Task and ServiceRequest.
TASK_STATUS: Mapping[State, str] = {
    State.REQUESTED: "requested",
    State.RECEIVED: "received",
    State.ACCEPTED: "accepted",
    State.REJECTED: "rejected",
    State.READY: "ready",
    State.IN_TRANSIT: "in-progress",
    State.COMPLETED: "completed",
    State.CANCELLED: "cancelled",
}
EVENT_TYPE: Mapping[Step, str] = {
    Step.REQUEST: "transfer.requested",
    Step.UPDATE: "transfer.updated",
    Step.CANCEL: "transfer.cancelled",
    Step.RECEIVE: "transfer.received",
    Step.ACCEPT: "transfer.accepted",
    Step.REJECT: "transfer.rejected",
    Step.ALLOCATE_BED: "transfer.bed.allocated",
    Step.DEPART: "transfer.departed",
    Step.ADMIT: "transfer.completed",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that happened to a transfer, as one trust reported it. Times are UTC."""

    event_id: EventId
    step: Step
    by: OdsCode
    occurred_at: datetime
    received_at: datetime
    sequence: int | None = None
    because: str = ""
    """One sentence for the record: no name, number or date of birth of a person in it."""

    @property
    def order(self) -> tuple[datetime, int, datetime, str]:
        """When it happened; the sender's own numbering; when it came; then its id, so that any two
        facts have one order.
        """
        return (self.occurred_at, self.sequence or 0, self.received_at, self.event_id)


@dataclass(frozen=True, slots=True)
class Move:
    """What one fact did. ``after`` is None where the step could not be taken."""

    fact: Fact
    before: State | None
    after: State | None


def fold(facts: Iterable[Fact]) -> tuple[Move, ...]:
    """Play the facts in the order in which they happened.

    The first request opens the story whatever its time says: no answer can come before the question,
    so an answer that seems to is a clock that runs behind.
    """
    ordered = sorted(facts, key=lambda fact: fact.order)
    opening = next((fact for fact in ordered if fact.step is Step.REQUEST), None)
    if opening is not None:
        ordered.remove(opening)
        ordered.insert(0, opening)
    state: State | None = None
    moves: list[Move] = []
    for fact in ordered:
        after = advance(state, fact.step)
        moves.append(Move(fact, state, after))
        state = after or state
    return tuple(moves)


def final_state(moves: Iterable[Move]) -> State | None:
    """The state a story ends in."""
    state: State | None = None
    for move in moves:
        state = move.after or state
    return state


@dataclass(frozen=True, slots=True)
class Transfer:
    """One patient's transfer from one trust to another.

    ``version`` counts the facts that were taken in. ``facts`` are all of them, in no order.
    """

    id: TransferId
    person_id: PersonId
    sender: OdsCode
    receiver: OdsCode
    state: State
    version: int
    requested_at: datetime
    facts: tuple[Fact, ...]
    requests: tuple[Identifier, ...] = ()
    correlation_id: str | None = None
    origin_encounter: str | None = None
    sender_code: str | None = None
    receiver_code: str | None = None
    changed_at: datetime | None = None

    def party(self, trust: OdsCode) -> Party | None:
        """The part this trust plays in the transfer, if any."""
        if trust == self.sender:
            return Party.SENDER
        return Party.RECEIVER if trust == self.receiver else None

    def other(self, trust: OdsCode) -> OdsCode:
        """The trust at the other end."""
        return self.receiver if trust == self.sender else self.sender

    def with_fact(self, fact: Fact) -> tuple["Transfer", Move]:
        """The transfer after one more fact, and what that fact did in its place in the story."""
        moves = fold((*self.facts, fact))
        state = final_state(moves) or self.state
        told = replace(
            self,
            facts=(*self.facts, fact),
            state=state,
            version=self.version + 1,
            changed_at=fact.received_at,
        )
        return told, next(move for move in moves if move.fact is fact)
