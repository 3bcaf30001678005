"""What the store knows that a batch needs, as values. Effects are applied to it, so that the next message of
the batch is decided as if it came alone after this one.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from hub.domain.ids import NHS_AUTHORITY, EventId, Identifier, OdsCode, PersonId, PersonKey, TransferId
from hub.domain.message import Stay
from hub.domain.rejection import Disposition, Why
from hub.domain.transfer import Transfer
from hub.domain.value import value

LINKED = "patient-link"
"""The basis of a merge that a record says (FHIR Patient.link)."""


@value
class FirstMessage:
    """The message that was first to use its id at its trust."""

    event_id: EventId
    sha256: str
    disposition: Disposition
    why: Why | None = None
    at: str = ""
    detail: str = ""
    transfer_id: TransferId | None = None
    person_id: PersonId | None = None
    request_sha256: str = ""
    """Of the request that it came with over REST, where that says more than its bytes."""

    def is_repeated_by(self, sha256: str, request_sha256: str) -> bool:
        """Whether another message under this id is this one again: by what was asked where both say so, else by its bytes."""
        if self.request_sha256 and request_sha256:
            return self.request_sha256 == request_sha256
        return self.sha256 == sha256


@dataclass(slots=True)
class Person:
    """One record of a person. ``merged_into`` is the record that stands for it now: a merge is a fact, not a deletion,
    and can be taken back. ``sensitivity`` is R or V once any trust has said so.
    """

    id: PersonId
    birth_date: str | None
    created_at: datetime
    keys: set[PersonKey]
    merged_into: PersonId | None = None
    sensitivity: str | None = None
    restricted_by: OdsCode | None = None
    """Which trust said so; None: not known."""
    merged_by: OdsCode | None = None
    """Which trust said last that it is merged, where a record said it: what a record says it can take back. What a number showed it cannot."""
    not_theirs: set[PersonKey] = field(default_factory=set)
    """Numbers of which a human has said that they are not this person's: whoever gives one for this record asks a question."""

    @property
    def nhs_numbers(self) -> set[str]:
        return {key.value for key in self.keys if key.authority == NHS_AUTHORITY}


@dataclass(slots=True)
class Known:
    """Indexed values; everything a decision may look at besides the message itself.

    ``stays`` are those that belong to no transfer (yet), or were no more than an alarm to one, or took something back.
    """

    messages: dict[tuple[OdsCode, str], FirstMessage] = field(default_factory=dict)
    persons: dict[PersonId, Person] = field(default_factory=dict)
    transfers: dict[TransferId, Transfer] = field(default_factory=dict)
    stays: dict[PersonId, dict[EventId, Stay]] = field(default_factory=dict)
    _person_of_key: dict[PersonKey, PersonId] = field(default_factory=dict)
    _person_of_stay: dict[EventId, PersonId] = field(default_factory=dict)
    _parts: dict[PersonId, set[PersonId]] = field(default_factory=dict)
    _of_person: dict[PersonId, set[TransferId]] = field(default_factory=dict)
    _of_request: dict[Identifier, set[TransferId]] = field(default_factory=dict)
    _of_correlation: dict[str, set[TransferId]] = field(default_factory=dict)

    def add_person(self, person: Person) -> None:
        """Take in a person, new or changed."""
        self.persons[person.id] = person
        for key in person.keys:
            self._person_of_key[key] = person.id
        for parts in self._parts.values():
            parts.discard(person.id)
        if person.merged_into is not None:
            self._parts.setdefault(person.merged_into, set()).add(person.id)

    def add_transfer(self, transfer: Transfer) -> None:
        """Take in a transfer, new or changed."""
        self.transfers[transfer.id] = transfer
        self._of_person.setdefault(transfer.person_id, set()).add(transfer.id)
        for request in transfer.requests:
            self._of_request.setdefault(request, set()).add(transfer.id)
        if transfer.correlation_id:
            self._of_correlation.setdefault(transfer.correlation_id, set()).add(transfer.id)

    def add_stay(self, person_id: PersonId, stay: Stay) -> None:
        self.stays.setdefault(person_id, {})[stay.event_id] = stay
        self._person_of_stay[stay.event_id] = person_id

    def remove_stay(self, event_id: EventId) -> None:
        """It belongs to a transfer now."""
        person_id = self._person_of_stay.pop(event_id, None)
        if person_id is not None:
            del self.stays[person_id][event_id]

    @contextmanager
    def merged(self, merges: Mapping[PersonId, PersonId]) -> Iterator[None]:
        """As if these records stood for others already, for as long as it lasts: who it is is decided before what it means."""
        before = {loser: self.persons[loser].merged_into for loser in merges}
        self._lead(merges)
        try:
            yield
        finally:
            self._lead(before)

    def _lead(self, to: Mapping[PersonId, PersonId | None]) -> None:
        for loser, survivor in to.items():
            self.persons[loser].merged_into = survivor
            self.add_person(self.persons[loser])

    def record_of(self, key: PersonKey) -> Person | None:
        """The record that has this key itself, whatever it was merged into."""
        found = self._person_of_key.get(key)
        return self.persons[found] if found else None

    def root(self, person_id: PersonId) -> Person:
        """The record that stands for this one."""
        person = self.persons[person_id]
        while person.merged_into is not None:
            person = self.persons[person.merged_into]
        return person

    def group(self, person_id: PersonId) -> list[Person]:
        """All records of the same person, the one that stands for them first; none of somebody met just now."""
        if person_id not in self.persons:
            return []
        return self.below(self.root(person_id).id)

    def below(self, person_id: PersonId) -> list[Person]:
        """A record and those that are merged into it, whatever it is merged into itself."""
        found = [self.persons[person_id]] if person_id in self.persons else []
        for each in found:
            found += [self.persons[part] for part in sorted(self._parts.get(each.id, ()))]
        return found

    def persons_of(self, keys: Iterable[PersonKey]) -> list[Person]:
        """The different persons these keys lead to, by the records that stand for them."""
        found = {self.root(self._person_of_key[key]).id for key in keys if key in self._person_of_key}
        return [self.persons[each] for each in sorted(found)]

    def not_theirs(self, persons: Iterable[Person]) -> set[PersonKey]:
        """What a human has said not to be these persons', whichever of their records it was said of."""
        return {key for each in persons for record in self.group(each.id) for key in record.not_theirs}

    def transfers_of_person(self, person_id: PersonId) -> list[Transfer]:
        """Of all the person's records."""
        return self._sorted(
            each for person in self.group(person_id) for each in self._of_person.get(person.id, ())
        )

    def stays_of_person(self, person_id: PersonId) -> list[Stay]:
        """Of all the person's records, in the order in which they happened."""
        found = (stay for person in self.group(person_id) for stay in self.stays.get(person.id, {}).values())
        return sorted(found, key=lambda stay: (stay.occurred_at, stay.sequence or 0, stay.event_id))

    def transfers_of_request(self, request: Identifier) -> list[Transfer]:
        return self._sorted(self._of_request.get(request, ()))

    def transfers_of_correlation(self, correlation_id: str) -> list[Transfer]:
        return self._sorted(self._of_correlation.get(correlation_id, ()))

    def _sorted(self, ids: Iterable[TransferId]) -> list[Transfer]:
        return [self.transfers[each] for each in sorted(ids)]
