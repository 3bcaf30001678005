"""What one message causes, as values. The store writes them in one transaction; nothing else happens."""

from collections.abc import Mapping

from hub.audit.entries import AuditEntry
from hub.domain.ids import EventId, OdsCode, PersonId, TransferId
from hub.domain.message import Canonical, Flag, Received
from hub.domain.rejection import Disposition, Rejection
from hub.domain.value import value
from hub.journey.identify import Identified
from hub.journey.taken import Advanced, Taken


@value
class Outgoing:
    """One record for one topic of one trust."""

    receiver: OdsCode
    topic: str
    key: str
    headers: Mapping[str, str]
    payload: bytes
    event_id: EventId
    transfer_id: TransferId | None = None
    person_id: PersonId | None = None


@value
class Happened:
    """An accepted message: the event it is kept as, and what it did."""

    canonical: Canonical
    event_type: str
    identified: Identified
    advanced: Advanced
    flags: tuple[Flag, ...]
    written: tuple[bytes, ...]
    """The message's resources as JSON: written once, for the record and for whoever is told all of it."""

    @property
    def taken(self) -> tuple[Taken, ...]:
        return self.advanced.taken

    @property
    def first(self) -> Taken | None:
        """The transfer that the message is about, where it is about one."""
        return next(iter(self.taken), None)

    @property
    def transfer_id(self) -> TransferId | None:
        """The transfer that the message is about, whether it moved it or was only told to its receiver."""
        about = [each.transfer for each in self.taken] or self.advanced.shared
        return about[0].id if about else None

    @property
    def adopted(self) -> list[tuple[EventId, Taken]]:
        """Events told before their transfer was known, with what they are part of now."""
        own = self.canonical.event_id
        return [
            (fact.event_id, taken) for taken in self.taken for fact in taken.facts if fact.event_id != own
        ]


@value
class Effects:
    """Everything one message causes."""

    received: Received
    message_id: str
    sha256: str
    disposition: Disposition
    rejection: Rejection | None
    first_event_id: EventId | None
    happened: Happened | None
    outbox: tuple[Outgoing, ...]
    """The last is the receipt for the author."""
    audit: tuple[AuditEntry, ...]

    @property
    def receipt(self) -> Outgoing:
        return self.outbox[-1]
