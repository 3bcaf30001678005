"""Clocks: how long each part of a transfer may take before somebody is told (DOMAIN, 5.2, timers).

The limits are data (`schemas/clocks.yaml`). A clock starts at the time of the event that started it, not when the hub heard of
it, so that it survives restarts and late news. When one runs out, people are told, louder and louder; clinical work is never
ended by a clock. Only a bed that is held no longer is given back.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hub.domain.transfer import HELD, WAITING, Fact, Move, Party, State, Step, Transfer, counting, fold
from hub.domain.value import value


class Clock(StrEnum):
    VIEW = "view"
    DECISION = "decision"
    BED = "bed"
    BED_HOLD = "bed-hold"
    ARRIVAL = "arrival"
    MOVED = "moved"
    DIVERGENCE = "divergence"


class Pace(StrEnum):
    """How fast a transfer must go: by its priority, or because it is a repatriation."""

    STAT = "stat"
    ASAP = "asap"
    URGENT = "urgent"
    ROUTINE = "routine"
    REPATRIATION = "repatriation"


Limit = Annotated[timedelta, Field(gt=timedelta())]
Limits = Mapping[Pace, Mapping[Clock, Limit]]
Factor = Annotated[float, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Route(_Part):
    """Other limits from one trust to another; what it does not name stays as it is for all."""

    sender: str
    receiver: str
    limits: Limits


class Clocks(_Part):
    """The content of `schemas/clocks.yaml`. Durations are ISO 8601 (``PT30M``)."""

    limits: Limits = Field(default_factory=dict)
    after_expected_end: Mapping[Pace, Limit] = Field(
        default_factory=dict, description="A journey whose end was announced may take this much longer"
    )
    ladder: tuple[Factor, ...] = Field(
        default=(1.0, 1.5, 2.0),
        min_length=3,
        description="At these multiples of a limit the next level is told; a person may close a transfer after the third",
    )
    settle: timedelta = Field(
        default=timedelta(minutes=1),
        ge=timedelta(),
        description="No clock rings so soon after news: a backlog may hold what it waits for; nor sooner while messages of a hospital of the "
        "transfer lie unread and nothing moves",
    )
    routes: tuple[Route, ...] = ()

    @field_validator("ladder")
    @classmethod
    def _climbs(cls, ladder: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in pairwise(ladder)):
            raise ValueError("each level must be later than the one before")
        return ladder

    def limits_of(self, transfer: Transfer) -> Mapping[Clock, timedelta]:
        """How long each clock runs for this transfer; one that is not in it does not run. Of two routes the first counts."""
        pace = pace_of(transfer)
        limits = self.limits.get(pace, {})
        for route in reversed(self.routes):
            if route.sender == transfer.sender and route.receiver == transfer.receiver:
                limits = {**limits, **route.limits.get(pace, {})}
        return limits


_PACE_OF_PRIORITY: Mapping[str, Pace] = {
    **{pace.value: pace for pace in Pace},
    "IFT1": Pace.STAT,
    "IFT2": Pace.ASAP,
    "IFT3": Pace.URGENT,
    "IFT4": Pace.ROUTINE,
}


def pace_of(transfer: Transfer) -> Pace:
    """A transfer that says nothing is routine (FHIR R4, request priority)."""
    if transfer.kind == Pace.REPATRIATION:
        return Pace.REPATRIATION
    return _PACE_OF_PRIORITY.get(transfer.priority or "", Pace.ROUTINE)


@value
class Due:
    """When a clock rings next, and at which level (1 is the first)."""

    at: datetime
    clock: Clock
    level: int

    @property
    def name(self) -> str:
        return f"{self.clock}:{self.level}"


@value
class Hearing:
    """How far the hub has heard the trusts when a clock looks. For a trust of ``until`` only what was due by then may ring, None: nothing: what it
    sent since is being read. What those of ``unread`` sent is not read, and it is not known when it will be.
    """

    until: Mapping[str, datetime | None] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()


@value
class _Running:
    clock: Clock
    since: datetime
    until: datetime | None = None
    """An end that somebody has announced; it stands for the limit."""


def next_due(transfer: Transfer, clocks: Clocks) -> Due | None:
    """The clock that rings first, at the first level that has not rung. None: nothing is waited for.

    ``at`` is never before the hub has had `Clocks.settle` to hear the rest.
    """
    moves = fold(transfer.facts)
    limits = clocks.limits_of(transfer)
    dues = [
        due
        for running in _running(transfer, moves)
        if (due := _due(transfer, running, limits, clocks)) is not None
    ]
    if not dues:
        return None
    first = min(dues, key=lambda due: (due.at, due.name))
    news = max((fact.received_at for fact in transfer.facts if fact.party is not Party.HUB), default=first.at)
    return Due(max(first.at, news + clocks.settle), first.clock, first.level)


def level_at(transfer: Transfer, due: Due, clocks: Clocks, now: datetime) -> Due:
    """The highest level of the same clock that has been reached: after an outage the lower ones are not told in a row."""
    moves = fold(transfer.facts)
    running = next((each for each in _running(transfer, moves) if each.clock is due.clock), None)
    if running is None:
        return due
    times = list(_times(transfer, running, clocks.limits_of(transfer), clocks))
    reached = [level for level, at in enumerate(times, 1) if at <= now]
    level = max([due.level, *reached])
    return Due(times[level - 1], due.clock, level)


def _due(
    transfer: Transfer, running: _Running, limits: Mapping[Clock, timedelta], clocks: Clocks
) -> Due | None:
    rung = max(_levels_rung(transfer.facts, running), default=0)
    for level, at in enumerate(_times(transfer, running, limits, clocks), 1):
        if level > rung:
            return Due(at, running.clock, level)
    return None


def level_rung(transfer: Transfer) -> int:
    """The highest level that a clock has rung of those that run now; what was waited for in an earlier state counts no more. 0: none."""
    running = _running(transfer, fold(transfer.facts))
    return max((level for each in running for level in _levels_rung(transfer.facts, each)), default=0)


LAST_LEVEL = 3
"""From here on a person may close the transfer (`Clocks.ladder`)."""
_UNWATCHED = (State.DRAFT, State.INFO_REQUESTED, State.REJECTED)
"""The open states in which as a rule no clock runs: it is the sender's turn."""


def may_be_closed(transfer: Transfer, clocks: Clocks, now: datetime) -> bool:
    """Whether a person may close it: what is waited for now has climbed the ladder to its third level; or, where no clock runs, nothing was
    heard of it for as long as a decision takes to climb there.
    """
    if level_rung(transfer) >= LAST_LEVEL:
        return True
    limit = clocks.limits_of(transfer).get(Clock.DECISION)
    if limit is None or transfer.state not in _UNWATCHED or next_due(transfer, clocks) is not None:
        return False
    heard = max((fact.received_at for fact in transfer.facts), default=transfer.requested_at)
    return now >= heard + limit * clocks.ladder[LAST_LEVEL - 1]


def _levels_rung(facts: Sequence[Fact], running: _Running) -> Iterator[int]:
    for fact in facts:
        if fact.clock is None:
            continue
        clock, _, level = fact.clock.partition(":")
        if clock == running.clock and fact.occurred_at >= running.since:
            yield int(level)


def _times(
    transfer: Transfer, running: _Running, limits: Mapping[Clock, timedelta], clocks: Clocks
) -> Iterator[datetime]:
    limit = limits.get(running.clock)
    if running.clock is Clock.BED_HOLD:
        if running.until is not None or limit is not None:
            yield running.until or running.since + (limit or timedelta())
        return
    if running.until is not None:
        grace = clocks.after_expected_end.get(pace_of(transfer))
        if grace is not None:
            limit = max(running.until - running.since, timedelta()) + grace
    if limit is not None:
        for factor in clocks.ladder:
            yield running.since + _times_as_long(limit, factor)


@lru_cache(maxsize=1024)
def _times_as_long(limit: timedelta, factor: float) -> timedelta:
    """Remembered: limits are few, and Python multiplies by a fraction in whole numbers."""
    return limit * factor


_UNDECIDED = (State.REQUESTED, State.RECEIVED)
_BEDLESS = (State.ACCEPTED, State.AWAITING_BED)
_WITH_BED = (State.BED_ALLOCATED, State.TRANSPORT_BOOKED)


def _running(transfer: Transfer, moves: Sequence[Move]) -> Iterator[_Running]:
    """What is waited for in the present state, and since when in event time."""
    state = transfer.state
    if not transfer.is_open or state is State.DRAFT or state is State.REJECTED:
        return
    facts = counting(transfer.facts)
    if state is State.REQUESTED:
        yield _Running(Clock.VIEW, _since(moves, (State.REQUESTED,), transfer))
    if state in _UNDECIDED:
        yield _Running(Clock.DECISION, _since(moves, _UNDECIDED, transfer))
    if state in _BEDLESS:
        yield _Running(Clock.BED, _since(moves, _BEDLESS, transfer))
    if state in _WITH_BED:
        bed = _last(facts, Step.ALLOCATE_BED)
        if bed is not None:
            # An end before the beginning is a slip. What the hub gave back then would be undone by the bed that came after it, and
            # the clock would ring for ever.
            until = _announced(bed)
            is_possible = until is not None and until > bed.occurred_at
            yield _Running(Clock.BED_HOLD, bed.occurred_at, until if is_possible else None)
    if state is State.IN_TRANSIT:
        announced = _last(facts, Step.BOOK_TRANSPORT, Step.DEPART)
        until = _announced(announced) if announced else None
        yield _Running(Clock.ARRIVAL, _since(moves, (State.IN_TRANSIT,), transfer), until)
    if state in WAITING or state in HELD:
        yield _Running(Clock.MOVED, transfer.requested_at)
    alarm = _last(facts, Step.DIVERGE)
    if alarm is not None and not any(
        f.occurred_at > alarm.occurred_at and f.by == transfer.sender for f in facts
    ):
        yield _Running(Clock.DIVERGENCE, alarm.occurred_at)


_FAR_OFF = timedelta(days=30)
"""No journey lasts so long, and no bed is kept so long: systems write 31/12/9999 where no end is known, and years are mistyped."""


def _announced(fact: Fact) -> datetime | None:
    """The end that a fact announces, if it can be one."""
    is_end = fact.until is not None and fact.until - fact.occurred_at <= _FAR_OFF
    return fact.until if is_end else None


def _since(moves: Sequence[Move], states: tuple[State, ...], transfer: Transfer) -> datetime:
    """When the present run of these states began."""
    since = transfer.requested_at
    for move in moves:
        if move.after in states and move.before not in states:
            since = move.fact.occurred_at
    return since


def _last(facts: Sequence[Fact], *steps: Step) -> Fact | None:
    return next((fact for fact in reversed(facts) if fact.step in steps), None)


_WHAT: Mapping[Clock, str] = {
    Clock.VIEW: "{receiver} has not looked at the request in time",
    Clock.DECISION: "{receiver} has not decided in time",
    Clock.BED: "{receiver} has accepted and has no bed in time",
    Clock.BED_HOLD: "the time for which {receiver} held the bed is over",
    Clock.ARRIVAL: "the patient has left {sender} and has not arrived at {receiver} in time",
    Clock.MOVED: "the patient has not been moved in time since {sender} asked",
    Clock.DIVERGENCE: "the records of the hospitals do not agree, and {sender} has not said what is true",
}
_WHO: Sequence[str] = (
    "{receiver}'s duty or bed manager",
    "site operations of {sender} and {receiver}",
    "the executives on call of both trusts and the integrated care board",
)


def sentence(transfer: Transfer, due: Due, unread: Collection[str] = ()) -> str:
    """What is told when it rings, and whom it is for. In an emergency a message is never enough. ``unread`` are trusts whose messages the hub
    has not read to the end: whoever reads the alarm must know that it may be wrong.
    """
    silent = [ods for ods in (transfer.sender, transfer.receiver) if ods in unread]
    doubt = (
        f"The hub has not read all that {' and '.join(silent)} sent: it may have happened. " if silent else ""
    )
    return doubt + _alarm(transfer, due)


def _alarm(transfer: Transfer, due: Due) -> str:
    trusts = {"sender": transfer.sender, "receiver": transfer.receiver}
    what = _WHAT[due.clock].format(**trusts)
    if due.clock is Clock.BED_HOLD:
        return what
    who = _WHO[min(due.level, len(_WHO)) - 1].format(**trusts)
    phone = " Phone as well" if pace_of(transfer) is Pace.STAT else ""
    return f"{what}. Level {due.level}: {who}.{phone}".rstrip(".")
