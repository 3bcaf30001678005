"""Step 3, identify: which person?

Found by an NHS number that is valid and not declared unverified, or by the hospital's own number. Never by
name. Two different answers, or one that contradicts what is held, is a question for a human: nothing is
linked by guess.
"""

from dataclasses import dataclass

from hub.domain.ids import NHS_AUTHORITY, PersonId, PersonKey, time_ordered_id
from hub.domain.message import Canonical
from hub.domain.rejection import Rejection, Why
from hub.journey.known import Known, Person


@dataclass(frozen=True, slots=True)
class Identified:
    """The person, and what is new about them: ``created`` or further ways of knowing them."""

    person_id: PersonId
    created: Person | None = None
    new_keys: tuple[PersonKey, ...] = ()


def identify(canonical: Canonical, known: Known, hint: PersonId | None) -> Identified | Rejection:
    """The person a message is about. ``hint`` is the person of the transfer the message names, if it names one."""
    ref = canonical.person
    found = known.persons_of(ref.keys)
    if len(found) > 1:
        return Rejection(
            Why.PATIENT_AMBIGUOUS, "Patient.identifier", "The identifiers belong to different people."
        )
    if found and hint is not None and found[0].id != hint:
        return Rejection(
            Why.PATIENT_AMBIGUOUS, "Patient.identifier", "The transfer named is another patient's."
        )
    person = found[0] if found else known.persons.get(hint) if hint else None
    if person is None:
        person_id = PersonId(time_ordered_id(canonical.received.received_at, "person", canonical.event_id))
        created = Person(person_id, ref.birth_date, canonical.received.received_at, set(ref.keys))
        return Identified(person_id, created, ref.keys)
    if _contradicts(person, canonical):
        return Rejection(
            Why.PATIENT_AMBIGUOUS,
            "Patient",
            "The date of birth or NHS number differs from the one held for this person.",
        )
    # A key that only the named transfer vouches for is not learned: the answer's author may have mixed up patients.
    return Identified(
        person.id, None, tuple(key for key in ref.keys if key not in person.keys) if found else ()
    )


def _contradicts(person: Person, canonical: Canonical) -> bool:
    ref = canonical.person
    if person.birth_date and ref.birth_date:
        # FHIR dates may be less precise on one side: compare what both say.
        length = min(len(person.birth_date), len(ref.birth_date))
        if person.birth_date[:length] != ref.birth_date[:length]:
            return True
    numbers = {key.value for key in person.keys if key.authority == NHS_AUTHORITY}
    return (
        bool(numbers)
        and ref.usable_nhs_number
        and ref.nhs_number is not None
        and ref.nhs_number.digits not in numbers
    )
