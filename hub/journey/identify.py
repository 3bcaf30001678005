"""Step 3, identify: which person?

Found by an NHS number that is valid and not declared unverified, together with the date of birth, or by the hospital's
own number, or because the transfer that the message names is theirs. Never by name. Two different answers, or one that
contradicts what is held, is a question for a human: nothing is linked by guess (DOMAIN, person identity). So is a number of which
a human has said that it is not this person's (`hub people not-theirs`): it is never learned again as if nothing had happened.

Records that a trust says are one person's are merged: both stay, one stands for the other, and an unmerge parts them.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

from hub.domain.ids import NHS_AUTHORITY, OdsCode, PersonId, PersonKey, made_by
from hub.domain.message import Canonical, Kind, PersonRef
from hub.domain.rejection import Rejection, Why
from hub.domain.value import value
from hub.journey.known import LINKED, Known, Person

_AT = "Patient.identifier"
_OF_A_TRANSFER = frozenset({Kind.UPDATE, Kind.CANCEL, Kind.ANSWER})


@value
class Merged:
    """``loser`` is stood for by ``survivor`` from now on; None: it stands for itself again."""

    loser: PersonId
    survivor: PersonId | None
    basis: str


@value
class Identified:
    """The person, and what is new about them: ``created``, further ways of knowing them, records that are theirs."""

    person_id: PersonId
    created: Person | None = None
    new_keys: tuple[PersonKey, ...] = ()
    merged: tuple[Merged, ...] = ()
    superseded: bool = False
    sensitivity: str | None = None
    """R or V, or U where it was taken back; None: as it was."""
    confirmed: bool = False
    """A human has said who it is."""
    record_id: PersonId | None = None
    """The record that the message's identifiers lead to, the author's own first: what the message says of the patient is kept there, so that it goes
    with it when merged records are parted again. None: the record that stands for the person.
    """
    birth_date: str | None = None
    """Of a record that was made without one, as its own hospital says it now."""

    @property
    def basis(self) -> str:
        """Why who this is has changed, in one word for the record."""
        return next((each.basis for each in self.merged), "nhs-number-superseded")

    @property
    def changed(self) -> bool:
        """Whether who this is has changed, so that both hospitals of an open transfer must hear of it."""
        return bool(self.merged) or self.superseded


def identify(
    canonical: Canonical,
    known: Known,
    hint: PersonId | None,
    *,
    chosen: bool = False,
    is_their_transfer: bool = False,
) -> Identified | Rejection:
    """The person a message is about. ``hint`` is the person of the transfer the message names, if it names one.

    ``chosen``: a human has said that it is the person of the hint, and answers for it; ``is_their_transfer``: that it is the transfer.
    """
    if chosen and hint is not None:
        return _chosen(canonical, known, hint)
    if is_their_transfer and hint is not None:
        # Whose transfer it is, is not said by a number that was found not to be theirs, whoever has it by now.
        others = known.not_theirs([known.root(hint)])
        canonical = replace(canonical, person=_without(canonical.person, others))
    ref = canonical.person
    found = known.persons_of(ref.keys)
    # A hospital's number for its patient says more than what else its record holds, a mother's number beside her child's.
    if len(found) > 1:
        by_number = known.persons_of(ref.numbers)
        found = by_number if len(by_number) == 1 and known.persons_of(ref.strong_keys) == by_number else found
    named = known.root(hint) if hint else None
    meant = [*found, *([named] if named else [])]
    if not known.not_theirs(meant).isdisjoint(ref.keys) and not is_their_transfer:
        return _ask("It gives a number that was found not to be this person's.", meant)
    superseding = _superseding(ref, found, known)
    traced = _traced(canonical, found, known)
    if len(found) > 1 and not superseding and not traced:
        return _ask("The identifiers belong to different people.", found)
    person = superseding or traced or next(iter(found), None)
    if person is not None and any(_one_is_not_the_other(each, person, known) for each in found):
        return _ask("A number of one of these records was found not to be the other's.", (*found, person))
    if named is not None and person is not None and (traced or superseding) and named in found:
        named = person  # the message itself says that they are one
    if person is not None and named is not None and person.id != named.id:
        # Twins have one date of birth, and a Task is easily filed under the wrong request: that proves nothing.
        return _ask("The transfer named is another patient's record.", (person, named))
    if person is None and named is None:
        return _with_links(_created(canonical, known), canonical, known)
    who = named or person
    assert who is not None
    doubt = _doubt(
        who,
        canonical,
        known,
        is_named=named is not None,
        superseding=superseding is not None,
        vouched=is_their_transfer,
    )
    if doubt is not None:
        return doubt
    own = _own_record(ref, who, known)
    learned = _learned(who, person, canonical, known)
    merged = _merges_of(found, person, "nhs-number-superseded" if superseding else "nhs-number-traced")
    return _with_links(
        Identified(
            who.id,
            record_id=own.id if own else None,
            new_keys=learned,
            merged=merged,
            superseded=superseding is not None and bool(merged or learned),
            sensitivity=_sensitivity(own or who, canonical),
            birth_date=_birth_date_learned(own, canonical),
        ),
        canonical,
        known,
    )


def _without(ref: PersonRef, keys: Collection[PersonKey]) -> PersonRef:
    number = ref.nhs_number
    is_among = number is not None and PersonKey(NHS_AUTHORITY, number.digits) in keys
    return replace(
        ref,
        nhs_number=None if is_among else number,
        local=tuple(key for key in ref.local if key not in keys),
        numbers=tuple(key for key in ref.numbers if key not in keys),
    )


def _chosen(canonical: Canonical, known: Known, hint: PersonId) -> Identified | Rejection:
    if hint not in known.persons:
        return Rejection(Why.NEEDS_CONFIRMATION, _AT, "Nobody is known by the person id that was given.")
    who = known.root(hint)
    free = _free(canonical.person.keys, who, known)
    return Identified(who.id, new_keys=free, sensitivity=_sensitivity(who, canonical), confirmed=True)


def _free(keys: Iterable[PersonKey], who: Person, known: Known) -> tuple[PersonKey, ...]:
    """Those that nobody has, and that are not known to be somebody else's."""
    not_theirs = known.not_theirs([who])
    return tuple(key for key in keys if known.record_of(key) is None and key not in not_theirs)


def somebody_new(canonical: Canonical, known: Known) -> Identified | Rejection:
    """A human has said that it is none of those whom the identifiers lead to: what is theirs stays theirs."""
    made = _created(canonical, known)
    free = tuple(key for key in made.new_keys if known.record_of(key) is None)
    if made.created is None or not free:
        return Rejection(Why.NEEDS_CONFIRMATION, _AT, "Every identifier in it belongs to somebody already.")
    return replace(made, created=replace(made.created, keys=set(free)), new_keys=free, confirmed=True)


def _ask(detail: str, persons: Iterable[Person]) -> Rejection:
    return Rejection(Why.NEEDS_CONFIRMATION, _AT, detail, tuple(each.id for each in persons))


def _created(canonical: Canonical, known: Known) -> Identified:
    ref, at = canonical.person, canonical.received.received_at
    person_id = PersonId(made_by(canonical.event_id, "person", canonical.event_id))
    # A record id that somebody else has is no way of knowing anybody.
    is_new = ref.record is not None and known.record_of(ref.record) is None
    keys = (*ref.keys, *((ref.record,) if ref.record and is_new else ()))
    sensitivity = ref.sensitivity if ref.sensitivity in {"R", "V"} else None
    return Identified(
        person_id,
        Person(
            person_id,
            None if ref.unknown else ref.birth_date,
            at,
            set(keys),
            sensitivity=sensitivity,
            restricted_by=canonical.trust if sensitivity else None,
        ),
        keys,
    )


def _superseding(ref: PersonRef, found: list[Person], known: Known) -> Person | None:
    """The person whose NHS number the message says is replaced by the one it gives, if it says that of exactly one."""
    if not ref.superseded or not ref.usable_nhs_number:
        return None
    # A hospital that has mended its record often keeps the wrong number there as an old one: it was never theirs.
    not_theirs = known.not_theirs(found)
    holders = known.persons_of(key for key in ref.superseded if key not in not_theirs)
    if len(holders) != 1 or any(each.id != holders[0].id and not _new_holder(each, ref) for each in found):
        return None
    return holders[0]


def _new_holder(person: Person, ref: PersonRef) -> bool:
    """Whether somebody is known by the new number only, and nothing contradicts that they are the same person."""
    return (
        ref.nhs_number is not None
        and person.nhs_numbers == {ref.nhs_number.digits}
        and _same_birth_date(person.birth_date, ref.birth_date)
    )


def _traced(canonical: Canonical, found: list[Person], known: Known) -> Person | None:
    """The person who has the NHS number that the author has now found for a record of its own that had none: verified, with the date of birth,
    and a record that nobody else knows anything by.
    """
    ref = canonical.person
    if len(found) != 2 or ref.verification != "01" or ref.nhs_number is None or not ref.usable_nhs_number:
        return None
    holder = next((each for each in found if _has_number(each, ref.nhs_number.digits, known)), None)
    if holder is None or not _same_birth_date(holder.birth_date, ref.birth_date):
        return None
    [other] = [each for each in found if each.id != holder.id]
    keys = {key for record in known.group(other.id) for key in record.keys}
    is_the_authors = all(key.authority.startswith(f"{canonical.trust}|") for key in keys)
    return holder if is_the_authors and _compatible(other.birth_date, ref.birth_date) else None


def _has_number(person: Person, digits: str, known: Known) -> bool:
    return any(digits in record.nhs_numbers for record in known.group(person.id))


def _merges_of(found: list[Person], person: Person | None, basis: str) -> tuple[Merged, ...]:
    return tuple(
        Merged(each.id, person.id, basis) for each in found if person is not None and each.id != person.id
    )


def _doubt(
    who: Person, canonical: Canonical, known: Known, *, is_named: bool, superseding: bool, vouched: bool
) -> Rejection | None:
    """What speaks against its being this person. An unknown patient's details are guesses and prove nothing; the hospital's number is none."""
    ref = canonical.person
    if _is_another_of_the_hospital(who, ref, known) and not superseding and not vouched:
        return _ask("The hospital knows this person by another number.", (who,))
    if ref.unknown:
        return None
    group = known.group(who.id)
    own = {key for record in group for key in record.keys}
    by_number_alone = not is_named and own.isdisjoint(ref.local)
    has_vouched = any(key.authority.partition("|")[0] == canonical.trust for key in own)
    differs = not all(_compatible(record.birth_date, ref.birth_date) for record in group)
    if (
        by_number_alone
        and not has_vouched
        and (differs or not _is_the_date_held(who.birth_date, ref.birth_date))
    ):
        if canonical.kind in _OF_A_TRANSFER and not (differs and _has_a_part(who, canonical.trust, known)):
            # Whoever names no transfer of theirs must not learn whether the patient is known.
            return Rejection(Why.TRANSFER_UNKNOWN, "ServiceRequest.identifier")
        return _ask(
            "An NHS number without the date of birth that is held for it is not enough to know a person by.",
            (who,),
        )
    if differs:
        return _ask("The date of birth differs from the one held for this person.", (who,))
    numbers = {number for record in group for number in record.nhs_numbers}
    other_number = (
        bool(numbers)
        and ref.usable_nhs_number
        and ref.nhs_number is not None
        and ref.nhs_number.digits not in numbers
    )
    if other_number and not superseding:
        return _ask("The NHS number differs from the one held for this person.", (who,))
    return None


def _is_the_date_held(held: str | None, said: str | None) -> bool:
    """Whether the date is said as exactly as it is held: of a year alone there are a hundred to guess, and then twelve months, and then thirty days."""
    return _same_birth_date(held, said) and len(said or "") >= len(held or "")


def _has_a_part(who: Person, trust: OdsCode, known: Known) -> bool:
    return any(transfer.party(trust) for transfer in known.transfers_of_person(who.id))


def _is_another_of_the_hospital(who: Person, ref: PersonRef, known: Known) -> bool:
    """Whether the author's numbers for its patient are others than those it is known to have for this person: twins who share their mother's
    number, a request's number used again. A person can be registered twice, and then has an NHS number and a date of birth.
    """
    if not ref.numbers:
        return False
    group = known.group(who.id)
    own = {key for record in group for key in record.keys}
    held = {key for key in own if key.authority == ref.numbers[0].authority}
    if not held or not held.isdisjoint(ref.numbers):
        return False
    is_known = (
        ref.usable_nhs_number
        and ref.nhs_number is not None
        and any(ref.nhs_number.digits in record.nhs_numbers for record in group)
    )
    return not (is_known and _same_birth_date(who.birth_date, ref.birth_date))


def _compatible(one: str | None, other: str | None) -> bool:
    """FHIR dates may be less precise on one side: compare what both say."""
    if not one or not other:
        return True
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _same_birth_date(one: str | None, other: str | None) -> bool:
    return bool(one) and bool(other) and _compatible(one, other)


def _numbers_differ(one: Person, other: Person, known: Known) -> bool:
    mine = {number for record in known.group(one.id) for number in record.nhs_numbers}
    theirs = {number for record in known.group(other.id) for number in record.nhs_numbers}
    return bool(mine) and bool(theirs) and not mine & theirs


def _learned(who: Person, found: Person | None, canonical: Canonical, known: Known) -> tuple[PersonKey, ...]:
    """Keys that are new for this person. What only the named transfer vouches for is learned if the date of birth
    agrees: the author may have mixed up patients.
    """
    ref = canonical.person
    if found is None and not _same_birth_date(who.birth_date, ref.birth_date):
        return ()
    if canonical.kind is Kind.ANSWER and found is None:
        return ()
    record = (ref.record,) if ref.record else ()
    return _free((*ref.keys, *record), who, known)


def _birth_date_learned(own: Person | None, canonical: Canonical) -> str | None:
    """The date of birth of a record that has none, where the hospital says it under its own number for its patient: no other trust, and under no
    number that is only beside it. What is said of somebody whom nobody knows is a guess.
    """
    ref = canonical.person
    if own is None or own.birth_date or ref.unknown or own.keys.isdisjoint(ref.numbers):
        return None
    return ref.birth_date


def _sensitivity(who: Person, canonical: Canonical) -> str | None:
    """Once restricted, restricted until a patient event of who restricted it says otherwise: other feeds often leave the label out, and other
    trusts' systems write that there is none.
    """
    said = canonical.person.sensitivity
    if said == who.sensitivity or said is None or (said == "U" and who.sensitivity is None):
        return None
    may_take_back = canonical.kind is Kind.PATIENT and who.restricted_by in {None, canonical.trust}
    return said if said in {"R", "V"} or may_take_back else None


def _with_links(identified: Identified, canonical: Canonical, known: Known) -> Identified | Rejection:
    """What a patient event says about records of the same person (FHIR Patient.link, HL7 v2 A40 and A37)."""
    ref = canonical.person
    if canonical.kind is not Kind.PATIENT:
        return identified
    this = identified.created or known.root(identified.person_id)
    if identified.created is None:
        this = _own_record(ref, this, known) or this
    merged = list(identified.merged)
    for link in ref.links:
        if link.kind not in {"replaced-by", "replaces"}:
            continue
        others = known.persons_of(link.keys)
        if not others:
            return Rejection(
                Why.NEEDS_CONFIRMATION,
                "Patient.link",
                "The linked record is known by nothing that the hub has met. Send that record first.",
            )
        if len(others) > 1:
            return _ask("The linked record's identifiers belong to different people.", others)
        loser, survivor = (this, others[0]) if link.kind == "replaced-by" else (others[0], this)
        if _root_id(loser, known) == _root_id(survivor, known):
            continue
        if loser.merged_into is not None:
            return _ask(
                "The record is merged into another one. Send what parts it from that first (A37).", others
            )
        if not _compatible(loser.birth_date, survivor.birth_date) or _numbers_differ_of(
            loser, survivor, known
        ):
            return _ask("The records to be merged have different dates of birth or NHS numbers.", others)
        if _one_is_not_the_other(loser, survivor, known):
            return _ask(
                "A number of one of the records to be merged was found not to be the other's.", others
            )
        merged.append(Merged(_root_id(loser, known), _root_id(survivor, known), LINKED))
    if not merged and _is_unmerge(canonical, this):
        merged.append(Merged(this.id, None, "unlinked"))
    if not merged and canonical.event_type == "patient.unmerged" and len(known.group(this.id)) > 1:
        parts = [each for each in known.group(this.id) if each.id != this.id]
        return _ask(
            "Others are merged into this record. Send the unlink with the record that was merged.", parts
        )
    survivor_id = next((each.survivor for each in merged if each.survivor), None)
    person_id = this.id if merged and survivor_id is None else survivor_id or identified.person_id
    return replace(identified, person_id=person_id, merged=tuple(merged))


def _own_record(ref: PersonRef, who: Person, known: Known) -> Person | None:
    """Of the person's records the one that the message's identifiers lead to, the hospital's own numbers first."""
    theirs = {each.id for each in known.group(who.id)}
    keys = (*ref.numbers, *ref.local, *ref.keys)
    return next((each for key in keys if (each := known.record_of(key)) and each.id in theirs), None)


def _root_id(person: Person, known: Known) -> PersonId:
    return known.root(person.id).id if person.id in known.persons else person.id


def _numbers_differ_of(one: Person, other: Person, known: Known) -> bool:
    if one.id not in known.persons:
        return bool(one.nhs_numbers) and bool(other.nhs_numbers) and not one.nhs_numbers & other.nhs_numbers
    if other.id not in known.persons:
        return _numbers_differ_of(other, one, known)
    return _numbers_differ(one, other, known)


def _one_is_not_the_other(one: Person, other: Person, known: Known) -> bool:
    """Whether one has a number of which a human has said that it is not the other's."""

    def keys(person: Person) -> set[PersonKey]:
        return {key for record in known.group(person.id) or [person] for key in record.keys}

    return not (
        keys(one).isdisjoint(known.not_theirs([other])) and keys(other).isdisjoint(known.not_theirs([one]))
    )


def _is_unmerge(canonical: Canonical, this: Person) -> bool:
    """Said by an unlink event, or by who merged it, of a record that is active again and names nothing that replaces it: at another trust the
    same patient's record was active all the time.
    """
    ref = canonical.person
    if this.merged_into is None:
        return False
    is_active_again = ref.active is True and not ref.links and this.merged_by == canonical.trust
    return canonical.event_type == "patient.unmerged" or is_active_again
