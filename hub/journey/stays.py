"""What a hospital's record of a stay says about a transfer: the table of the encounter events (DOMAIN, 5.2).

Pure: a `Stay` and a `Transfer` in, the step it means out, or None. A request that comes late is laid against the stays that
were told before it by the same function.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from hub.domain.ids import OdsCode
from hub.domain.message import EncounterRef, Stay
from hub.domain.transfer import Fact, Party, State, Step, Transfer, counting, entered_at, fold
from hub.domain.value import value

INPATIENT = frozenset({"IMP", "ACUTE", "NONAC", "SS", "OBSENC"})
"""Encounter classes that mean a bed (v3-ActCode); an outpatient attendance completes no transfer."""
EMERGENCY = "EMER"
PREADMISSION = "PRENC"
"""What is done before a stay that is planned: nobody has arrived."""
NO_BED = frozenset({"AMB", "VR", "HH", PREADMISSION})

_UNDER_WAY = frozenset({"in-progress", "finished", "onleave"})
_ARRIVED = frozenset({"arrived", "triaged"})

# NHS Data Dictionary, DISCHARGE DESTINATION CODE (HOSPITAL PROVIDER SPELL) and SOURCE OF ADMISSION CODE.
_TO_HOSPITAL = frozenset({"49", "50", "51", "52", "53", "84", "87"})
_FROM_HOSPITAL = frozenset({"49", "51", "52", "53", "87"})
_DIED = "79"
_NOT_OVER = frozenset({"98", "8"})
# DISCHARGE METHOD CODE (HOSPITAL PROVIDER SPELL): 4 the patient died, 5 stillbirth.
_DIED_METHODS = frozenset({"4", "5"})
# ADMISSION METHOD CODE (HOSPITAL PROVIDER SPELL): transfers of patients from another provider (2A: from its emergency department).
_TRANSFER_METHODS = frozenset({"2A", "2B", "81"})
# Waiting list, booked, planned: by definition no transfers.
_ELECTIVE_METHODS = frozenset({"11", "12", "13"})
_FROM_HOME = "19"

BEFORE_REQUEST = timedelta(days=1)
"""Encounter events older than the request by more than this belong to another story."""
AFTER_END = timedelta(days=7)
"""Late departures still find the transfer that their patient's arrival completed."""

CLOCKS_DIFFER = timedelta(hours=1)
"""Two hospitals' clocks may differ by this much (as much as the hub believes a clock to be ahead)."""

SOON = timedelta(days=7)
"""A bed that is planned for later than this is not the one for a transfer."""

TREAT_AND_RETURN = "treat-and-return"

_TAKEN_BACK: dict[str, frozenset[Step]] = {
    "encounter.admit.cancelled": frozenset({Step.ADMIT, Step.ARRIVE, Step.ALLOCATE_BED, Step.DIVERGE}),
    "encounter.discharge.cancelled": frozenset({Step.DEPART, Step.DIE, Step.DIVERGE}),
    "encounter.loa.cancelled": frozenset({Step.DEPART, Step.RETURN}),
    "encounter.cancelled": frozenset(
        {Step.ADMIT, Step.ARRIVE, Step.ALLOCATE_BED, Step.DEPART, Step.DIE, Step.DIVERGE, Step.RETURN}
    ),
}
_BEGINNINGS = frozenset({"encounter.admitted", "encounter.registered"})
"""Events that happen as a stay begins: where the record does not say when it began, it was then."""
_GOES_BACK = frozenset({"encounter.admitted", "encounter.transferred"})
"""Events of a stay that is under way. Demographic updates are not among them: they never take anything back."""


@value
class Meaning:
    """The step a stay's event means for a transfer. ``occurred_at`` is the event's, except where a record goes back."""

    step: Step
    because: str
    occurred_at: datetime
    retracts: frozenset[Step] = frozenset()


def meaning_of(stay: Stay, transfer: Transfer, *, named: bool = False) -> Meaning | None:
    """What this event says about this transfer, or None where it says nothing. ``named``: the event itself says, or a human does,
    that it is about this one.
    """
    party = transfer.party(stay.trust)
    if stay.deceased or _has_died(stay.encounter):
        died = f"{stay.trust}'s record says that the patient has died"
        return Meaning(Step.DIE, died, stay.occurred_at)
    taken_back = _TAKEN_BACK.get(stay.event_type)
    if taken_back is not None:
        return _taken_back(stay, transfer, taken_back)
    if party is not Party.RECEIVER:
        found = _at_third(stay) if party is None else _at_sender(stay, transfer)
        return None if _is_for_who_refused(transfer, found) else _once(stay, transfer, found)
    if named:
        return _at_receiver(stay, transfer)
    if not _may_have_brought(transfer, stay):
        return None
    found = _at_receiver(stay, transfer)
    if found is not None and came_from_another(stay, transfer):
        found = _from_another(stay, transfer, found)
    return _once(stay, transfer, found)


def _is_for_who_refused(transfer: Transfer, found: Meaning | None) -> bool:
    """Whether it is where the patient of a transfer went that was refused, and not to its receiver: none of that hospital's business."""
    return found is not None and found.step is Step.DIVERGE and transfer.state is State.REJECTED


def _from_another(stay: Stay, transfer: Transfer, found: Meaning) -> Meaning | None:
    """The patient is here, and another hospital than the transfer's sent them: both must know, and nothing moves."""
    if found.step is Step.ALLOCATE_BED:
        return None
    because = f"{stay.trust}'s record says that {_ANOTHER} {transfer.sender} sent the patient"
    return replace(found, step=Step.DIVERGE, because=because)


_ANOTHER = "another hospital than"


def came_from_another(stay: Stay, transfer: Transfer) -> bool:
    """Whether an admission says that the patient came from another trust than the transfer's sender."""
    return stay.encounter.origin not in {None, stay.trust, transfer.sender}


def left_for_another(by: str, transfer: Transfer) -> str:
    """Why a departure of the sender's is an alarm to this transfer, in words."""
    return f"{by}'s patient has left for another hospital, not {transfer.receiver}"


def admitted_by_a_third(by: str) -> str:
    """Why an admission is an alarm to a transfer that the hospital has no part in, in words."""
    return f"{by}, which has no part in it, has admitted the patient"


def gone_elsewhere(stay: Stay, transfer: Transfer) -> Meaning | None:
    """What it means for this transfer that the patient has gone to another hospital, by another transfer of the same sender."""
    found = meaning_of(stay, transfer)
    if found is not None and found.step is Step.DEPART:
        # The record does not say to where; a human does.
        return _once(
            stay, transfer, replace(found, step=Step.DIVERGE, because=left_for_another(stay.trust, transfer))
        )
    return found if found is not None and found.step is Step.DIVERGE else None


def _once(stay: Stay, transfer: Transfer, found: Meaning | None) -> Meaning | None:
    """One alarm for one stay: records are sent again with every change to them."""
    if found is None or found.step is not Step.DIVERGE:
        return found
    rung = (
        f for f in counting(transfer.facts) if f.step is Step.DIVERGE and f.encounter == stay.encounter.key
    )
    return None if any(fact.because == found.because for fact in rung) else found


def _has_died(encounter: EncounterRef) -> bool:
    return encounter.status == "finished" and (
        encounter.disposition == _DIED or encounter.discharge_method in _DIED_METHODS
    )


def _taken_back(stay: Stay, transfer: Transfer, steps: frozenset[Step]) -> Meaning | None:
    """Only what this stay had said; without that, nothing happened as far as the transfer is concerned."""
    own = [fact for fact in counting(transfer.facts) if fact.encounter == stay.encounter.key]
    if not any(fact.step in steps for fact in own):
        return None
    words = {
        "encounter.admit.cancelled": "cancelled the admission",
        "encounter.discharge.cancelled": "cancelled the discharge",
        "encounter.loa.cancelled": "cancelled the leave of absence",
    }.get(stay.event_type, "cancelled its encounter")
    return Meaning(Step.RETRACT, f"{stay.trust} {words}", stay.occurred_at, steps)


def _at_sender(stay: Stay, transfer: Transfer) -> Meaning | None:
    encounter, trust = stay.encounter, stay.trust
    if transfer.origin_encounter is not None and encounter.key != transfer.origin_encounter:
        return None
    has_bed = encounter.encounter_class in INPATIENT or encounter.encounter_class == EMERGENCY
    if transfer.origin_encounter is None and not has_bed:
        return None
    if transfer.kind == TREAT_AND_RETURN and stay.event_type == "encounter.loa.start":
        return Meaning(
            Step.DEPART, f"{trust}'s patient has gone on leave, to be treated elsewhere", stay.occurred_at
        )
    if transfer.kind == TREAT_AND_RETURN and stay.event_type == "encounter.loa.end":
        return Meaning(Step.RETURN, f"{trust}'s patient is back from leave", stay.occurred_at)
    if stay.event_type in _GOES_BACK and _goes_back(stay, transfer):
        assert stay.stated_at is not None
        return Meaning(
            Step.RETRACT,
            f"{trust}'s encounter is in progress again: the discharge is taken back",
            stay.stated_at,
            _TAKEN_BACK["encounter.discharge.cancelled"],
        )
    if encounter.status != "finished" or encounter.disposition in _NOT_OVER:
        return None
    return _discharged(stay, transfer)


def _goes_back(stay: Stay, transfer: Transfer) -> bool:
    """A record written later than the discharge says that the stay is still under way."""
    return stay.encounter.status == "in-progress" and any(
        fact.step in {Step.DEPART, Step.DIE, Step.DIVERGE}
        and fact.encounter == stay.encounter.key
        and fact.stated_at is not None
        and stay.stated_at is not None
        and stay.stated_at > fact.stated_at
        for fact in counting(transfer.facts)
    )


def _discharged(stay: Stay, transfer: Transfer) -> Meaning:
    """Where the patient went decides: to the receiver, to some hospital, to another one, home."""
    encounter, trust = stay.encounter, stay.trust
    ended = f"{trust}'s encounter ended with destination"
    if encounter.destination == transfer.receiver:
        return Meaning(Step.DEPART, f"{ended} {encounter.destination_code}", stay.occurred_at)
    if encounter.destination is not None:
        elsewhere = f"{ended} {encounter.destination_code}, which is not {transfer.receiver}"
        return Meaning(Step.DIVERGE, elsewhere, stay.occurred_at)
    known_stay = transfer.origin_encounter is not None and encounter.key == transfer.origin_encounter
    if encounter.disposition in _TO_HOSPITAL and known_stay:
        return Meaning(Step.DEPART, f"{ended} {encounter.disposition} (another hospital)", stay.occurred_at)
    where = (
        f"{ended} {encounter.disposition}"
        if encounter.disposition
        else f"{trust}'s encounter ended without a destination"
    )
    return Meaning(Step.DIVERGE, f"{where}, not {transfer.receiver}", stay.occurred_at)


def _at_receiver(stay: Stay, transfer: Transfer) -> Meaning | None:
    encounter, trust = stay.encounter, stay.trust
    if stay.occurred_at < transfer.requested_at and not comes_from_hospital(encounter):
        return None
    if stay.event_type == "encounter.preadmitted":
        return Meaning(
            Step.ALLOCATE_BED, f"{trust} expects the patient: a pending admission", stay.occurred_at
        )
    if encounter.encounter_class in INPATIENT and encounter.status in _UNDER_WAY:
        return Meaning(Step.ADMIT, f"{trust}'s own encounter of the patient has begun", stay.occurred_at)
    arrived = encounter.status in _UNDER_WAY | _ARRIVED
    at_the_door = stay.event_type == "encounter.registered" and (
        encounter.encounter_class not in NO_BED or _is_sent(stay, transfer)
    )
    if arrived and (encounter.encounter_class == EMERGENCY or at_the_door):
        return Meaning(Step.ARRIVE, f"{trust} has registered the patient's arrival", stay.occurred_at)
    return None


def _may_have_brought(transfer: Transfer, stay: Stay) -> bool:
    """Whether the transfer can have brought the patient to this stay: it is still to come, the transfer knows it, it began after
    the request, or not long before it with a patient whom a hospital had sent. Records are sent again with every change to them,
    and are coded weeks after the stay.
    """
    if stay.event_type == "encounter.preadmitted":
        return not _is_booked_for_itself(stay)
    if _was_from_another(stay, transfer):
        return False
    if is_related(stay, transfer):
        return True
    began = began_at(stay)
    # To a bed that was kept, or to one that was made ready days before; records often say only the day.
    has_left = _has_left(stay, transfer)
    if has_left and stay.encounter.status == "in-progress":
        return True
    if not has_left and _is_elective(stay.encounter):
        return False
    if began is not None and began >= transfer.requested_at:
        return True
    sent = comes_from_hospital(stay.encounter) and stay.encounter.status != "finished"
    return sent and (began is None or began >= transfer.requested_at - BEFORE_REQUEST)


def _has_left(stay: Stay, transfer: Transfer) -> bool:
    return any(
        each.step is Step.DEPART and each.occurred_at <= stay.occurred_at for each in counting(transfer.facts)
    )


def _is_sent(stay: Stay, transfer: Transfer) -> bool:
    """Whether an attendance without a bed can be the patient's arrival: they are on the way, or a hospital has sent them; an
    outpatient clinic sees them in between, and what is done before a planned stay is none.
    """
    if stay.encounter.encounter_class == PREADMISSION:
        return False
    return _has_left(stay, transfer) or comes_from_hospital(stay.encounter)


def _is_elective(encounter: EncounterRef) -> bool:
    """Whether an admission was arranged for itself, and no hospital has sent the patient."""
    return encounter.admission_method in _ELECTIVE_METHODS and not comes_from_hospital(encounter)


def _is_booked_for_itself(stay: Stay) -> bool:
    """Whether a stay that is still to come is one that the patient is on a list for, and not the transfer's bed."""
    encounter = stay.encounter
    from_home = encounter.source == _FROM_HOME and not comes_from_hospital(encounter)
    far_off = stay.began_at is not None and stay.began_at > stay.occurred_at + SOON
    return from_home or far_off or _is_elective(encounter)


def _was_from_another(stay: Stay, transfer: Transfer) -> bool:
    """Whether the stay's record has said that another hospital sent the patient, and does not now say that this one did."""
    own = [each for each in counting(transfer.facts) if each.encounter == stay.encounter.key]
    said = any(each.step is Step.DIVERGE and _ANOTHER in each.because for each in own)
    is_here = any(each.step in {Step.ARRIVE, Step.ADMIT} for each in own)
    return said and not is_here and stay.encounter.origin != transfer.sender


def began_at(stay: Stay) -> datetime | None:
    """When the stay began, if its record or the event says so."""
    return stay.began_at or (stay.occurred_at if stay.event_type in _BEGINNINGS else None)


def _at_third(stay: Stay) -> Meaning | None:
    """Another hospital admits a patient who is expected elsewhere: both must know, and nothing moves."""
    encounter = stay.encounter
    admitted = stay.event_type == "encounter.admitted" and encounter.status == "in-progress"
    if not admitted or encounter.encounter_class not in INPATIENT:
        return None
    return Meaning(Step.DIVERGE, admitted_by_a_third(stay.trust), stay.occurred_at)


def comes_from_hospital(encounter: EncounterRef) -> bool:
    """Whether an admission says that the patient came from another hospital."""
    return encounter.source in _FROM_HOSPITAL or encounter.admission_method in _TRANSFER_METHODS


def is_in_time(stay: Stay, transfer: Transfer) -> bool:
    """Whether the event can belong to this transfer's story at all."""
    if stay.occurred_at < transfer.requested_at - BEFORE_REQUEST:
        return False
    ended = None if transfer.is_open else transfer.changed_at
    return ended is None or stay.received_at <= ended + AFTER_END


def is_related(stay: Stay, transfer: Transfer) -> bool:
    """Whether the event is of a stay that the transfer already knows."""
    key = stay.encounter.key
    return key is not None and (
        key == transfer.origin_encounter or any(fact.encounter == key for fact in transfer.facts)
    )


def is_anothers(stay: Stay, transfer: Transfer, others: Iterable[Transfer]) -> bool:
    """Whether the stay has its part in another transfer and can have none in this one: who arrived by one did not arrive by the
    next, who left by one does not leave by the next, and a stay that another one knows and that began before the request is no arrival.
    """
    knowing = [each for each in others if each.id != transfer.id and is_related(stay, each)]
    if not knowing:
        return False
    at_receiver = transfer.party(stay.trust) is Party.RECEIVER
    steps = {Step.ARRIVE, Step.ADMIT} if at_receiver else {Step.DEPART}
    if any(has_said(stay, each, steps) for each in knowing):
        return True
    began = began_at(stay)
    comes_later = stay.event_type == "encounter.preadmitted"
    return at_receiver and not comes_later and (began is None or began < transfer.requested_at)


def precedes_its_end(stay: Stay, transfer: Transfer) -> bool:
    """Whether the stay, which the transfer does not know, can have been part of its story: it began, or this happened, before the
    patient was admitted. Who is known to have left one stay of the sender's did not leave another.
    """
    ended = entered_at(fold(transfer.facts))
    if ended is None or min(stay.occurred_at, began_at(stay) or stay.occurred_at) > ended + CLOCKS_DIFFER:
        return False
    # A departure by Task names no stay, and the stay's own word of it may come late.
    has_left = any(
        fact.step is Step.DEPART and fact.encounter is not None for fact in counting(transfer.facts)
    )
    return not (has_left and transfer.party(stay.trust) is Party.SENDER)


def has_said(stay: Stay, transfer: Transfer, steps: Collection[Step]) -> bool:
    """Whether the transfer knows one of these steps from this stay, and it was not taken back."""
    return any(
        fact.step in steps and fact.encounter == stay.encounter.key for fact in counting(transfer.facts)
    )


def is_shared(stay: Stay, transfer: Transfer) -> bool:
    """Whether the receiver may hear of an event that moves nothing: of the stay it takes the patient from, while it must
    expect them.
    """
    return (
        transfer.party(stay.trust) is Party.SENDER
        and expects_patient(transfer)
        and (transfer.origin_encounter is None or transfer.origin_encounter == stay.encounter.key)
    )


def expects_patient(transfer: Transfer) -> bool:
    """Whether the receiver has been asked, has not refused, and the transfer is not over."""
    return transfer.is_open and transfer.state not in {State.DRAFT, State.REJECTED}


def fact_of(stay: Stay, meaning: Meaning, transfer: Transfer) -> Fact:
    """The fact that the event is for this transfer."""
    return Fact(
        stay.event_id,
        meaning.step,
        stay.trust,
        transfer.part_of(stay.trust),
        meaning.occurred_at,
        stay.received_at,
        stay.sequence,
        meaning.because,
        stay.encounter.key,
        meaning.retracts,
        stated_at=stay.stated_at,
    )


def leaves_for(stay: Stay) -> OdsCode | None:
    """The other trust that a discharge sends its patient to."""
    encounter = stay.encounter
    leaves = encounter.status == "finished" and encounter.destination not in {None, stay.trust}
    from_bed = encounter.encounter_class in INPATIENT or encounter.encounter_class == EMERGENCY
    return encounter.destination if leaves and from_bed else None


def arrives_from_elsewhere(stay: Stay) -> bool:
    """An admission that says that another hospital sent the patient."""
    encounter = stay.encounter
    return (
        encounter.encounter_class in INPATIENT
        and encounter.status == "in-progress"
        and stay.event_type == "encounter.admitted"
        and comes_from_hospital(encounter)
    )
