"""The life of a transfer: states, steps, who may take them, and where they lead.

Everything that affects a transfer's state is in this file; the diagram in `hub/LIFECYCLE.md` is made from the table
below. A state is never set: it is the fold of the facts that are known, in the order in which they happened, so that
facts that arrive late, early or twice end in the same state. A fact that is taken back stays known and counts no more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from hub.domain.ids import EventId, Identifier, OdsCode, PersonId, TransferId
from hub.domain.value import value

HUB = OdsCode("hub")
"""Whose fact it is when a clock ran out. In small letters, so that no trust can have it as its code."""


class State(StrEnum):
    DRAFT = "draft"
    REQUESTED = "requested"
    RECEIVED = "received"
    INFO_REQUESTED = "info-requested"
    ACCEPTED = "accepted"
    AWAITING_BED = "awaiting-bed"
    BED_ALLOCATED = "bed-allocated"
    TRANSPORT_BOOKED = "transport-booked"
    IN_TRANSIT = "in-transit"
    ARRIVED = "arrived"
    COMPLETED = "completed"
    REJECTED = "rejected"
    REDIRECTED = "redirected"
    CANCELLED = "cancelled"
    ENTERED_IN_ERROR = "entered-in-error"
    FAILED = "failed"
    EXPIRED = "expired"


class Step(StrEnum):
    DRAFT = "draft"
    REQUEST = "request"
    UPDATE = "update"
    CANCEL = "cancel"
    VOID = "void"
    RECEIVE = "receive"
    QUERY = "query"
    ANSWER_QUERY = "answer-query"
    ACCEPT = "accept"
    REJECT = "reject"
    REDIRECT = "redirect"
    AWAIT_BED = "await-bed"
    ALLOCATE_BED = "allocate-bed"
    RELEASE_BED = "release-bed"
    BOOK_TRANSPORT = "book-transport"
    DEPART = "depart"
    ARRIVE = "arrive"
    ADMIT = "admit"
    RETURN = "return"
    FAIL = "fail"
    DIE = "die"
    DIVERGE = "diverge"
    CONFIRM = "confirm"
    IDENTIFY = "identify"
    RETRACT = "retract"
    ESCALATE = "escalate"
    EXPIRE = "expire"


class Party(StrEnum):
    SENDER = "sender"
    RECEIVER = "receiver"
    THIRD = "third trust"
    HUB = "hub"


WAITING = (State.REQUESTED, State.RECEIVED, State.INFO_REQUESTED)
"""The receiver has been asked and has not decided."""
HELD = (State.ACCEPTED, State.AWAITING_BED, State.BED_ALLOCATED, State.TRANSPORT_BOOKED)
"""The receiver has said yes and the patient has not left."""
MOVING = (State.IN_TRANSIT, State.ARRIVED)
"""The patient has left and is not admitted yet."""
ENDED = frozenset(
    {
        State.COMPLETED,
        State.REDIRECTED,
        State.CANCELLED,
        State.ENTERED_IN_ERROR,
        State.FAILED,
        State.EXPIRED,
    }
)
"""The transfer is over. Only what happens to the patient's body can still lead out (a departure after a cancellation)."""

LEFT_AFTER_ALL = (State.REDIRECTED, State.CANCELLED, State.ENTERED_IN_ERROR, State.EXPIRED)
"""The ends that a departure leads out of."""

UNASKED = (State.DRAFT, State.CANCELLED, State.ENTERED_IN_ERROR, State.EXPIRED)
"""The states in which it can be that the receiver was never asked: a draft, and what a draft can end as."""
ASKING = frozenset({Step.REQUEST, Step.DEPART, Step.ARRIVE, Step.ADMIT})
"""The steps by which a transfer becomes the receiver's business: it is asked, or the patient is on the way, or there. It stays that
though they are taken back.
"""

ALARMS = frozenset({Step.DIVERGE, Step.RETRACT})
"""What a stay says of a transfer that is no part of it. The stay can be part of another, whose request comes late."""

_BEFORE_LEAVING = (*WAITING, *HELD, State.REJECTED)
_OPEN = (State.DRAFT, *_BEFORE_LEAVING, *MOVING)

Moves = dict[State | None, State]


def _to(goal: State, *starts: State | None) -> Moves:
    return dict.fromkeys(starts, goal)


def _stay(*states: State) -> Moves:
    return {state: state for state in states}


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may take a step, and from where to where. ``None`` is before the transfer was known.

    A step that leads back to its own state is news without a move: it is kept, told and audited.
    """

    step: Step
    by: tuple[Party, ...]
    moves: Moves


_S, _R, _T, _H = Party.SENDER, Party.RECEIVER, Party.THIRD, Party.HUB

# A step that is not listed for a party and a state cannot be taken by it from there.
LIFECYCLE: tuple[Rule, ...] = (
    Rule(Step.DRAFT, (_S,), _to(State.DRAFT, None) | _stay(State.DRAFT)),
    Rule(Step.REQUEST, (_S,), _to(State.REQUESTED, None, State.DRAFT) | _stay(*WAITING, *HELD)),
    Rule(
        Step.UPDATE,
        (_S,),
        _stay(State.DRAFT, *WAITING, *HELD, *MOVING) | _to(State.RECEIVED, State.INFO_REQUESTED),
    ),
    Rule(Step.CANCEL, (_S,), _to(State.CANCELLED, State.DRAFT, *_BEFORE_LEAVING) | _stay(State.CANCELLED)),
    Rule(Step.CANCEL, (_R,), _to(State.CANCELLED, *HELD) | _stay(State.CANCELLED)),
    Rule(
        Step.VOID,
        (_S,),
        _to(State.ENTERED_IN_ERROR, State.DRAFT, *_BEFORE_LEAVING) | _stay(State.ENTERED_IN_ERROR),
    ),
    Rule(
        Step.RECEIVE,
        (_R,),
        _to(State.RECEIVED, State.REQUESTED)
        | _stay(State.RECEIVED, State.INFO_REQUESTED, *HELD, *MOVING, State.COMPLETED),
    ),
    Rule(
        Step.QUERY,
        (_R,),
        _to(State.INFO_REQUESTED, State.REQUESTED, State.RECEIVED) | _stay(State.INFO_REQUESTED),
    ),
    Rule(Step.ANSWER_QUERY, (_S,), _to(State.RECEIVED, State.INFO_REQUESTED) | _stay(State.RECEIVED)),
    # A refusal stays open until the sender withdraws or sends it elsewhere (BaRS REFRESP02), and can be thought over.
    Rule(
        Step.ACCEPT,
        (_R,),
        _to(State.ACCEPTED, *WAITING, State.REJECTED) | _stay(*HELD, *MOVING, State.COMPLETED),
    ),
    Rule(Step.REJECT, (_R,), _to(State.REJECTED, *WAITING, *HELD) | _stay(State.REJECTED)),
    Rule(Step.REDIRECT, (_S, _R), _to(State.REDIRECTED, *_BEFORE_LEAVING) | _stay(State.REDIRECTED)),
    Rule(Step.AWAIT_BED, (_R,), _to(State.AWAITING_BED, *_BEFORE_LEAVING) | _stay(*MOVING)),
    Rule(
        Step.ALLOCATE_BED,
        (_R,),
        _to(State.BED_ALLOCATED, *WAITING, State.ACCEPTED, State.AWAITING_BED, State.REJECTED)
        | _stay(State.BED_ALLOCATED, State.TRANSPORT_BOOKED, *MOVING, State.COMPLETED),
    ),
    Rule(
        Step.RELEASE_BED,
        (_R, _H),
        _to(State.AWAITING_BED, State.BED_ALLOCATED, State.TRANSPORT_BOOKED) | _stay(State.AWAITING_BED),
    ),
    Rule(
        Step.BOOK_TRANSPORT,
        (_S,),
        _to(State.TRANSPORT_BOOKED, State.BED_ALLOCATED)
        | _stay(State.TRANSPORT_BOOKED, State.ACCEPTED, State.AWAITING_BED, *MOVING),
    ),
    # What happens to the patient's body cannot be refused. From None the transfer is inferred: nobody asked for it. From a draft
    # the receiver's word counts once the request is made: it has no part in it before.
    Rule(
        Step.DEPART,
        (_S,),
        _to(State.IN_TRANSIT, None, State.DRAFT, *_BEFORE_LEAVING, *LEFT_AFTER_ALL)
        | _stay(*MOVING, State.COMPLETED),
    ),
    Rule(
        Step.ARRIVE,
        (_R,),
        _to(State.ARRIVED, None, State.DRAFT, *_BEFORE_LEAVING, State.IN_TRANSIT)
        | _stay(State.ARRIVED, State.COMPLETED),
    ),
    Rule(
        Step.ADMIT,
        (_R,),
        _to(State.COMPLETED, None, State.DRAFT, *_BEFORE_LEAVING, *MOVING) | _stay(State.COMPLETED),
    ),
    # Treat-and-return: back where they came from. Without an arrival the journey was turned back.
    Rule(
        Step.RETURN,
        (_S,),
        _to(State.FAILED, State.IN_TRANSIT)
        | _to(State.COMPLETED, State.ARRIVED)
        | _stay(State.COMPLETED, State.FAILED),
    ),
    Rule(Step.FAIL, (_S, _R), _to(State.FAILED, *MOVING) | _stay(State.FAILED)),
    Rule(
        Step.DIE,
        (_S, _R, _T),
        _to(State.CANCELLED, State.DRAFT, *_BEFORE_LEAVING) | _to(State.FAILED, *MOVING) | _stay(*ENDED),
    ),
    # The two hospitals' records do not tell one story: loud, and nothing moves.
    Rule(Step.DIVERGE, (_S, _R, _T), _stay(*_OPEN)),
    Rule(Step.CONFIRM, (_S, _R), _stay(*MOVING, State.COMPLETED, State.FAILED)),
    # The hub's is a person's: the duty team takes a number from a record whose it is not.
    Rule(Step.IDENTIFY, (_S, _R, _T, _H), _stay(*State)),
    Rule(Step.ESCALATE, (_H,), _stay(*_OPEN)),
    # Clocks never end clinical work; a person does, when the ladder has been climbed to its end.
    Rule(Step.EXPIRE, (_H,), _to(State.EXPIRED, State.DRAFT, *_BEFORE_LEAVING) | _stay(State.EXPIRED)),
)

_MOVES: Mapping[tuple[Step, Party], Moves] = {
    (rule.step, party): rule.moves for rule in LIFECYCLE for party in rule.by
}
WHO_MAY: Mapping[Step, frozenset[Party]] = {
    step: frozenset(party for rule in LIFECYCLE if rule.step is step for party in rule.by)
    or frozenset({_S, _R, _T})
    for step in Step
}
"""Taking a step back is open to whoever took it."""

PHYSICAL = frozenset(
    {Step.DEPART, Step.ARRIVE, Step.ADMIT, Step.RETURN, Step.DIE, Step.DIVERGE, Step.RETRACT, Step.IDENTIFY}
)
"""What a hospital's record says has happened. Kept even where it moves nothing now: a late fact may make room for it."""


def advance(state: State | None, step: Step, party: Party) -> State | None:
    """Where this step of this party leads, or None if it cannot be taken from here."""
    return _MOVES.get((step, party), {}).get(state)


# FHIR Task.status, or status and businessStatus, of a message → the step, by who says it (NHS England workflow guide;
# R4 task-status). The pair is looked up before the status alone.
STEP_OF_TASK: Mapping[Party, Mapping[str, Step]] = {
    Party.RECEIVER: {
        "received": Step.RECEIVE,
        "on-hold": Step.QUERY,
        "accepted": Step.ACCEPT,
        "accepted+awaiting-bed": Step.AWAIT_BED,
        "accepted+bed-released": Step.RELEASE_BED,
        "rejected": Step.REJECT,
        "rejected+redirected": Step.REDIRECT,
        "cancelled+redirected": Step.REDIRECT,
        "ready": Step.ALLOCATE_BED,
        "in-progress": Step.ARRIVE,
        "completed": Step.ADMIT,
        "completed+confirmed": Step.CONFIRM,
        "in-progress+confirmed": Step.CONFIRM,
        "cancelled": Step.CANCEL,
        "failed": Step.FAIL,
    },
    Party.SENDER: {
        "requested": Step.ANSWER_QUERY,
        "ready": Step.BOOK_TRANSPORT,
        "in-progress": Step.DEPART,
        "completed+confirmed": Step.CONFIRM,
        "in-progress+confirmed": Step.CONFIRM,
        "cancelled": Step.CANCEL,
        "cancelled+redirected": Step.REDIRECT,
        "failed": Step.FAIL,
        "entered-in-error": Step.VOID,
    },
}

# The receiver's own Encounter in a BaRS response → the step (BaRS REFRESP03, REFRESP02, REFREQ8B to 8D).
STEP_OF_BARS_ENCOUNTER: Mapping[str, Step] = {
    "planned": Step.ACCEPT,
    "cancelled": Step.REJECT,
    "arrived": Step.ARRIVE,
    "in-progress": Step.ADMIT,
    "finished": Step.ADMIT,
}

# What the hub says of a transfer as a FHIR Task and ServiceRequest; the state itself is Task.businessStatus.
TASK_STATUS: Mapping[State, str] = {
    State.DRAFT: "draft",
    State.REQUESTED: "requested",
    State.RECEIVED: "received",
    State.INFO_REQUESTED: "on-hold",
    State.ACCEPTED: "accepted",
    State.AWAITING_BED: "accepted",
    State.BED_ALLOCATED: "ready",
    State.TRANSPORT_BOOKED: "ready",
    State.IN_TRANSIT: "in-progress",
    State.ARRIVED: "in-progress",
    State.COMPLETED: "completed",
    State.REJECTED: "rejected",
    State.REDIRECTED: "cancelled",
    State.CANCELLED: "cancelled",
    State.ENTERED_IN_ERROR: "entered-in-error",
    State.FAILED: "failed",
    State.EXPIRED: "cancelled",
}
REQUEST_STATUS: Mapping[State, str] = {
    **dict.fromkeys(State, "active"),
    State.DRAFT: "draft",
    State.INFO_REQUESTED: "on-hold",
    State.COMPLETED: "completed",
    **dict.fromkeys((State.REDIRECTED, State.CANCELLED, State.FAILED, State.EXPIRED), "revoked"),
    State.ENTERED_IN_ERROR: "entered-in-error",
}
"""FHIR ServiceRequest.status."""
EVENT_TYPE: Mapping[Step, str] = {
    Step.DRAFT: "transfer.drafted",
    Step.REQUEST: "transfer.requested",
    Step.UPDATE: "transfer.updated",
    Step.CANCEL: "transfer.cancelled",
    Step.VOID: "transfer.entered-in-error",
    Step.RECEIVE: "transfer.received",
    Step.QUERY: "transfer.query.raised",
    Step.ANSWER_QUERY: "transfer.query.answered",
    Step.ACCEPT: "transfer.accepted",
    Step.REJECT: "transfer.rejected",
    Step.REDIRECT: "transfer.redirected",
    Step.AWAIT_BED: "transfer.bed.awaited",
    Step.ALLOCATE_BED: "transfer.bed.allocated",
    Step.RELEASE_BED: "transfer.bed.released",
    Step.BOOK_TRANSPORT: "transfer.transport.booked",
    Step.DEPART: "transfer.departed",
    Step.ARRIVE: "transfer.arrived",
    Step.ADMIT: "transfer.completed",
    Step.RETURN: "transfer.returned",
    Step.FAIL: "transfer.failed",
    Step.DIE: "transfer.patient.died",
    Step.DIVERGE: "transfer.diverged",
    Step.CONFIRM: "transfer.confirmed",
    Step.IDENTIFY: "transfer.patient.identified",
    Step.RETRACT: "transfer.corrected",
    Step.ESCALATE: "transfer.escalated",
    Step.EXPIRE: "transfer.expired",
}
CORRECTED = EVENT_TYPE[Step.RETRACT]
"""Also what a fact is told as that came late and changed what followed it."""
REOPENED = "transfer.reopened"
"""A transfer that was over is not over after all."""
GLASS_BROKEN = "access.glass-broken"
"""Nothing happened to the transfer: somebody elsewhere broke the glass for its patient, and its hospitals are told."""


@value
class Fact:
    """Something that happened to a transfer, as one trust reported it. Times are UTC.

    ``encounter`` is the stay that it was learned from (``<ODS>|<system>|<value>``), if it was. ``retracts`` are the
    steps that it takes back, of that stay. ``until`` is how long it holds (a bed), or when its end is expected (a journey).
    """

    event_id: EventId
    step: Step
    by: OdsCode
    party: Party
    occurred_at: datetime
    received_at: datetime
    sequence: int | None = None
    because: str = ""
    """One sentence for the record: no name, number or date of birth of a person in it."""
    encounter: str | None = None
    retracts: frozenset[Step] = frozenset()
    until: datetime | None = None
    clock: str | None = None
    """Which clock rang, and how loud (``decision:2``), where the fact is the hub's."""
    stated_at: datetime | None = None
    """When the sender's record was written, if it says."""

    @property
    def order(self) -> tuple[datetime, int, datetime, str]:
        """When it happened; the sender's own numbering; when it came; then its id, so that any two
        facts have one order.
        """
        return (self.occurred_at, self.sequence or 0, self.received_at, self.event_id)

    def takes_back(self, other: "Fact") -> bool:
        """Whether ``other`` counts no more once this is known."""
        return (
            other.step in self.retracts
            and other.by == self.by
            and (self.encounter is None or other.encounter in {None, self.encounter})
        )


@value
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
    state: State | None = None
    live: list[Fact] = []
    moves: list[Move] = []
    for fact in _in_order(facts):
        after: State | None
        if fact.step is Step.RETRACT:
            kept = [each for each in live if not fact.takes_back(each)]
            after = _play(kept) if state is not None and len(kept) < len(live) else None
            live = kept
        else:
            after = advance(state, fact.step, fact.party)
            live.append(fact)
        moves.append(Move(fact, state, after))
        state = after or state
    return tuple(moves)


_OPENING = frozenset({Step.REQUEST, Step.DRAFT})
_ASKED = _OPENING | {Step.CONFIRM}


def _in_order(facts: Iterable[Fact]) -> list[Fact]:
    ordered = sorted(facts, key=lambda fact: fact.order)
    opening = next((fact for fact in ordered if fact.step in _OPENING), None)
    if opening is not None:
        ordered.remove(opening)
        ordered.insert(0, opening)
    return ordered


def _play(facts: Sequence[Fact]) -> State:
    """Where these lead. A transfer that was inferred from what never happened was an error."""
    state: State | None = None
    for fact in facts:
        state = advance(state, fact.step, fact.party) or state
    return state or State.ENTERED_IN_ERROR


def final_state(moves: Iterable[Move]) -> State | None:
    """The state a story ends in."""
    state: State | None = None
    for move in moves:
        state = move.after or state
    return state


def counting(facts: Iterable[Fact]) -> list[Fact]:
    """The facts that were not taken back, in order."""
    live: list[Fact] = []
    for fact in _in_order(facts):
        if fact.step is Step.RETRACT:
            live = [each for each in live if not fact.takes_back(each)]
        else:
            live.append(fact)
    return live


def is_outdated(request: Fact, facts: Iterable[Fact]) -> bool:
    """Whether what was asked for has been said anew since: a message that waited, or was overtaken. Not where its version is higher: a clock
    was put back; nor where its time is that of the first request: a record that keeps it through its changes does not say when this one was made.
    """
    said = [fact for fact in _in_order(facts) if fact.step in _OPENING or fact.step is Step.UPDATE]
    if not said or request.occurred_at <= said[0].occurred_at:
        return False
    version = request.sequence or 0
    return any(each.order > request.order and version <= (each.sequence or version) for each in said)


def entered_at(moves: Iterable[Move]) -> datetime | None:
    """When the present state began, in event time."""
    at: datetime | None = None
    for move in moves:
        if move.after is not None and move.after is not move.before:
            at = move.fact.occurred_at
    return at


@value
class Transfer:
    """One patient's transfer from one trust to another.

    ``version`` counts the facts that were taken in. ``facts`` are all of them, in no order.
    ``kind`` is the transfer's type (`hub.domain.clocks`), ``priority`` FHIR's request priority, ``specialty`` the main
    specialty code that is asked for.
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
    specialty: str | None = None
    priority: str | None = None
    kind: str | None = None
    replaces: TransferId | None = None

    @property
    def inferred(self) -> bool:
        """Nobody asked for it and nobody has confirmed it: it is what two records say together."""
        return not any(fact.step in _ASKED for fact in self.facts)

    @property
    def is_open(self) -> bool:
        return self.state not in ENDED

    @property
    def was_asked(self) -> bool:
        """Whether the receiver was ever asked, or the patient ever on the way to it. What was not is the sender's business alone,
        whatever becomes of it.
        """
        return self.state not in UNASKED or any(fact.step in ASKING for fact in self.facts)

    def party(self, trust: OdsCode) -> Party | None:
        """The part this trust plays in the transfer, if any. The receiver has none in a draft, and none in what it was never asked."""
        if trust == self.sender:
            return Party.SENDER
        is_receiver = trust == self.receiver and self.state is not State.DRAFT and self.was_asked
        return Party.RECEIVER if is_receiver else None

    def other(self, trust: OdsCode) -> OdsCode:
        """The trust at the other end."""
        return self.receiver if trust == self.sender else self.sender

    def part_of(self, by: OdsCode) -> Party:
        """As what somebody's fact counts."""
        return Party.HUB if by == HUB else self.party(by) or Party.THIRD

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
