"""What an audit entry says.

An entry names a patient, a transfer and a message by the hub's own ids. ``detail`` holds codes, paths,
counts, ODS codes and hashes: never a name, an NHS number, an address or anything else from a message's body.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any


class Code(StrEnum):
    """What happened. The words are those of the audit catalogue; new ones are added here."""

    MESSAGE_RECEIVED = "msg-received"
    MESSAGE_DUPLICATE = "msg-duplicate"
    MESSAGE_CONFLICT = "msg-conflict"
    MESSAGE_QUARANTINED = "msg-quarantined"
    MESSAGE_REJECTED = "msg-rejected"
    MESSAGE_NORMALISED = "msg-normalised"
    MESSAGE_RETRIED = "msg-replayed"
    ORGANISATION_MISMATCH = "org-mismatch"
    PERSON_MATCHED = "identity-matched"
    PERSON_CREATED = "identity-created"
    PERSONS_MERGED = "identity-merged"
    PERSONS_UNMERGED = "identity-unmerged"
    NHS_NUMBER_SUPERSEDED = "identity-superseded"
    PERSON_CONFIRMED = "identity-confirmed"
    SENSITIVITY_CHANGED = "sensitivity-changed"
    SENSITIVITY_APPLIED = "sensitivity-applied"
    TIMER_ESCALATED = "timer-escalated"
    TRANSFER_CREATED = "transfer-created"
    TRANSFER_MOVED = "transfer-moved"
    TRANSITION_DENIED = "transition-denied"
    ROUTED = "routed"
    DELIVERY_SENT = "delivery-sent"
    DELIVERY_FAILED = "delivery-failed"
    BRAKE_PULLED = "brake-pulled"
    BRAKE_RELEASED = "brake-released"
    INCIDENT_OPENED = "incident-opened"
    INCIDENT_CLOSED = "incident-closed"
    POSITION_SET = "position-set"
    AUDIT_READ = "audit-read"
    MESSAGES_READ = "msg-read"
    RECORD_READ = "record-read"
    RECORD_SEARCHED = "record-search"
    AUTHENTICATION_FAILED = "auth-failed"
    ACCESS_DENIED = "access-denied"
    CONFIG_CHANGED = "config-changed"
    GLASS_BROKEN = "break-glass"
    GLASS_REVIEWED = "break-glass-reviewed"


class Outcome(IntEnum):
    """FHIR R4 AuditEvent.outcome (http://hl7.org/fhir/ValueSet/audit-event-outcome)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who (``trust``, ``system``) did what (``code``) to whom and which, when, and how it went.

    ``at`` is hub time and ``occurred_at`` event time, both UTC.
    """

    code: Code
    at: datetime
    system: str
    outcome: Outcome = Outcome.SUCCESS
    trust: str | None = None
    counterpart: str | None = None
    event_id: str | None = None
    person_id: str | None = None
    transfer_id: str | None = None
    occurred_at: datetime | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
