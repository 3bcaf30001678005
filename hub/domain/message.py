"""A message on its way through the hub: as it came in, and as the hub understood it."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from typing import Any

from hub.domain.ids import NHS_AUTHORITY, EventId, Identifier, NhsNumber, OdsCode, PersonKey
from hub.domain.value import ordered_value, value


@ordered_value
class Position:
    """A message's place in Kafka's log. Whether it was taken in is known by this alone."""

    topic: str
    partition: int
    offset: int


@value
class Received:
    """One message as a door handed it over; nothing has been read yet.

    ``trust`` is who sent it as far as the door can prove it (the topic's owner, the REST client's trust), not who the
    message says it is from. ``position`` is None for what came over REST. ``headers`` have lower-case names and text values. ``received_at`` is UTC.
    ``unread`` is why it must not be read at all, if that is so (it kills the process).
    """

    event_id: EventId
    trust: OdsCode
    position: Position | None
    headers: Mapping[str, str]
    key: bytes | None
    raw: bytes
    received_at: datetime
    unread: str | None = None

    @property
    def place(self) -> Position:
        """Its position in Kafka. Raises ValueError for what came over REST."""
        if self.position is None:
            raise ValueError("This message has no place in Kafka")
        return self.position

    def proved(self, name: str) -> str:
        """A header that only the facade can write, "" where it is absent: whatever a record in Kafka says under its name is not believed."""
        return self.header(name) if self.position is None else ""

    @property
    def door(self) -> str:
        """How it came in, as the audit names it."""
        return "kafka" if self.position else "rest"

    def header(self, name: str) -> str:
        """A header's text, "" if it is absent; what no store can hold (NUL) or index (more than 255 characters) is cut."""
        return self.headers.get(name, "").replace("\x00", "").strip()[:255]


@value
class Change:
    """One thing normalising changed, so that every output field can be explained."""

    path: str
    before: Any
    after: Any
    rule: str
    source: str = ""
    """Where the rule stands, if it is data: a ConceptMap's name and the line of the code in it."""


@value
class Unmapped:
    """A value of the message that the canonical form has no place for. It is kept here, so that nothing is lost."""

    path: str
    value: Any
    why: str


class FlagCode(StrEnum):
    """A doubt that does not stop a message."""

    NHS_NUMBER_INVALID = "nhs-number-invalid"
    NHS_NUMBER_UNVERIFIED = "nhs-number-unverified"
    EVENT_TIME_ASSUMED = "event-time-assumed"
    CLOCK_SKEW = "clock-skew"
    MESSAGE_ID_MISSING = "message-id-missing"
    KEY_EMPTY = "key-empty"
    SENDER_NOT_NAMED = "sender-not-named"
    REASON_INCONSISTENT = "reason-inconsistent"
    TRANSFER_AMBIGUOUS = "transfer-ambiguous"
    MOVED_WITHOUT_ACCEPTANCE = "moved-without-acceptance"
    RECORDS_DIVERGE = "records-diverge"
    TRANSFER_INFERRED = "transfer-inferred"
    IDENTITY_UNKNOWN = "identity-unknown"
    TIME_ZONE_ASSUMED = "tz-assumed"
    ENCOUNTER_CLASS_ASSUMED = "encounter-class-assumed"
    CONTENT_TYPE_WRONG = "content-type-wrong"
    CODE_UNMAPPED = "code-unmapped"


@value
class Flag:
    code: FlagCode
    path: str = ""
    detail: str = ""


ENCOUNTER_EVENT_TYPES = frozenset(
    {
        "encounter.admitted",
        "encounter.transferred",
        "encounter.discharged",
        "encounter.registered",
        "encounter.preadmitted",
        "encounter.updated",
        "encounter.cancelled",
        "encounter.admit.cancelled",
        "encounter.transfer.cancelled",
        "encounter.discharge.cancelled",
        "encounter.pending",
        "encounter.pending.cancelled",
        "encounter.loa.start",
        "encounter.loa.end",
        "encounter.loa.cancelled",
    }
)
PATIENT_EVENT_TYPES = frozenset({"patient.created", "patient.updated", "patient.merged", "patient.unmerged"})


class Kind(StrEnum):
    """What a message is, before it is known which transfer it belongs to."""

    REQUEST = "transfer-request"
    UPDATE = "transfer-update"
    CANCEL = "transfer-cancel"
    ANSWER = "transfer-answer"
    ENCOUNTER = "encounter-event"
    PATIENT = "patient-event"


@value
class PatientLink:
    """Another record of the same person (FHIR Patient.link): how it relates, and what it is known by."""

    kind: str
    keys: tuple[PersonKey, ...]


@value
class PersonRef:
    """The patient as the message identifies them. ``birth_date`` is the FHIR date, any precision.

    ``record`` is the id of the sender's Patient resource, learned from patient events only: it names a record in a link,
    and never finds a person by itself. ``superseded`` are NHS numbers that the person had (``use`` old). ``unknown``:
    nobody knows who this is (HL7 v2 PID-31), so only the hospital's own numbers count. ``sensitivity`` is U, R or V
    (PDS), None where the message does not say.
    """

    nhs_number: NhsNumber | None
    verification: str | None
    local: tuple[PersonKey, ...]
    birth_date: str | None
    record: PersonKey | None = None
    superseded: tuple[PersonKey, ...] = ()
    links: tuple[PatientLink, ...] = ()
    active: bool | None = None
    unknown: bool = False
    deceased: bool | None = None
    sensitivity: str | None = None
    numbers: tuple[PersonKey, ...] = ()
    """Those of ``local`` by which the hospital tells its patients apart (``identifier_systems.patient`` of its profile)."""
    told_as: str | None = None
    """Of a Task at an address that identifies its patient by nothing: the id in its reference, as the hub has told it."""

    @property
    def keys(self) -> tuple[PersonKey, ...]:
        """What the person may be found by: a usable NHS number first, then the hospital's own numbers."""
        number = self.nhs_number if self.usable_nhs_number and not self.unknown else None
        return (*((PersonKey(NHS_AUTHORITY, number.digits),) if number else ()), *self.local)

    @property
    def strong_keys(self) -> tuple[PersonKey, ...]:
        """Of `keys` those that are the patient's alone, as far as the message tells: all of them where the hospital's number is not among them."""
        return (
            tuple(key for key in self.keys if key not in self.local or key in self.numbers)
            if self.numbers
            else self.keys
        )

    @property
    def lookup(self) -> tuple[PersonKey, ...]:
        """Every key in it that may lead to somebody: their own, their records' and those of the records they are linked to."""
        return (
            *self.keys,
            *((self.record,) if self.record else ()),
            *self.superseded,
            *(key for link in self.links for key in link.keys),
        )

    @property
    def usable_nhs_number(self) -> bool:
        """Valid, and the trust does not itself say that it could not be verified.

        Status 01 is verified; a message that says nothing is believed; 02 to 08 and ``nn`` mean
        untraced, conflicting or absent (UK Core, NHS Number Verification Status) and link nobody.
        """
        return self.nhs_number is not None and self.nhs_number.valid and self.verification in {None, "01"}


@value
class EncounterRef:
    """A stay, an attendance: what of it can move a transfer.

    ``key`` is ``<ODS>|<system>|<value>``. ``destination`` is the trust a discharge says the patient
    goes to, ``origin`` the one that an admission says they came from; ``destination_code`` is the code as sent, site or trust. ``disposition``, ``discharge_method``, ``source``
    and ``admission_method`` are national codes (NHS Data Dictionary).
    """

    key: str | None
    status: str
    encounter_class: str | None
    destination: OdsCode | None = None
    destination_code: str | None = None
    disposition: str | None = None
    discharge_method: str | None = None
    source: str | None = None
    admission_method: str | None = None
    origin: OdsCode | None = None


@value
class Stay:
    """What one message said of a stay, kept apart from its message: a request that comes later may have use for it.

    ``stated_at`` is when the sender's record was written (Encounter.meta.lastUpdated), ``began_at`` when the stay began
    as the record has it (Encounter.period.start), whatever the event is.
    """

    event_id: EventId
    trust: OdsCode
    event_type: str
    encounter: EncounterRef
    occurred_at: datetime
    received_at: datetime
    sequence: int | None = None
    stated_at: datetime | None = None
    deceased: bool | None = None
    began_at: datetime | None = None


@value
class TransferRefs:
    """Everything in a message that can name a transfer, surest first.

    ``numbers`` and ``addresses`` are what an answer calls the request without saying whose name that is: a number without its
    system, the last part of a URL that leads to nothing in the message. They lead to no transfer, and away from those that have
    another name. ``other`` is what a Task is about by its own account, where that is neither a request nor a stay: MedicationRequest.
    """

    hub_id: str | None = None
    requests: tuple[Identifier, ...] = ()
    correlation_id: str | None = None
    numbers: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    other: str = ""


@value
class Canonical:
    """A message said in the hub's words. All times are UTC."""

    received: Received
    correlation_id: str | None
    bundle_id: str | None
    kind: Kind
    event_type: str
    occurred_at: datetime
    sequence: int | None
    person: PersonRef
    refs: TransferRefs
    receiver: OdsCode | None = None
    receiver_code: str | None = None
    sender_code: str | None = None
    status: str | None = None
    reason: tuple[Identifier, ...] = ()
    encounter: EncounterRef | None = None
    business_status: str | None = None
    """The hub's own state code in Task.businessStatus, which says more than Task.status can."""
    expected_version: int | None = None
    """The transfer's version that a decision was made on; none: whatever it is now."""
    about: str | None = None
    """The hub's id of the one transfer that it may move; none: of whichever it names."""
    until: datetime | None = None
    """How long a bed is held, or when a journey is expected to end (Task.restriction.period.end)."""
    specialty: str | None = None
    priority: str | None = None
    transfer_kind: str | None = None
    replaces: TransferRefs = TransferRefs()
    """The request that this one stands in for (ServiceRequest.replaces)."""
    stated_at: datetime | None = None
    began_at: datetime | None = None
    """When the stay of an encounter event began."""
    resources: tuple[Mapping[str, Any], ...] = ()
    """The Bundle's entries in canonical form, ``{"fullUrl": …, "resource": …}``, MessageHeader left out; of each type, what
    the message is about comes before what came with it.
    """
    patient_url: str | None = None
    """Which of ``resources`` describes the person; None if none does."""
    message: Mapping[str, Any] = field(default_factory=dict)
    """The whole message in canonical form: ``resources`` are parts of it."""
    changes: tuple[Change, ...] = ()
    unmapped: tuple[Unmapped, ...] = ()
    flags: tuple[Flag, ...] = field(default=())

    @property
    def trust(self) -> OdsCode:
        return self.received.trust

    @property
    def event_id(self) -> EventId:
        return self.received.event_id

    @property
    def stay(self) -> Stay | None:
        """What it says of a stay, if it is an encounter event."""
        if self.kind is not Kind.ENCOUNTER or self.encounter is None:
            return None
        return Stay(
            self.event_id,
            self.trust,
            self.event_type,
            self.encounter,
            self.occurred_at,
            self.received.received_at,
            self.sequence,
            self.stated_at,
            self.person.deceased,
            self.began_at,
        )
