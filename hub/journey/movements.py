"""Part of step 4: what a stay does to the person's transfers.

Each stay is laid against all of them by what it would mean to each (`hub.journey.stays`); where nobody asked for what two records
show, a transfer is inferred.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from hub.domain.ids import OdsCode, PersonId, TransferId, made_by
from hub.domain.message import Canonical, Flag, FlagCode, Stay
from hub.domain.rejection import Rejection
from hub.domain.transfer import (
    ALARMS,
    LEFT_AFTER_ALL,
    MOVING,
    Fact,
    Party,
    State,
    Step,
    Transfer,
    counting,
    entered_at,
    fold,
)
from hub.journey.known import Known
from hub.journey.stays import (
    CLOCKS_DIFFER,
    NO_BED,
    TREAT_AND_RETURN,
    Meaning,
    admitted_by_a_third,
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
    left_for_another,
    meaning_of,
    precedes_its_end,
)
from hub.journey.taken import Advanced, Taken, flags_of
from hub.journey.which_transfer import ask


def follow(
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
        return ask(chosen)
    if chosen:
        took = _take_stay(stay, chosen[0], known, named=named is not None)
        if any(t.fact.step is Step.DIVERGE for t in took.taken) and came_from_another(stay, chosen[0]):
            return together(_infer(stay, canonical, person_id, transfers, known), took)
        took = _with_next(stay, took, chosen[0], transfers)
        return together(took, _left_behind(stay, took, transfers, named=named is not None))
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
        or _bound(stay, (t for t in ranks[1] if t.sender == stay.trust))
        or found
    )


def _is_no_business(stay: Stay, transfer: Transfer, meaning: Meaning) -> bool:
    """Whether it is not for this transfer to hear where the patient went: it is over, or its receiver was not asked and the record names
    another hospital. What was sent elsewhere or was an error is left for only by its receiver's name.
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
    left = []
    for other in _still_expecting(gone, transfers):
        if not is_in_time(stay, other):
            continue
        if not is_related(stay, other) and is_anothers(stay, other, transfers):
            continue
        meaning = gone_elsewhere(stay, other)
        if meaning is not None:
            left.append(_taken(stay, other, meaning))
    return Advanced(tuple(left), flags=flags_of(left))


def _still_expecting(gone: Taken, transfers: Iterable[Transfer]) -> Iterator[Transfer]:
    """The sender's requests to other hospitals, made before the patient went, where nobody has heard that they went from the stay that this one
    knows.
    """
    by = gone.transfer
    ways = {fact.encounter for fact in by.facts if fact.step is Step.DEPART and fact.encounter is not None}
    for other in transfers:
        if other.sender != by.sender or other.receiver == by.receiver or not expects_patient(other):
            continue
        if gone.fact.occurred_at < other.requested_at - CLOCKS_DIFFER:
            continue
        if not any(f.step is Step.DIVERGE and f.encounter in ways for f in counting(other.facts)):
            yield other


def left_by_task(gone: Taken, transfers: Iterable[Transfer]) -> Advanced:
    """The same where a Task says that the patient has left, or was admitted: for the sender's other requests of that stay, or of none that is
    named. It is no stay's word: when the stay says so too it is told again, so that what takes that back takes both back.
    """
    by, fact = gone.transfer, gone.fact
    is_said = fact.step in {Step.DEPART, Step.ADMIT} and by.state in {*MOVING, State.COMPLETED}
    if not is_said or by.kind == TREAT_AND_RETURN:
        return Advanced()
    left = []
    for other in _still_expecting(gone, transfers):
        because = (
            f"{fact.by} said that the patient has left for another hospital, not {other.receiver}"
            if fact.step is Step.DEPART
            else f"{fact.by}, which has no part in it, said that it has admitted the patient"
        )
        is_of_another_stay = len({by.origin_encounter, other.origin_encounter} - {None}) > 1
        if is_of_another_stay or any(each.because == because for each in counting(other.facts)):
            continue
        alarm = replace(
            fact,
            step=Step.DIVERGE,
            party=other.part_of(fact.by),
            because=because,
            encounter=None,
            until=None,
            stated_at=None,
        )
        told, move = other.with_fact(alarm)
        left.append(Taken(told, other.state, (alarm,), move))
    return Advanced(tuple(left), flags=flags_of(left))


def _with_next(stay: Stay, took: Advanced, by: Transfer, transfers: Iterable[Transfer]) -> Advanced:
    """Who is asked to take the patient over from the bed that this transfer brought them to hears what happens there."""
    if by.party(stay.trust) is not Party.RECEIVER:
        return took
    told_next = (t for t in transfers if t.id != by.id and is_shared(stay, t))
    return replace(took, shared=(*took.shared, *told_next))


def _is_gone(stay: Stay, gone: Taken, *, named: bool) -> bool:
    """Whether it is said for certain, and not for a while, that the patient went to this transfer's hospital."""
    if gone.fact.step is Step.DEPART:
        return named or leaves_for(stay) == gone.transfer.receiver
    return gone.fact.step is Step.ADMIT and gone.transfer.kind != TREAT_AND_RETURN


def together(first: Advanced, second: Advanced) -> Advanced:
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
        told = adopt(told, known.stays_of_person(transfer.person_id), others)
    # What happened is kept even where it moves nothing now: a fact that comes late may make room for it.
    taken = Taken(told, before, told.facts[len(transfer.facts) :], move)
    return Advanced((taken,), flags=taken.flags)


def adopt(transfer: Transfer, stays: Iterable[Stay], others: Collection[Transfer]) -> Transfer:
    """Take in what was told of the person's stays before the transfer was known. ``others`` are the person's other transfers."""
    for stay in stays:
        if transfer.party(stay.trust) is None or not is_in_time(stay, transfer):
            continue
        if not is_related(stay, transfer) and is_anothers(stay, transfer, others):
            continue
        meaning = meaning_of(stay, transfer)
        if meaning is None or any(
            (f.event_id, f.step) == (stay.event_id, meaning.step) for f in transfer.facts
        ):
            continue
        if meaning.step in {Step.DEPART, Step.ARRIVE, Step.ADMIT, Step.ALLOCATE_BED, Step.RETRACT}:
            transfer, _ = transfer.with_fact(fact_of(stay, meaning, transfer))
    return transfer


def kept_back(transfer: Transfer, stays: Iterable[Stay], others: Collection[Transfer]) -> Advanced:
    """Where the patient has gone since the receiver refused, which was none of its business and now that it takes them after all is: alarms, as
    if its answer had come first. ``stays`` are in order.
    """
    refused_at = min(fact.received_at for fact in transfer.facts if fact.step is Step.REJECT)
    taken: list[Taken] = []
    for alarm in (*_said_by_stays(transfer, stays, others), *_gone_by_others(transfer, others)):
        if alarm.received_at >= refused_at:
            told, move = transfer.with_fact(alarm)
            taken.append(Taken(told, transfer.state, (alarm,), move))
            transfer = told
    return Advanced(tuple(taken), flags=flags_of(taken))


def _said_by_stays(transfer: Transfer, stays: Iterable[Stay], others: Collection[Transfer]) -> list[Fact]:
    """The alarms of stays that belong to no transfer, but for those that were taken back."""
    after = transfer
    for stay in stays:
        is_partys = transfer.party(stay.trust) is not None and not is_related(stay, after)
        if not is_in_time(stay, after) or (is_partys and is_anothers(stay, after, others)):
            continue
        meaning = meaning_of(stay, after)
        if meaning is not None and meaning.step in ALARMS:
            after, _ = after.with_fact(fact_of(stay, meaning, after))
    new = after.facts[len(transfer.facts) :]
    return [fact for fact in counting(after.facts) if fact in new and fact.step is Step.DIVERGE]


def _gone_by_others(transfer: Transfer, others: Iterable[Transfer]) -> Iterator[Fact]:
    """The alarms of the sender's other transfers by which the patient has left the stay that this one is of."""
    for other in others:
        is_of_another_stay = len({transfer.origin_encounter, other.origin_encounter} - {None}) > 1
        if other.sender != transfer.sender or other.receiver == transfer.receiver or is_of_another_stay:
            continue
        gone = next((f for f in counting(other.facts) if f.step in {Step.DEPART, Step.ADMIT}), None)
        if gone is None or other.kind == TREAT_AND_RETURN or other.state not in {*MOVING, State.COMPLETED}:
            continue
        is_earlier = gone.occurred_at < transfer.requested_at - CLOCKS_DIFFER
        if is_earlier or any(f.step is Step.DIVERGE and f.event_id == gone.event_id for f in transfer.facts):
            continue
        left = gone.step is Step.DEPART
        because = left_for_another(gone.by, transfer) if left else admitted_by_a_third(gone.by)
        party = transfer.part_of(gone.by)
        yield replace(gone, step=Step.DIVERGE, party=party, because=because, until=None)


def _all(stay: Stay, transfers: Iterable[Transfer]) -> Advanced:
    """What the event says concerns every one of them."""
    taken = []
    for transfer in transfers:
        meaning = meaning_of(stay, transfer)
        assert meaning is not None, "they were chosen by it"
        taken.append(_taken(stay, transfer, meaning))
    return Advanced(tuple(taken), flags=flags_of(taken))


def _taken(stay: Stay, transfer: Transfer, meaning: Meaning) -> Taken:
    told, move = transfer.with_fact(fact_of(stay, meaning, transfer))
    return Taken(told, transfer.state, (move.fact,), move)


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
    told = adopt(told, known.stays_of_person(person_id), known.transfers_of_person(person_id))
    created = Taken(told, None, told.facts, move, created=True)
    return Advanced((created,), flags=created.flags)
