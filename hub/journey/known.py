"""What the store knows that a batch needs, as values. Effects are applied to it, so that the next message of
the batch is decided as if it came alone after this one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from hub.domain.ids import EventId, Identifier, OdsCode, PersonId, PersonKey, TransferId
from hub.domain.rejection import Disposition, Why
from hub.domain.transfer import Transfer


@dataclass(frozen=True, slots=True)
class FirstMessage:
    """The message that was first to use its id at its trust."""

    event_id: EventId
    sha256: str
    disposition: Disposition
    why: Why | None = None
    at: str = ""
    detail: str = ""
    transfer_id: TransferId | None = None


@dataclass(slots=True)
class Person:
    id: PersonId
    birth_date: str | None
    created_at: datetime
    keys: set[PersonKey]


@dataclass(slots=True)
class Known:
    """Indexed values; everything a decision may look at besides the message itself."""

    messages: dict[tuple[OdsCode, str], FirstMessage] = field(default_factory=dict)
    persons: dict[PersonId, Person] = field(default_factory=dict)
    transfers: dict[TransferId, Transfer] = field(default_factory=dict)
    _person_of_key: dict[PersonKey, PersonId] = field(default_factory=dict)
    _of_person: dict[PersonId, set[TransferId]] = field(default_factory=dict)
    _of_request: dict[Identifier, set[TransferId]] = field(default_factory=dict)
    _of_correlation: dict[str, set[TransferId]] = field(default_factory=dict)

    def add_person(self, person: Person) -> None:
        self.persons[person.id] = person
        for key in person.keys:
            self._person_of_key[key] = person.id

    def add_transfer(self, transfer: Transfer) -> None:
        """Take in a transfer, new or changed."""
        self.transfers[transfer.id] = transfer
        self._of_person.setdefault(transfer.person_id, set()).add(transfer.id)
        for request in transfer.requests:
            self._of_request.setdefault(request, set()).add(transfer.id)
        if transfer.correlation_id:
            self._of_correlation.setdefault(transfer.correlation_id, set()).add(transfer.id)

    def persons_of(self, keys: Iterable[PersonKey]) -> list[Person]:
        """The different persons these keys lead to."""
        found = {self._person_of_key[key] for key in keys if key in self._person_of_key}
        return [self.persons[each] for each in sorted(found)]

    def transfers_of_person(self, person_id: PersonId) -> list[Transfer]:
        return self._sorted(self._of_person.get(person_id, ()))

    def transfers_of_request(self, request: Identifier) -> list[Transfer]:
        return self._sorted(self._of_request.get(request, ()))

    def transfers_of_correlation(self, correlation_id: str) -> list[Transfer]:
        return self._sorted(self._of_correlation.get(correlation_id, ()))

    def _sorted(self, ids: Iterable[TransferId]) -> list[Transfer]:
        return [self.transfers[each] for each in sorted(ids)]
