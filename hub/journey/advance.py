"""Step 4, advance: which transfers, and what does this message's fact do to them?

Explicit messages (requests, answers) name a transfer or mean the only one there can be. What a stay says is laid against the
person's transfers (`hub.journey.stays`); where nobody asked for what two records show, a transfer is inferred. More than one
candidate is a question for a human: nothing moves by guess.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hub.domain.ids import OdsCode, PersonId, TransferId, made_by
from hub.domain.message import Canonical, Flag, FlagCode, Kind, Stay
from hub.domain.rejection import Rejection, Why
from hub.domain.transfer import (
    LEFT_AFTER_ALL,
    PHYSICAL,
    STEP_OF_BARS_ENCOUNTER,
    STEP_OF_TASK,
    WHO_MAY,
    Fact,
    Move,
    Party,
    State,
    Step,
    Transfer,
    counting,
    entered_at,
    fold,
)
from hub.domain.value import value
from hub.journey.known import Known
from hub.journey.stays import (
    AFTER_END,
    CLOCKS_DIFFER,
    NO_BED,
    TREAT_AND_RETURN,
    Meaning,
    arrives_from_elsewhere,
    came_from_another,
    expects_patient,
    fact_of,
    gone_elsewhere,
    has_said,
    is_anothers,
    is_in_time,
    is_related,
    is_shared,
    leaves_for,
    meaning_of,
    precedes_its_end,
)

REASONS = frozenset({"RRNA", "OTH", "FC", "22", "23", "24", "27", "40", "42", "99"})
"""Refusal codes that may be quoted in the record (BaRS rejected-reasons, DoS). FHIR lets a code hold any words, so what
is not on the list might be a name: it stays in the message."""

_NEEDS_REASON = frozenset({Step.REJECT, Step.FAIL})
_NOT_ACCEPTED = frozenset(
    {State.DRAFT, State.REQUESTED, State.RECEIVED, State.INFO_REQUESTED, State.REJECTED}
    | {State.CANCELLED, State.REDIRECTED, State.ENTERED_IN_ERROR}
)


ANOTHER_ADDRESSED = Rejection(
    Why.ADDRESS_DIFFERS, "Task", "The body names another transfer or another patient than the address."
)


@value
class Taken:
    """What a message did to one transfer: its fact and, of stays that were told before the transfer was known, theirs.

    ``before`` is the state that was stored; ``move`` what the message's own fact did in its place in the story.
    """

    transfer: Transfer
    before: State | None
    facts: tuple[Fact, ...]
    move: Move
    created: bool = False

    @property
    def fact(self) -> Fact:
        """The message's own."""
        return self.move.fact

    @property
    def detail(self) -> dict[str, object]:
        """What happened, for the audit."""
        return {
            "step": self.fact.step,
            "from": self.before,
            "to": self.transfer.state,
            "why": self.fact.because,
            "version": self.transfer.version,
        }

    @property
    def came_late(self) -> bool:
        """Whether something that happened after it was known before it."""
        return any(each.occurred_at > self.fact.occurred_at for each in self.transfer.facts)

    @property
    def moved_without_acceptance(self) -> bool:
        departs = self.fact.step is Step.DEPART and not self.transfer.inferred
        return departs and self.move.before in _NOT_ACCEPTED

    @property
    def corrects(self) -> bool:
        """Whether the state is now another than the fact by itself would have made it, or something was taken back."""
        if self.fact.step is Step.REQUEST and self.before is State.DRAFT:
            # The receiver hears of it for the first time.
            return False
        changed = self.before is not None and self.transfer.state is not self.before
        return changed and (self.fact.step is Step.RETRACT or self.move.after is not self.transfer.state)

    @property
    def is_alert(self) -> bool:
        """Both hospitals must hear of it, the one that told it too."""
        too_late = self.fact.step is Step.RETRACT and self.transfer.state is self.before
        return self.fact.step is Step.DIVERGE or self.moved_without_acceptance or too_late

    @property
    def flags(self) -> tuple[Flag, ...]:
        found = []
        if self.moved_without_acceptance:
            found.append(Flag(FlagCode.MOVED_WITHOUT_ACCEPTANCE))
        elif self.is_alert:
            found.append(Flag(FlagCode.RECORDS_DIVERGE))
        if self.created and self.transfer.inferred:
            found.append(Flag(FlagCode.TRANSFER_INFERRED))
        return tuple(found)


@value
class Advanced:
    """What was taken, per transfer. None: the message is kept as an event that moved nothing.

    ``shared`` are transfers whose receiver hears of the event although nothing moved.
    """

    taken: tuple[Taken, ...] = ()
    shared: tuple[Transfer, ...] = ()
    flags: tuple[Flag, ...] = ()


def named_transfer(
    canonical: Canonical, known: Known, choice: TransferId | None = None
) -> Transfer | Rejection | None:
    """The transfer that the message names itself, surest way first: the hub's id, the request's identifier
    between these two trusts, the conversation. A trust that has no part in it gets the same answer as if it did not exist.

    ``choice`` is a human's answer to a question; it stands for a name in the message.
    """
    hub_id = choice or canonical.refs.hub_id
    found = _by_id(TransferId(hub_id), canonical, known) if hub_id is not None else _by_name(canonical, known)
    if choice is not None or not isinstance(found, Transfer):
        return found
    if not _is_addressed_to(canonical, found):
        return Rejection(Why.TRANSFER_UNKNOWN, "MessageHeader.destination.receiver")
    if hub_id is not None and _names_another(canonical, found, known):
        if canonical.about:
            return ANOTHER_ADDRESSED
        return _ask((found, *_by_request(canonical, known).values()))
    return found


def _by_id(hub_id: TransferId, canonical: Canonical, known: Known) -> Transfer | Rejection:
    transfer = known.transfers.get(hub_id)
    if transfer is None or transfer.party(canonical.trust) is None:
        return Rejection(Why.TRANSFER_UNKNOWN, "identifier")
    return transfer


def _by_request(canonical: Canonical, known: Known) -> dict[TransferId, Transfer]:
    requests = canonical.refs.requests
    return _of_trust((t for each in requests for t in known.transfers_of_request(each)), canonical)


def _by_name(canonical: Canonical, known: Known) -> Transfer | Rejection | None:
    """By the request's identifier; by the conversation only if no other request is named, because one conversation can be about several."""
    refs = canonical.refs
    found = _by_request(canonical, known)
    if found or not refs.correlation_id:
        return _only(found)
    if canonical.kind in {Kind.REQUEST, Kind.ENCOUNTER, Kind.PATIENT}:
        return None
    meant = _only(_of_trust(known.transfers_of_correlation(refs.correlation_id), canonical))
    if isinstance(meant, Transfer):
        # A number of another system is the author's own, and says nothing of which request it is.
        systems = {each.system for each in meant.requests}
        is_another = any(each.system in systems for each in refs.requests)
        if is_another or not _can_be_called(meant, canonical, known):
            return None if refs.requests else Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")
    return meant


def _is_addressed_to(canonical: Canonical, transfer: Transfer) -> bool:
    """Whether an answer that says to whom it goes can be about this transfer."""
    answered = canonical.receiver if canonical.kind is Kind.ANSWER else None
    return answered in {None, transfer.sender, transfer.receiver}


def _names_another(canonical: Canonical, transfer: Transfer, known: Known) -> bool:
    """Whether a message that has the hub's id of this transfer names the request of another one as well. Its sender may give a
    request a new number; whoever answers it may not.
    """
    refs = canonical.refs
    if set(refs.requests) & set(transfer.requests):
        return False
    if _by_request(canonical, known):
        return True
    if canonical.kind is not Kind.ANSWER:
        return False
    same_system = {each.system for each in refs.requests} & {each.system for each in transfer.requests}
    called = _calls(refs.numbers, refs.addresses)
    return bool(same_system) or (
        not called & _names_of(transfer) and bool(called & _names_of_others(transfer, canonical, known))
    )


def _can_be_called(transfer: Transfer, canonical: Canonical, known: Known) -> bool:
    """Whether what an answer calls its request can be this transfer's. A number must be its number. What a URL ends in is often
    the key of a server of the sender's own and says nothing: unless it is another transfer's name, or looks like a number of the
    same series.
    """
    refs = canonical.refs
    names = _names_of(transfer)
    called = _calls(refs.numbers, refs.addresses)
    if called & names or not called:
        return True
    if refs.numbers or called & _names_of_others(transfer, canonical, known):
        return False
    series = {_series(each.value) for each in transfer.requests} - {""}
    return not any(_series(each) in series for each in called)


def _calls(*names: Iterable[str]) -> set[str]:
    return {each.casefold() for found in names for each in found}


def _names_of(transfer: Transfer) -> set[str]:
    return _calls([transfer.id], (each.value for each in transfer.requests))


def _names_of_others(transfer: Transfer, canonical: Canonical, known: Known) -> set[str]:
    """What the person's other transfers are called that the trust has a part in."""
    others = (
        t for t in known.transfers_of_person(transfer.person_id) if t.party(canonical.trust) is not None
    )
    return {name for each in others if each.id != transfer.id for name in _names_of(each)}


def _series(name: str) -> str:
    """TR-1 and TR-20 are numbers of one series; mere digits are of any."""
    return re.sub(r"\d+", "#", name.casefold()) if re.search("[a-zA-Z]", name) else ""


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
        return _ask(found.values())
    return next(iter(found.values()), None)


def _ask(transfers: Iterable[Transfer]) -> Rejection:
    return Rejection(
        Why.NEEDS_CONFIRMATION,
        "identifier",
        "More than one transfer could be meant.",
        tuple(sorted(each.id for each in transfers)),
    )


def advance(
    canonical: Canonical, person_id: PersonId, named: Transfer | None, known: Known
) -> Advanced | Rejection:
    """Find or make the transfers, and add the message's fact to them."""
    if canonical.kind is Kind.PATIENT:
        return _patient(canonical, person_id, known)
    stay = canonical.stay
    if stay is not None:
        return _stay(stay, canonical, person_id, named, known)
    if canonical.kind is Kind.REQUEST and named is None:
        return _create(canonical, person_id, known)
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
    party = transfer.part_of(canonical.trust)
    by_receiver = party is Party.RECEIVER and step in {Step.CANCEL, Step.REDIRECT}
    if (step in _NEEDS_REASON or by_receiver) and not canonical.reason:
        return Rejection(Why.REASON_MISSING, "Task.statusReason")
    return _apply(canonical, transfer, step, known)


def _only_open(canonical: Canonical, person_id: PersonId, known: Known) -> Transfer | Rejection:
    """Without a name: the one open transfer of this person in which the trust plays the part, and no guess.

    A message that names a request means that one and no other: an unrelated task of the same patient, or an answer that overtook its request.
    A Task about something else, a prescription, is about that.
    """
    if canonical.refs.requests:
        return Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")
    if canonical.refs.other:
        return Rejection(
            Why.TRANSFER_UNKNOWN,
            "Task.focus",
            f"The Task is about a {canonical.refs.other} and names no transfer.",
        )
    found = _of_trust((t for t in known.transfers_of_person(person_id) if t.is_open), canonical)
    if canonical.kind is Kind.ANSWER:
        found = {k: t for k, t in found.items() if _can_be_answered(t, canonical, known)}
    elif canonical.receiver is not None:
        found = {k: t for k, t in found.items() if t.receiver == canonical.receiver}
    return _only(found) or Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")


def _can_be_answered(transfer: Transfer, canonical: Canonical, known: Known) -> bool:
    """Whether an answer that does not name its request can be about this one: it goes to the other party, calls it by no other
    name, and was not said before the request was made.
    """
    was_asked = transfer.requested_at <= canonical.occurred_at + CLOCKS_DIFFER
    return was_asked and _is_addressed_to(canonical, transfer) and _can_be_called(transfer, canonical, known)


# ----------------------------------------------------------------------------------------------------------------------
# What is said on purpose: requests and answers
# ----------------------------------------------------------------------------------------------------------------------


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
    told, move = transfer.with_fact(_fact(canonical, transfer, step, _because(canonical, transfer, step)))
    if move.after is None and step not in PHYSICAL:
        return Rejection(
            Why.TRANSITION_DENIED,
            "status",
            f"The transfer is {move.before}; {step} cannot be done from there.",
        )
    if step in {Step.REQUEST, Step.UPDATE}:
        told = _with_wishes(told, canonical)
    if (before, told.state) == (State.DRAFT, State.REQUESTED):
        # While it was being written the patient may have come.
        told = replace(told, requested_at=canonical.occurred_at)
        person = transfer.person_id
        told = _adopt(told, known.stays_of_person(person), known.transfers_of_person(person))
    taken = Taken(told, before, told.facts[len(transfer.facts) :], move)
    return Advanced((taken,), flags=taken.flags)


def _with_wishes(transfer: Transfer, canonical: Canonical) -> Transfer:
    """A request says everything again; what it leaves out stays as it was."""
    encounter = canonical.encounter.key if canonical.encounter else None
    requests = tuple(dict.fromkeys((*transfer.requests, *canonical.refs.requests)))
    return replace(
        transfer,
        requests=requests,
        correlation_id=transfer.correlation_id or canonical.correlation_id,
        origin_encounter=transfer.origin_encounter or encounter,
        specialty=canonical.specialty or transfer.specialty,
        priority=canonical.priority or transfer.priority,
        kind=canonical.transfer_kind or transfer.kind,
        receiver_code=canonical.receiver_code or transfer.receiver_code,
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
    adopted = _adopt(told, known.stays_of_person(person_id), theirs)
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


def _adopt(transfer: Transfer, stays: Iterable[Stay], others: Collection[Transfer]) -> Transfer:
    """Take in what was told of the person's stays before the transfer was known. ``others`` are the person's other transfers."""
    for stay in stays:
        if transfer.party(stay.trust) is None or not is_in_time(stay, transfer):
            continue
        if not is_related(stay, transfer) and is_anothers(stay, transfer, others):
            continue
        meaning = meaning_of(stay, transfer)
        if meaning is not None and meaning.step in {
            Step.DEPART,
            Step.ARRIVE,
            Step.ADMIT,
            Step.ALLOCATE_BED,
            Step.RETRACT,
        }:
            transfer, _ = transfer.with_fact(fact_of(stay, meaning, transfer))
    return transfer


# ----------------------------------------------------------------------------------------------------------------------
# What happens: stays and patients
# ----------------------------------------------------------------------------------------------------------------------


def _stay(
    stay: Stay, canonical: Canonical, person_id: PersonId, named: Transfer | None, known: Known
) -> Advanced | Rejection:
    """What a stay says about the person's transfers. Most stays have nothing to do with one."""
    transfers = known.transfers_of_person(person_id)
    affected = [t for t in transfers if is_in_time(stay, t) and t.is_open]
    death = [t for t in affected if (m := meaning_of(stay, t)) is not None and m.step is Step.DIE]
    if death:
        return _all(stay, death)
    taken_back = _taken_back(stay, transfers)
    if len(taken_back) > 1 and (named is None or named in taken_back):
        return _all(stay, taken_back)
    chosen = [named] if named is not None else _candidates(stay, transfers)
    if len(chosen) > 1 and all(_means(stay, t, Step.DIVERGE) for t in chosen):
        return _all(stay, chosen)
    if len(chosen) > 1:
        return _ask(chosen)
    if chosen:
        took = _take_stay(stay, chosen[0], known, named=named is not None)
        if any(t.fact.step is Step.DIVERGE for t in took.taken) and came_from_another(stay, chosen[0]):
            return _together(_infer(stay, canonical, person_id, transfers, known), took)
        return _together(took, _left_behind(stay, took, transfers, named=named is not None))
    alarmed = [t for t in affected if t.party(stay.trust) is None and meaning_of(stay, t) is not None]
    if alarmed:
        return _all(stay, alarmed)
    shared = [t for t in transfers if is_shared(stay, t)]
    if shared:
        return Advanced(shared=tuple(shared))
    return _infer(stay, canonical, person_id, transfers, known)


def _candidates(stay: Stay, transfers: Collection[Transfer]) -> list[Transfer]:
    """The transfers that the event can mean, the likeliest there are: the open ones that know the stay; a completed one that it
    still has something to tell; the other open ones; those that are over and know the stay; a completed one that the stay was part
    of before it was completed. A new journey is never part of an old one.
    """
    possible = [
        t
        for t in transfers
        if t.party(stay.trust) is not None
        and is_in_time(stay, t)
        and (meaning := meaning_of(stay, t)) is not None
        and not _is_no_business(stay, t, meaning)
    ]
    related = [t for t in possible if is_related(stay, t)]
    free = [t for t in possible if not is_related(stay, t) and not is_anothers(stay, t, transfers)]
    ranks = (
        [t for t in related if t.is_open],
        [t for t in related if t.state is State.COMPLETED and not _is_told_again(stay, t)],
        [t for t in free if t.is_open],
        [t for t in related if not _begins_the_next(stay, t)],
        [t for t in free if t.state is State.COMPLETED and precedes_its_end(stay, t)],
    )
    found = next(filter(None, ranks), [])
    return (
        _bound(stay, found)
        or _bound(stay, [*(t for t in free if t.is_open), *_former(stay, related)])
        or found
    )


def _is_no_business(stay: Stay, transfer: Transfer, meaning: Meaning) -> bool:
    """Whether it is not for this transfer to hear where the patient went: it is over, or its receiver was not asked or has refused
    and the record names another hospital. What was sent elsewhere or was an error is left for only by its receiver's name.
    """
    if meaning.step is Step.DEPART:
        return transfer.state in {State.REDIRECTED, State.ENTERED_IN_ERROR} and leaves_for(stay) is None
    if meaning.step is not Step.DIVERGE or transfer.state is State.COMPLETED:
        return False
    return not transfer.is_open or (leaves_for(stay) is not None and not expects_patient(transfer))


def _former(stay: Stay, related: Collection[Transfer]) -> list[Transfer]:
    """Those that were withdrawn or sent elsewhere, and that the patient can leave by after all: nobody has received them from this stay."""
    if any(t.sender == stay.trust and t.state in {State.ARRIVED, State.COMPLETED} for t in related):
        return []
    return [t for t in related if t.state in LEFT_AFTER_ALL]


def _begins_the_next(stay: Stay, transfer: Transfer) -> bool:
    """Whether the patient leaves for another hospital by another transfer than this one, which is over: from the bed that it brought
    them to, or anew after it had failed.
    """
    if leaves_for(stay) is None:
        return False
    if transfer.state is not State.FAILED:
        return transfer.state is State.COMPLETED and transfer.party(stay.trust) is Party.RECEIVER
    failed_at = entered_at(fold(transfer.facts))
    is_new = stay.event_type == "encounter.discharged" and transfer.sender == stay.trust
    return is_new and failed_at is not None and stay.occurred_at > failed_at


def _is_told_again(stay: Stay, transfer: Transfer) -> bool:
    """Whether the transfer knows of this stay already what the event says."""
    meaning = meaning_of(stay, transfer)
    return meaning is not None and has_said(stay, transfer, {meaning.step})


def _bound(stay: Stay, transfers: Iterable[Transfer]) -> list[Transfer]:
    """Those that go from where to where a discharge or an admission says that the patient goes."""
    ways = {(stay.trust, leaves_for(stay)), (stay.encounter.origin, stay.trust)}
    return [t for t in transfers if (t.sender, t.receiver) in ways]


def _means(stay: Stay, transfer: Transfer, step: Step) -> bool:
    meaning = meaning_of(stay, transfer)
    return meaning is not None and meaning.step is step


def _taken_back(stay: Stay, transfers: Iterable[Transfer]) -> list[Transfer]:
    """What is taken back is taken back wherever it was said."""
    still = (t for t in transfers if (t.is_open or t.state is State.COMPLETED) and is_in_time(stay, t))
    return [t for t in still if _means(stay, t, Step.RETRACT)]


def _left_behind(stay: Stay, took: Advanced, transfers: Collection[Transfer], *, named: bool) -> Advanced:
    """The sender's other requests, where the patient is still expected who has gone to this one's hospital."""
    [gone] = took.taken or [None]
    if gone is None or not _is_gone(stay, gone, named=named):
        return Advanced()
    by, ways = gone.transfer, {fact.encounter for fact in gone.transfer.facts if fact.step is Step.DEPART}
    left = []
    for other in transfers:
        is_theirs = other.sender == by.sender and other.receiver != by.receiver and expects_patient(other)
        if not is_theirs or not is_in_time(stay, other):
            continue
        if stay.occurred_at < other.requested_at - CLOCKS_DIFFER:
            continue
        if not is_related(stay, other) and is_anothers(stay, other, transfers):
            continue
        has_heard = any(f.step is Step.DIVERGE and f.encounter in ways for f in counting(other.facts))
        meaning = None if has_heard else gone_elsewhere(stay, other)
        if meaning is not None:
            left.append(_taken(stay, other, meaning))
    return Advanced(tuple(left), flags=_flags(left))


def _is_gone(stay: Stay, gone: Taken, *, named: bool) -> bool:
    """Whether it is said for certain, and not for a while, that the patient went to this transfer's hospital."""
    if gone.fact.step is Step.DEPART:
        return named or leaves_for(stay) == gone.transfer.receiver
    return gone.fact.step is Step.ADMIT and gone.transfer.kind != TREAT_AND_RETURN


def _together(first: Advanced, second: Advanced) -> Advanced:
    flags = tuple(dict.fromkeys((*first.flags, *second.flags)))
    return Advanced((*first.taken, *second.taken), first.shared, flags)


def _take_stay(stay: Stay, transfer: Transfer, known: Known, *, named: bool) -> Advanced:
    meaning = meaning_of(stay, transfer, named=named)
    if meaning is None:
        return Advanced(shared=(transfer,) if is_shared(stay, transfer) else ())
    before = transfer.state
    told, move = transfer.with_fact(fact_of(stay, meaning, transfer))
    if meaning.step is Step.DEPART:
        others = known.transfers_of_person(transfer.person_id)
        told = _adopt(told, known.stays_of_person(transfer.person_id), others)
    # What happened is kept even where it moves nothing now: a fact that comes late may make room for it.
    taken = Taken(told, before, told.facts[len(transfer.facts) :], move)
    return Advanced((taken,), flags=taken.flags)


def _all(stay: Stay, transfers: Iterable[Transfer]) -> Advanced:
    """What the event says concerns every one of them."""
    taken = []
    for transfer in transfers:
        meaning = meaning_of(stay, transfer)
        assert meaning is not None, "they were chosen by it"
        taken.append(_taken(stay, transfer, meaning))
    return Advanced(tuple(taken), flags=_flags(taken))


def _taken(stay: Stay, transfer: Transfer, meaning: Meaning) -> Taken:
    told, move = transfer.with_fact(fact_of(stay, meaning, transfer))
    return Taken(told, transfer.state, (move.fact,), move)


def _flags(taken: Iterable[Taken]) -> tuple[Flag, ...]:
    return tuple(dict.fromkeys(flag for each in taken for flag in each.flags))


def _infer(
    stay: Stay, canonical: Canonical, person_id: PersonId, transfers: Collection[Transfer], known: Known
) -> Advanced:
    """Nobody asked, and yet one record sends the patient to another hospital, or says that another hospital sent them."""
    goal = leaves_for(stay)
    related = [t for t in transfers if is_related(stay, t) and not _begins_the_next(stay, t)]
    if goal is not None and not any(_has_departure(stay, each, goal) for each in related):
        return _inferred_transfer(canonical, stay, person_id, stay.trust, goal, stay.encounter.key, known)
    if related or goal is not None or not arrives_from_elsewhere(stay):
        return Advanced()
    earlier = known.stays_of_person(person_id)
    origins = {each.trust: each.encounter.key for each in _might_have_sent(stay, earlier, transfers)}
    if len(origins) != 1:
        flag = Flag(
            FlagCode.TRANSFER_AMBIGUOUS, detail=f"{len(origins)} hospitals could have sent the patient"
        )
        return Advanced(flags=(flag,) if origins else ())
    [(sender, key)] = origins.items()
    return _inferred_transfer(canonical, stay, person_id, sender, stay.trust, key, known)


def _has_departure(stay: Stay, transfer: Transfer, goal: OdsCode) -> bool:
    """Whether the departure is this transfer's, which knows the stay: it is expected there, was received there, or was told already."""
    if expects_patient(transfer) or transfer.state is State.COMPLETED:
        return True
    return transfer.receiver == goal and has_said(stay, transfer, {Step.DEPART})


def _might_have_sent(arrival: Stay, earlier: Iterable[Stay], transfers: Collection[Transfer]) -> list[Stay]:
    """The last word on each stay at another hospital, where it is not over or ended with a move to this one, and nobody has left
    it by a transfer; of the hospital that the arrival names, if it names one.
    """
    last: dict[str | None, Stay] = {
        each.encounter.key: each for each in earlier if each.trust != arrival.trust
    }
    return [
        each
        for each in last.values()
        if each.occurred_at <= arrival.occurred_at
        and not any(has_said(each, t, {Step.DEPART}) for t in transfers)
        and arrival.encounter.origin in {None, arrival.trust, each.trust}
        and each.encounter.encounter_class not in {None, *NO_BED}
        and (
            each.encounter.status in {"in-progress", "onleave"}
            or (each.encounter.status == "finished" and each.encounter.destination == arrival.trust)
        )
    ]


def _inferred_transfer(
    canonical: Canonical,
    stay: Stay,
    person_id: PersonId,
    sender: OdsCode,
    receiver: OdsCode,
    origin_encounter: str | None,
    known: Known,
) -> Advanced:
    blank = Transfer(
        id=TransferId(made_by(stay.event_id, "transfer", stay.event_id)),
        person_id=person_id,
        sender=sender,
        receiver=receiver,
        state=State.IN_TRANSIT,
        version=0,
        requested_at=stay.occurred_at,
        facts=(),
        origin_encounter=origin_encounter,
        sender_code=canonical.sender_code if sender == stay.trust else None,
        receiver_code=stay.encounter.destination_code if sender == stay.trust else canonical.sender_code,
    )
    meaning = meaning_of(stay, blank)
    if meaning is None:
        return Advanced()
    told, move = blank.with_fact(fact_of(stay, meaning, blank))
    told = _adopt(told, known.stays_of_person(person_id), known.transfers_of_person(person_id))
    created = Taken(told, None, told.facts, move, created=True)
    return Advanced((created,), flags=created.flags)


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
    return Advanced(tuple(taken), flags=tuple(dict.fromkeys(flag for each in taken for flag in each.flags)))
