"""Step 4, advance: which transfer, and what does this fact do to it?"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

from hub.domain.ids import PersonId, TransferId, time_ordered_id
from hub.domain.message import Canonical, Flag, FlagCode, Kind
from hub.domain.rejection import Rejection, Why
from hub.domain.transfer import (
    ENDED,
    STEP_OF_BARS_ENCOUNTER,
    STEP_OF_TASK,
    WHO_MAY,
    Fact,
    Move,
    Party,
    State,
    Step,
    Transfer,
)
from hub.journey.known import Known

INPATIENT = frozenset({"IMP", "ACUTE", "NONAC"})
"""Encounter classes that mean a bed (v3-ActCode); an ED or outpatient attendance completes no transfer."""

REASONS = frozenset({"RRNA", "OTH", "FC", "22", "23", "24", "27", "40", "42", "99"})
"""Refusal codes that may be quoted in the record (BaRS rejected-reasons, DoS). FHIR lets a code hold any words, so what
is not on the list might be a name: it stays in the message."""

_BEFORE_REQUEST = timedelta(days=1)
"""Encounter events older than the request by more than this belong to another story."""
_AFTER_END = timedelta(days=7)
"""Late departures still find the transfer that their patient's arrival completed."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """The transfer after the fact, or no transfer: then the message is kept as an event that moved nothing."""

    transfer: Transfer | None = None
    fact: Fact | None = None
    move: Move | None = None
    created: bool = False
    flags: tuple[Flag, ...] = ()


def named_transfer(canonical: Canonical, known: Known) -> Transfer | Rejection | None:
    """The transfer that the message names itself, surest way first: the hub's id, the request's identifier
    between these two trusts, the conversation. A trust that has no part in it gets the same answer as if it did not exist.
    """
    refs, trust = canonical.refs, canonical.trust
    if refs.hub_id is not None:
        transfer = known.transfers.get(TransferId(refs.hub_id))
        if transfer is None or transfer.party(trust) is None:
            return Rejection(Why.TRANSFER_UNKNOWN, "identifier")
        return transfer
    by_request = _of_trust((t for r in refs.requests for t in known.transfers_of_request(r)), canonical)
    if by_request or not refs.correlation_id:
        return _only(by_request)
    if canonical.kind in {Kind.REQUEST, Kind.ENCOUNTER}:
        return None
    return _only(_of_trust(known.transfers_of_correlation(refs.correlation_id), canonical))


def _of_trust(transfers: Iterable[Transfer], canonical: Canonical) -> dict[TransferId, Transfer]:
    """Those in which the trust plays a part this kind of message needs."""
    needs = {Kind.REQUEST: Party.SENDER, Kind.UPDATE: Party.SENDER, Kind.CANCEL: Party.SENDER}.get(
        canonical.kind
    )
    return {
        t.id: t
        for t in transfers
        if (party := t.party(canonical.trust)) is not None and needs in {None, party}
    }


def _only(found: dict[TransferId, Transfer]) -> Transfer | Rejection | None:
    if len(found) > 1:
        return Rejection(Why.TRANSFER_AMBIGUOUS, "identifier")
    return next(iter(found.values()), None)


def advance(
    canonical: Canonical, person_id: PersonId, named: Transfer | None, known: Known
) -> Advanced | Rejection:
    """Find or make the transfer, and add the message's fact to it."""
    if canonical.kind is Kind.ENCOUNTER:
        return _encounter(canonical, person_id, known)
    if canonical.kind is Kind.REQUEST and named is None:
        return _create(canonical, person_id)
    transfer = named or _only_open(canonical, person_id, known)
    if isinstance(transfer, Rejection):
        return transfer
    if (
        canonical.receiver is not None
        and canonical.kind is not Kind.ANSWER
        and canonical.receiver != transfer.receiver
    ):
        return Rejection(Why.RECEIVER_CHANGED, "MessageHeader.destination.receiver")
    step = _step(canonical, transfer)
    if isinstance(step, Rejection):
        return step
    if step is Step.REJECT and not canonical.reason:
        return Rejection(Why.REASON_MISSING, "Task.statusReason")
    return _apply(canonical, transfer, step, _because(canonical, transfer, step))


def _only_open(canonical: Canonical, person_id: PersonId, known: Known) -> Transfer | Rejection:
    """Without a name: the one open transfer of this person in which the trust plays the part, and no guess."""
    found = _of_trust((t for t in known.transfers_of_person(person_id) if t.state not in ENDED), canonical)
    if canonical.receiver is not None and canonical.kind is not Kind.ANSWER:
        found = {k: t for k, t in found.items() if t.receiver == canonical.receiver}
    return _only(found) or Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")


def _step(canonical: Canonical, transfer: Transfer) -> Step | Rejection:
    by_kind = {Kind.REQUEST: Step.REQUEST, Kind.UPDATE: Step.UPDATE, Kind.CANCEL: Step.CANCEL}.get(
        canonical.kind
    )
    party = transfer.party(canonical.trust)
    step = by_kind
    if step is None and party is not None:
        status = canonical.status or ""
        if status.startswith("encounter:"):
            step = STEP_OF_BARS_ENCOUNTER.get(status.removeprefix("encounter:"))
        else:
            step = STEP_OF_TASK[party].get(status)
            other = STEP_OF_TASK[Party.SENDER if party is Party.RECEIVER else Party.RECEIVER].get(status)
            step = step or other
    if step is None:
        return Rejection(Why.STATUS_NOT_SUPPORTED, "Task.status")
    if WHO_MAY[step] is not party:
        return Rejection(Why.TRANSITION_DENIED, "Task.status", f"Only the {WHO_MAY[step]} may {step}.")
    return step


def _because(canonical: Canonical, transfer: Transfer, step: Step) -> str:
    known = sorted({code.value for code in canonical.reason} & REASONS)
    reason = f" ({', '.join(known)})" if known else ""
    said = {
        Step.REQUEST: f"{canonical.trust} sent the request again",
        Step.UPDATE: f"{canonical.trust} changed the request",
        Step.CANCEL: f"{canonical.trust} withdrew the request",
        Step.RECEIVE: f"{canonical.trust} has seen the request",
        Step.ACCEPT: f"{canonical.trust} accepted",
        Step.REJECT: f"{canonical.trust} refused",
        Step.ALLOCATE_BED: f"{canonical.trust} has a bed ready",
        Step.DEPART: f"{canonical.trust} said that the patient has left for {transfer.receiver_code or transfer.receiver}",
        Step.ADMIT: f"{canonical.trust} has admitted the patient",
    }[step]
    return said + reason


def _apply(canonical: Canonical, transfer: Transfer, step: Step, because: str) -> Advanced | Rejection:
    """Add an explicit step; one that cannot be taken in its place in the story is refused."""
    fact = _fact(canonical, step, because)
    told, move = transfer.with_fact(fact)
    if move.after is None:
        return Rejection(
            Why.TRANSITION_DENIED,
            "status",
            f"The transfer is {move.before}; {step} cannot be done from there.",
        )
    return Advanced(told, fact, move, flags=_hazards(move))


def _fact(canonical: Canonical, step: Step, because: str) -> Fact:
    return Fact(
        canonical.event_id,
        step,
        canonical.trust,
        canonical.occurred_at,
        canonical.received.received_at,
        canonical.sequence,
        because,
    )


def _hazards(move: Move) -> tuple[Flag, ...]:
    moved_early = move.fact.step is Step.DEPART and move.before in {State.REQUESTED, State.RECEIVED}
    return (Flag(FlagCode.MOVED_WITHOUT_ACCEPTANCE),) if moved_early else ()


def _create(canonical: Canonical, person_id: PersonId) -> Advanced | Rejection:
    if canonical.receiver is None:
        return Rejection(Why.RECEIVER_MISSING, "MessageHeader.destination.receiver")
    fact = _fact(canonical, Step.REQUEST, f"{canonical.trust} asked {canonical.receiver} to take the patient")
    transfer = Transfer(
        id=TransferId(time_ordered_id(canonical.received.received_at, "transfer", canonical.event_id)),
        person_id=person_id,
        sender=canonical.trust,
        receiver=canonical.receiver,
        state=State.REQUESTED,
        version=0,
        requested_at=canonical.occurred_at,
        facts=(),
        requests=canonical.refs.requests,
        correlation_id=canonical.correlation_id,
        origin_encounter=canonical.encounter.key if canonical.encounter else None,
        sender_code=canonical.sender_code,
        receiver_code=canonical.receiver_code,
    )
    told, move = transfer.with_fact(fact)
    return Advanced(replace(told), fact, move, created=True)


def _encounter(canonical: Canonical, person_id: PersonId, known: Known) -> Advanced:
    """What a stay says about the person's transfers. Most stays have nothing to do with one."""
    candidates = [
        (transfer, step)
        for transfer in known.transfers_of_person(person_id)
        if _in_time(canonical, transfer) and (step := _step_of_stay(canonical, transfer)) is not None
    ]
    exact = [
        (t, s) for t, s in candidates if canonical.encounter and t.origin_encounter == canonical.encounter.key
    ]
    still_open = [(t, s) for t, s in candidates if t.state not in ENDED]
    chosen = exact or still_open or candidates
    if not chosen:
        return Advanced()
    if len(chosen) > 1:
        return Advanced(
            flags=(Flag(FlagCode.TRANSFER_AMBIGUOUS, detail=f"{len(chosen)} transfers could be meant"),)
        )
    transfer, step = chosen[0]
    fact = _fact(canonical, step, _because_of_stay(canonical, step))
    told, move = transfer.with_fact(fact)
    # What happened is kept even where it moves nothing now: a fact that comes late may make room for it.
    return Advanced(told, fact, move, flags=_hazards(move))


def _in_time(canonical: Canonical, transfer: Transfer) -> bool:
    if canonical.occurred_at < transfer.requested_at - _BEFORE_REQUEST:
        return False
    ended = transfer.changed_at if transfer.state in ENDED else None
    return ended is None or canonical.received.received_at <= ended + _AFTER_END


def _step_of_stay(canonical: Canonical, transfer: Transfer) -> Step | None:
    stay, party = canonical.encounter, transfer.party(canonical.trust)
    if stay is None or party is None:
        return None
    if party is Party.SENDER:
        other_stay = transfer.origin_encounter is not None and stay.key != transfer.origin_encounter
        leaves = stay.status == "finished" and stay.destination == transfer.receiver
        return Step.DEPART if leaves and not other_stay else None
    admitted = stay.status in {"in-progress", "finished", "onleave"} and stay.encounter_class in INPATIENT
    return Step.ADMIT if admitted else None


def _because_of_stay(canonical: Canonical, step: Step) -> str:
    stay = canonical.encounter
    if step is Step.DEPART and stay is not None:
        return f"{canonical.trust}'s encounter ended with destination {stay.destination_code}"
    return f"{canonical.trust}'s own encounter of the patient has begun"
