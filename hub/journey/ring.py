"""When a clock runs out, or the duty team acts: the hub's own fact, told to both hospitals like any other. Pure; the store says what is due."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from hub.audit.catalogue import TRANSFER_CODE
from hub.audit.entries import AuditEntry, Code
from hub.domain.clocks import Clock, Clocks, Due, level_at, may_be_closed, next_due, sentence
from hub.domain.ids import EventId, time_ordered_id
from hub.domain.transfer import EVENT_TYPE, HUB, Fact, Party, Step, Transfer
from hub.domain.trust import Directory
from hub.fhir.outgoing import Occasion
from hub.journey.effects import Outgoing
from hub.journey.route import from_the_hub
from hub.journey.taken import Taken


@dataclass(frozen=True, slots=True)
class Rung:
    """What one clock, or one act of the duty team's, causes."""

    taken: Taken
    outbox: tuple[Outgoing, ...]
    audit: tuple[AuditEntry, ...]


def ring(
    transfer: Transfer,
    clocks: Clocks,
    directory: Directory,
    now: datetime,
    unread: Collection[str] = (),
) -> Rung | None:
    """What is due for this transfer at ``now``, or None if something has happened in the meantime. ``unread``: see `sentence`."""
    due = next_due(transfer, clocks)
    if due is None or due.at > now:
        return None
    due = level_at(transfer, due, clocks, now)
    step = Step.RELEASE_BED if due.clock is Clock.BED_HOLD else Step.ESCALATE
    return _hub_step(transfer, step, due.at, sentence(transfer, due, unread), directory, now, due)


def expire(
    transfer: Transfer, because: str, clocks: Clocks, directory: Directory, now: datetime, by: str
) -> Rung | None:
    """Close a transfer that nobody acts on: a person's decision, possible only when it has waited long enough (`may_be_closed`). None: it may
    not be closed. ``because`` is that person's reason, ``by`` is who it is.
    """
    if not may_be_closed(transfer, clocks, now):
        return None
    why = f"closed by the duty team: {because}"
    rung = _hub_step(transfer, Step.EXPIRE, now, why, directory, now, None, by)
    return rung if rung.taken.move.after is not None else None


def number_taken(transfer: Transfer, whose: str, directory: Directory, now: datetime, by: str) -> Rung:
    """A number was taken from the record of the transfer's patient, because it is somebody else's: the hospitals were told it. ``whose`` says what
    kind of number, and never which; ``by`` is the operator.
    """
    why = f"the duty team took {whose} from the patient's record: it is not theirs. Check the numbers you hold for them."
    return _hub_step(transfer, Step.IDENTIFY, now, why, directory, now, None, by)


def _hub_step(
    transfer: Transfer,
    step: Step,
    at: datetime,
    because: str,
    directory: Directory,
    now: datetime,
    due: Due | None,
    by: str | None = None,
) -> Rung:
    identity = time_ordered_id(now, step, transfer.id, transfer.version)
    clock = due.name if due else None
    fact = Fact(EventId(identity), step, HUB, Party.HUB, at, now, None, because, clock=clock)
    told, move = transfer.with_fact(fact)
    taken = Taken(told, transfer.state, (fact,), move)
    news = from_the_hub(Occasion(identity, HUB, at, now), told, EVENT_TYPE[step], because, directory)
    return Rung(taken, news, tuple(_audit(taken, news, now, by)))


def _audit(taken: Taken, news: tuple[Outgoing, ...], now: datetime, by: str | None) -> list[AuditEntry]:
    transfer, fact = taken.transfer, taken.fact

    def entry(code: Code, detail: dict[str, object], counterpart: str | None = None) -> AuditEntry:
        return AuditEntry(
            code,
            now,
            "cli" if by else "clock",
            trust=HUB,
            counterpart=counterpart,
            event_id=fact.event_id,
            person_id=transfer.person_id,
            transfer_id=transfer.id,
            occurred_at=fact.occurred_at,
            user_id=by,
            detail=detail,
        )

    code = TRANSFER_CODE[EVENT_TYPE[fact.step]]
    entries = [entry(code, {**taken.detail, "clock": fact.clock})]
    routes = [{"to": out.receiver, "topic": out.topic} for out in news]
    if routes:
        entries.append(entry(Code.ROUTED, {"routes": routes}, routes[0]["to"]))
    return entries
