"""What an audit entry says.

An entry names a patient, a transfer and a message by the hub's own ids, and who acted by the ids they signed in with.
``detail`` holds codes, paths, counts, ODS codes and hashes: never a name, an NHS number, an address or anything else
from a message's body. `hub.audit.catalogue` says what each code means in FHIR.
"""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from hub.domain.value import value


class Code(StrEnum):
    """What happened: the words of the audit catalogue. New ones are added here and in `hub.audit.catalogue`."""

    # A message comes in
    MESSAGE_RECEIVED = "msg-received"
    MESSAGE_ACCEPTED = "msg-accepted"
    MESSAGE_REPAIRED = "msg-repaired"
    MESSAGE_DUPLICATE = "msg-duplicate"
    MESSAGE_CONFLICT = "msg-conflict"
    MESSAGE_REJECTED = "msg-rejected"
    MESSAGE_QUARANTINED = "msg-quarantined"
    MESSAGE_REPLAYED = "msg-replayed"
    MESSAGE_RELEASED = "msg-released"
    MESSAGES_READ = "msg-read"
    ORGANISATION_MISMATCH = "org-mismatch"
    CLOCK_SKEW = "clock-skew"
    TIME_ZONE_ASSUMED = "tz-assumed"
    OUT_OF_ORDER = "out-of-order"
    # Whom it is about
    IDENTITY_MATCHED = "identity-matched"
    IDENTITY_UNMATCHED = "identity-unmatched"
    IDENTITY_MERGED = "identity-merged"
    IDENTITY_UNMERGED = "identity-unmerged"
    IDENTITY_CONFIRMED = "identity-confirmed"
    IDENTITY_SUPERSEDED = "identity-superseded"
    IDENTITY_NUMBER_TAKEN = "identity-number-taken"
    IDENTITY_BIRTH_DATE_SET = "identity-birth-date-set"
    IDENTITY_READ = "identity-read"
    SENSITIVITY_CHANGED = "sensitivity-changed"
    SENSITIVITY_APPLIED = "sensitivity-applied"
    # What it does to a transfer
    TRANSFER_CREATED = "transfer-created"
    TRANSFER_UPDATED = "transfer-updated"
    TRANSFER_CANCELLED = "transfer-cancelled"
    TRANSFER_ENTERED_IN_ERROR = "transfer-entered-in-error"
    TRANSFER_RECEIVED = "transfer-received"
    TRANSFER_QUERIED = "transfer-queried"
    TRANSFER_ANSWERED = "transfer-answered"
    TRANSFER_ACCEPTED = "transfer-accepted"
    TRANSFER_REJECTED = "transfer-rejected"
    TRANSFER_REDIRECTED = "transfer-redirected"
    TRANSFER_CONFIRMED = "transfer-confirmed"
    TRANSFER_IDENTIFIED = "transfer-identified"
    TRANSFER_CORRECTED = "transfer-corrected"
    TRANSFER_DIVERGED = "transfer-diverged"
    BED_AWAITED = "bed-awaited"
    BED_ALLOCATED = "bed-allocated"
    BED_RELEASED = "bed-released"
    TRANSPORT_BOOKED = "transport-booked"
    DEPARTED = "departed"
    ARRIVED = "arrived"
    RETURNED = "returned"
    COMPLETED = "completed"
    FAILED = "failed"
    DIED = "died"
    REOPENED = "reopened"
    EXPIRED = "expired"
    TRANSITION_DENIED = "transition-denied"
    TIMER_ESCALATED = "timer-escalated"
    # Who is told
    ROUTED = "routed"
    DISCLOSURE_SENT = "disclosure-sent"
    DELIVERY_ACKNOWLEDGED = "delivery-ack"
    DELIVERY_RETRY = "delivery-retry"
    # Who looks, and who may not
    RECORD_READ = "record-read"
    RECORD_SEARCHED = "record-search"
    AUTHENTICATION_FAILED = "auth-failed"
    ACCESS_DENIED = "access-denied"
    GLASS_BROKEN = "break-glass-opened"
    GLASS_CLOSED = "break-glass-closed"
    GLASS_REVIEWED = "break-glass-reviewed"
    AUDIT_READ = "audit-read"
    AUDIT_EXPORTED = "audit-exported"
    # The hub itself
    BRAKE_PULLED = "brake-pulled"
    BRAKE_RELEASED = "brake-released"
    INCIDENT_OPENED = "incident-opened"
    INCIDENT_CLOSED = "incident-closed"
    POSITION_SET = "position-set"
    CONFIG_CHANGED = "config-changed"
    RETENTION_APPLIED = "retention-applied"


class Outcome(IntEnum):
    """FHIR R4 AuditEvent.outcome (http://hl7.org/fhir/ValueSet/audit-event-outcome)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8
    MAJOR_FAILURE = 12


@value
class AuditEntry:
    """Who (``trust``, ``user_id`` in ``role_id``, or ``client_id``; through ``system``) did what (``code``) to whom and
    which, when, and how it went.

    ``at`` is hub time and ``occurred_at`` event time, both UTC. ``trust`` is who acted as far as it is proved, not who a
    message says it is from; what was claimed stands in ``detail``. ``request_id`` is the message's or the request's own
    (X-Request-Id). ``user_id`` is who signed in, or the operator at the command line.
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
    request_id: str | None = None
    user_id: str | None = None
    role_id: str | None = None
    client_id: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
