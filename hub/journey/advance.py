"""Step 4, advance: which transfers, and what does this message's fact do to them?

Explicit messages (requests, answers) name a transfer or mean the only one there can be (`hub.journey.which_transfer`). What a stay
says is laid against the person's transfers (`hub.journey.movements`). More than one candidate is a question for a human: nothing
moves by guess. What came of it is `hub.journey.taken`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hub.domain.ids import PersonId, TransferId, made_by
from hub.domain.message import Canonical, Kind
from hub.domain.rejection import Rejection, Why
from hub.domain.transfer import (
    HELD,
    PHYSICAL,
    STEP_OF_BARS_ENCOUNTER,
    STEP_OF_TASK,
    WHO_MAY,
    Fact,
    Party,
    State,
    Step,
    Transfer,
    entered_at,
    fold,
    is_outdated,
)
from hub.journey.known import Known
from hub.journey.movements import adopt, follow, kept_back, left_by_task, together
from hub.journey.stays import AFTER_END, expects_patient
from hub.journey.taken import Advanced, Taken, flags_of
from hub.journey.which_transfer import only_open

REASONS = frozenset({"RRNA", "OTH", "FC", "22", "23", "24", "27", "40", "42", "99"})
"""Refusal codes that may be quoted in the record (BaRS rejected-reasons, DoS). FHIR lets a code hold any words, so what
is not on the list might be a name: it stays in the message."""

_NEEDS_REASON = frozenset({Step.REJECT, Step.FAIL})


def advance(
    canonical: Canonical, person_id: PersonId, named: Transfer | None, known: Known
) -> Advanced | Rejection:
    """Find or make the transfers, and add the message's fact to them."""
    if canonical.kind is Kind.PATIENT:
        return _patient(canonical, person_id, known)
    stay = canonical.stay
    if stay is not None:
        return follow(stay, canonical, person_id, named, known)
    if canonical.kind is Kind.REQUEST and named is None:
        return _create(canonical, person_id, known)
    transfer = named or only_open(canonical, person_id, known)
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
    party = transfer.part_of(canonical.trust)
    by_receiver = party is Party.RECEIVER and step in {Step.CANCEL, Step.REDIRECT}
    if (step in _NEEDS_REASON or by_receiver) and not canonical.reason:
        return Rejection(Why.REASON_MISSING, "Task.statusReason")
    return _apply(canonical, transfer, step, known)


def _step(canonical: Canonical, transfer: Transfer) -> Step | Rejection:
    party = transfer.part_of(canonical.trust)
    step = _said(canonical, party)
    if step is None:
        return Rejection(Why.STATUS_NOT_SUPPORTED, "Task.status")
    if party not in WHO_MAY[step]:
        who = " or ".join(sorted(each.value for each in WHO_MAY[step]))
        return Rejection(Why.TRANSITION_DENIED, "Task.status", f"Only the {who} may {step}.")
    if canonical.expected_version is not None and canonical.expected_version != transfer.version:
        return Rejection(
            Why.VERSION_STALE,
            "if-match",
            f"The transfer is {transfer.state} at version {transfer.version}; "
            f"this was decided on version {canonical.expected_version}.",
        )
    return step


def _said(canonical: Canonical, party: Party) -> Step | None:
    status = canonical.status or ""
    if canonical.kind is Kind.REQUEST:
        return Step.DRAFT if status == "draft" else Step.REQUEST
    if canonical.kind is Kind.UPDATE:
        return Step.UPDATE
    if canonical.kind is Kind.CANCEL:
        return Step.VOID if status == "entered-in-error" else Step.CANCEL
    if status.startswith("encounter:"):
        return STEP_OF_BARS_ENCOUNTER.get(status.removeprefix("encounter:"))
    exact = f"{status}+{canonical.business_status}"
    own = STEP_OF_TASK.get(party, {})
    other = STEP_OF_TASK[Party.SENDER if party is Party.RECEIVER else Party.RECEIVER]
    return next((found[key] for found in (own, other) for key in (exact, status) if key in found), None)


_IN_WORDS: Mapping[Step, str] = {
    Step.DRAFT: "is preparing a request",
    Step.REQUEST: "sent the request again",
    Step.UPDATE: "changed the request",
    Step.CANCEL: "withdrew the request",
    Step.VOID: "said that the request was an error",
    Step.RECEIVE: "has seen the request",
    Step.QUERY: "asked for more information",
    Step.ANSWER_QUERY: "gave the information that was asked for",
    Step.ACCEPT: "accepted",
    Step.REJECT: "refused",
    Step.REDIRECT: "sends the request elsewhere",
    Step.AWAIT_BED: "accepted and is waiting for a bed",
    Step.ALLOCATE_BED: "has a bed ready",
    Step.RELEASE_BED: "no longer holds the bed",
    Step.BOOK_TRANSPORT: "has booked transport",
    Step.ARRIVE: "said that the patient has arrived",
    Step.ADMIT: "has admitted the patient",
    Step.FAIL: "said that the transfer has failed",
    Step.CONFIRM: "confirmed the transfer that nobody had asked for",
}


def _because(canonical: Canonical, transfer: Transfer, step: Step) -> str:
    if step is Step.DEPART:
        said = f"said that the patient has left for {transfer.receiver_code or transfer.receiver}"
    elif step is Step.REQUEST and transfer.inferred:
        said = f"asked {transfer.receiver} to take the patient"
    elif step is Step.CANCEL and canonical.trust != transfer.sender:
        said = "withdrew its acceptance"
    else:
        said = _IN_WORDS[step]
    known = sorted({code.value for code in canonical.reason} & REASONS)
    reason = f" ({', '.join(known)})" if known else ""
    return f"{canonical.trust} {said}{reason}"


def _fact(canonical: Canonical, transfer: Transfer, step: Step, because: str) -> Fact:
    party = Party.SENDER if canonical.trust == transfer.sender else transfer.part_of(canonical.trust)
    own_stay = canonical.encounter.key if canonical.encounter and canonical.kind is Kind.ANSWER else None
    return Fact(
        canonical.event_id,
        step,
        canonical.trust,
        party,
        canonical.occurred_at,
        canonical.received.received_at,
        canonical.sequence,
        because,
        own_stay,
        until=canonical.until,
        stated_at=canonical.stated_at,
    )


def _apply(canonical: Canonical, transfer: Transfer, step: Step, known: Known) -> Advanced | Rejection:
    """Add an explicit step; one that cannot be taken in its place in the story is refused."""
    before = transfer.state
    fact = _fact(canonical, transfer, step, _because(canonical, transfer, step))
    outdated = step in {Step.REQUEST, Step.UPDATE} and is_outdated(fact, transfer.facts)
    if outdated:
        fact = replace(fact, because=f"{fact.because}; it has said since what it asks for")
    told, move = transfer.with_fact(fact)
    if move.after is None and step not in PHYSICAL:
        return Rejection(
            Why.TRANSITION_DENIED,
            "status",
            f"The transfer is {move.before}; {step} cannot be done from there.",
        )
    if step in {Step.REQUEST, Step.UPDATE}:
        told = _with_wishes(told, canonical, outdated=outdated)
    if (before, told.state) == (State.DRAFT, State.REQUESTED):
        # While it was being written the patient may have come.
        told = replace(told, requested_at=canonical.occurred_at)
        person = transfer.person_id
        told = adopt(told, known.stays_of_person(person), known.transfers_of_person(person))
    taken = Taken(told, before, told.facts[len(transfer.facts) :], move)
    theirs = known.transfers_of_person(transfer.person_id)
    done = together(Advanced((taken,), flags=taken.flags), left_by_task(taken, theirs))
    if before is State.REJECTED and told.state in HELD:
        return together(done, kept_back(told, known.stays_of_person(transfer.person_id), theirs))
    return done


def _with_wishes(transfer: Transfer, canonical: Canonical, *, outdated: bool) -> Transfer:
    """A request says everything again; what it leaves out stays as it was. One that is outdated says only what nobody has said since."""
    encounter = canonical.encounter.key if canonical.encounter else None
    now = canonical.specialty, canonical.priority, canonical.transfer_kind, canonical.receiver_code
    known = transfer.specialty, transfer.priority, transfer.kind, transfer.receiver_code
    first, second = (known, now) if outdated else (now, known)
    specialty, priority, kind, receiver_code = (a or b for a, b in zip(first, second, strict=True))
    return replace(
        transfer,
        requests=tuple(dict.fromkeys((*transfer.requests, *canonical.refs.requests))),
        correlation_id=transfer.correlation_id or canonical.correlation_id,
        origin_encounter=transfer.origin_encounter or encounter,
        specialty=specialty,
        priority=priority,
        kind=kind,
        receiver_code=receiver_code,
    )


def _create(canonical: Canonical, person_id: PersonId, known: Known) -> Advanced | Rejection:
    """A new request: one of its own, the confirmation of what was inferred, or one that stands in for another."""
    if canonical.receiver is None:
        return Rejection(Why.RECEIVER_MISSING, "MessageHeader.destination.receiver")
    theirs = known.transfers_of_person(person_id)
    replaced = _replaced(canonical, theirs)
    if isinstance(replaced, Rejection):
        return replaced
    inferred = _inferred(canonical, theirs)
    if inferred is not None:
        asked = replace(inferred, requested_at=canonical.occurred_at)
        confirmed = _apply(canonical, asked, Step.REQUEST, known)
        if not isinstance(confirmed, Rejection):
            return confirmed
    blank = Transfer(
        id=TransferId(made_by(canonical.event_id, "transfer", canonical.event_id)),
        person_id=person_id,
        sender=canonical.trust,
        receiver=canonical.receiver,
        state=State.DRAFT,
        version=0,
        requested_at=canonical.occurred_at,
        facts=(),
        requests=tuple(dict.fromkeys(canonical.refs.requests)),
        correlation_id=canonical.correlation_id,
        origin_encounter=canonical.encounter.key if canonical.encounter else None,
        sender_code=canonical.sender_code,
        receiver_code=canonical.receiver_code,
        specialty=canonical.specialty,
        priority=canonical.priority,
        kind=canonical.transfer_kind,
        replaces=replaced.id if replaced else None,
    )
    existing = _one_open(blank, theirs)
    if existing is not None and (replaced is None or existing.id != replaced.id):
        return Rejection(
            Why.TRANSFER_EXISTS,
            "ServiceRequest",
            f"The open transfer is {existing.id}, to {existing.receiver}; it is {existing.state}.",
        )
    step = Step.DRAFT if canonical.status == "draft" else Step.REQUEST
    told, move = blank.with_fact(_fact(canonical, blank, step, _because(canonical, blank, step)))
    adopted = adopt(told, known.stays_of_person(person_id), theirs)
    created = Taken(adopted, None, adopted.facts, move, created=True)
    if replaced is None:
        return Advanced((created,), flags=created.flags)
    redirected = _apply(canonical, replaced, Step.REDIRECT, known)
    if isinstance(redirected, Rejection):
        return redirected
    return Advanced((created, *redirected.taken), flags=created.flags)


def _replaced(canonical: Canonical, theirs: Iterable[Transfer]) -> Transfer | Rejection | None:
    """The sender's own earlier request that this one stands in for, among the person's transfers."""
    refs = canonical.replaces
    if refs.hub_id is None and not refs.requests:
        return None
    found = [
        each
        for each in theirs
        if each.sender == canonical.trust
        and (each.id == refs.hub_id or set(each.requests) & set(refs.requests))
    ]
    return found[0] if len(found) == 1 else Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.replaces")


def _inferred(canonical: Canonical, theirs: Iterable[Transfer]) -> Transfer | None:
    """What was inferred between these two trusts and is now asked for after all."""
    own_stay = canonical.encounter.key if canonical.encounter else None
    found = [
        each
        for each in theirs
        if each.inferred
        and each.sender == canonical.trust
        and each.receiver == canonical.receiver
        and (None in {own_stay, each.origin_encounter} or each.origin_encounter == own_stay)
        and _can_be_asked_for(each, canonical.occurred_at, names_its_stay=own_stay is not None)
    ]
    return found[0] if len(found) == 1 else None


def _can_be_asked_for(inferred: Transfer, at: datetime, *, names_its_stay: bool) -> bool:
    """Whether a request of this time can be the one for it: as long as it is open, and afterwards what was asked before its end or,
    of the stay that the patient was moved from, soon after it. Anything else asks for another journey, and must not vanish in this one.
    """
    ended = None if inferred.is_open else entered_at(fold(inferred.facts))
    if ended is None:
        return inferred.is_open
    comes_late = names_its_stay and inferred.state is State.COMPLETED
    return at <= ended + (AFTER_END if comes_late else timedelta(0))


def _one_open(new: Transfer, theirs: Iterable[Transfer]) -> Transfer | None:
    """One open transfer per person, origin encounter and specialty (BaRS: one active request)."""
    wish = (new.sender, new.origin_encounter, new.specialty)
    return next(
        (
            each
            for each in theirs
            if each.is_open and (each.sender, each.origin_encounter, each.specialty) == wish
        ),
        None,
    )


def _patient(canonical: Canonical, person_id: PersonId, known: Known) -> Advanced:
    """A patient event moves no transfer unless it says that the patient has died, or no longer has."""
    transfers = known.transfers_of_person(person_id)
    if (record := known.persons.get(person_id)) and record.merged_into is not None:
        # It is being parted: what is said of it is not said of whom it was merged with.
        own = {each.id for each in known.below(person_id)}
        transfers = [t for t in transfers if t.person_id in own]
    deceased, trust = canonical.person.deceased, canonical.trust
    if deceased:
        fact = Fact(
            canonical.event_id, Step.DIE, trust, Party.THIRD, canonical.occurred_at,
            canonical.received.received_at, canonical.sequence, f"{trust}'s record says that the patient has died",
        )  # fmt: skip
        return _to_all(fact, [t for t in transfers if t.is_open])
    if deceased is False:
        fact = Fact(
            canonical.event_id, Step.RETRACT, trust, Party.THIRD, canonical.occurred_at,
            canonical.received.received_at, canonical.sequence, f"{trust}'s record says that the patient is alive",
            retracts=frozenset({Step.DIE}),
        )  # fmt: skip
        dead = [t for t in transfers if any(fact.takes_back(each) for each in t.facts)]
        return _to_all(fact, dead)
    return Advanced(shared=tuple(t for t in transfers if t.sender == trust and expects_patient(t)))


def identity_changed(canonical: Canonical, transfers: Iterable[Transfer], basis: str) -> Advanced:
    """Who the patient is has changed: every open transfer keeps that as a fact, and both hospitals hear of it; so do those of one that ended with
    a death, which may have been somebody else's.
    """
    fact = Fact(
        canonical.event_id, Step.IDENTIFY, canonical.trust, Party.THIRD, canonical.occurred_at,
        canonical.received.received_at, canonical.sequence, f"{canonical.trust}'s records of the patient changed: {basis}",
    )  # fmt: skip
    return _to_all(fact, filter(hears_who_it_is, transfers))


def hears_who_it_is(transfer: Transfer) -> bool:
    """Whether who the patient is still matters to its hospitals: it is open, or ended with a death."""
    return transfer.is_open or any(fact.step is Step.DIE for fact in transfer.facts)


def _to_all(fact: Fact, transfers: Iterable[Transfer]) -> Advanced:
    taken = []
    for transfer in transfers:
        told, move = transfer.with_fact(replace(fact, party=transfer.part_of(fact.by)))
        taken.append(Taken(told, transfer.state, (move.fact,), move))
    return Advanced(tuple(taken), flags=flags_of(taken))
