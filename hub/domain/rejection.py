"""Every "no" the hub can say: what is wrong, who can mend it, and what becomes of the message."""

from dataclasses import field
from enum import StrEnum
from typing import NamedTuple

from hub.domain.message import Change, Unmapped
from hub.domain.value import value


class Disposition(StrEnum):
    """What became of a message. Each message ends in exactly one."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The same message id with the same bytes: already delivered, nothing is done again."""
    CONFLICT = "conflict"
    """The same message id with other bytes: refused, the bytes are kept."""
    QUARANTINED = "quarantined"
    """Kept until somebody mends the cause; the same bytes can then be run again."""
    REJECTED = "rejected"
    """Understood and refused: running the same bytes again would give the same answer."""


class Owner(StrEnum):
    """Who can mend it."""

    SENDING_TRUST = "sending trust"
    HUB_TEAM = "hub team"
    DUTY_TEAM = "duty team"


class Why(StrEnum):
    """Reason codes. Stable: receipts, audit entries, dashboards and the runbook use them."""

    NOT_JSON = "not-json"
    NOT_XML = "not-xml"
    XML_UNSAFE = "xml-unsafe"
    NOT_FHIR = "not-fhir"
    RESOURCE_TYPE_UNKNOWN = "resource-type-unknown"
    STRUCTURE_INVALID = "structure-invalid"
    MESSAGE_TOO_LARGE = "message-too-large"
    MESSAGE_TOO_DEEP = "message-too-deep"
    MESSAGE_EMPTY = "message-empty"
    NUL_CHARACTER = "nul-character"
    DIALECT_NOT_SUPPORTED = "dialect-not-supported"
    MESSAGE_HEADER_MISSING = "message-header-missing"
    MESSAGE_NOT_SUPPORTED = "message-not-supported"
    STATUS_NOT_SUPPORTED = "status-not-supported"
    PATIENT_MISSING = "patient-missing"
    PATIENT_UNIDENTIFIED = "patient-unidentified"
    NEEDS_CONFIRMATION = "needs-confirmation"
    ENCOUNTER_UNIDENTIFIED = "encounter-unidentified"
    NHS_NUMBER_INVALID = "nhs-number-invalid"
    NHS_NUMBER_REPEATED_DIGITS = "nhs-number-repeated-digits"
    SENDER_NOT_TOPIC_OWNER = "sender-not-topic-owner"
    SENDER_UNKNOWN = "sender-unknown"
    RECEIVER_UNKNOWN = "receiver-unknown"
    RECEIVER_MISSING = "receiver-missing"
    RECEIVER_IS_SENDER = "receiver-is-sender"
    RECEIVER_CHANGED = "receiver-changed"
    CLOCK_IMPLAUSIBLE = "clock-implausible"
    REASON_MISSING = "reason-missing"
    TRANSFER_UNKNOWN = "transfer-unknown"
    TRANSFER_EXISTS = "transfer-exists"
    ADDRESS_DIFFERS = "address-differs"
    VERSION_STALE = "version-stale"
    VERSION_UNREADABLE = "version-unreadable"
    SHARED_RECORD_ECHO = "shared-record-echo"
    TRANSITION_DENIED = "transition-denied"
    ROLE_NOT_ALLOWED = "role-not-allowed"
    MESSAGE_ID_REUSED = "message-id-reused"
    PROCESS_KILLED = "process-killed"
    HUB_FAULT = "hub-fault"


class Ruling(NamedTuple):
    """What a reason means for the message, who mends it, and what to tell them to do."""

    disposition: Disposition
    owner: Owner
    advice: str


_SENDER, _HUB, _DUTY = Owner.SENDING_TRUST, Owner.HUB_TEAM, Owner.DUTY_TEAM
_Q, _R = Disposition.QUARANTINED, Disposition.REJECTED

RULINGS: dict[Why, Ruling] = {
    Why.NOT_JSON: Ruling(_Q, _SENDER, "Send one FHIR R4 resource as UTF-8 JSON per Kafka record."),
    Why.NOT_XML: Ruling(_Q, _SENDER, "Send one FHIR R4 resource as well-formed XML per Kafka record."),
    Why.XML_UNSAFE: Ruling(
        _Q,
        _SENDER,
        "Remove the document type and its entities; FHIR XML has neither (FHIR R4, XML, security).",
    ),
    Why.NOT_FHIR: Ruling(
        _Q, _SENDER, "The top of the message must be a FHIR resource: in JSON an object with a resourceType."
    ),
    Why.RESOURCE_TYPE_UNKNOWN: Ruling(
        _Q, _SENDER, "Use a resource type of the version of FHIR that the message is in."
    ),
    Why.STRUCTURE_INVALID: Ruling(_Q, _SENDER, "Correct the elements named and send the message again."),
    Why.MESSAGE_TOO_LARGE: Ruling(_Q, _SENDER, "Send documents by reference; see HUB_MESSAGE_BYTES_MAX."),
    Why.MESSAGE_TOO_DEEP: Ruling(
        _Q, _SENDER, "No FHIR message needs that much nesting; look for a loop in the export."
    ),
    Why.MESSAGE_EMPTY: Ruling(
        _Q, _SENDER, "The record has no value; this topic is not compacted, so it means nothing."
    ),
    Why.NUL_CHARACTER: Ruling(_Q, _SENDER, "FHIR strings may not hold U+0000; remove it at the source."),
    Why.DIALECT_NOT_SUPPORTED: Ruling(
        _Q, _HUB, "This hub reads FHIR R4 and STU3, JSON and XML; the trust speaks something else."
    ),
    Why.MESSAGE_HEADER_MISSING: Ruling(
        _Q, _SENDER, "The first entry of a message Bundle is its MessageHeader."
    ),
    Why.MESSAGE_NOT_SUPPORTED: Ruling(
        _Q, _SENDER, "Send a transfer request, an answer to one, or an encounter event."
    ),
    Why.STATUS_NOT_SUPPORTED: Ruling(
        _R, _SENDER, "This status does not move a transfer; see the lifecycle in the documents."
    ),
    Why.PATIENT_MISSING: Ruling(
        _Q, _SENDER, "Name the patient: a Patient resource or a reference with an identifier."
    ),
    Why.PATIENT_UNIDENTIFIED: Ruling(
        _Q, _SENDER, "Give the patient an NHS number or a local identifier with its system."
    ),
    Why.NEEDS_CONFIRMATION: Ruling(
        _Q,
        _DUTY,
        "A person must say who or which transfer is meant: `hub quarantine retry` with --transfer or --person. Nothing was moved by guess. A number that a record has by mistake: `hub people not-theirs`.",
    ),
    Why.ENCOUNTER_UNIDENTIFIED: Ruling(_Q, _SENDER, "Give the Encounter an identifier with its system."),
    Why.NHS_NUMBER_INVALID: Ruling(
        _Q, _SENDER, "The NHS number fails its check digit; trace it and send again."
    ),
    Why.NHS_NUMBER_REPEATED_DIGITS: Ruling(
        _Q, _SENDER, "A number of ten equal digits is a placeholder; leave it out if the number is not known."
    ),
    Why.SENDER_NOT_TOPIC_OWNER: Ruling(
        _Q,
        _HUB,
        "The message names another sender than the trust that owns the topic. Treated as a security event.",
    ),
    Why.SENDER_UNKNOWN: Ruling(_Q, _SENDER, "Name the sending organisation by its ODS code."),
    Why.RECEIVER_UNKNOWN: Ruling(
        _Q,
        _HUB,
        "No trust with this ODS code has joined the hub. Correct the code, or wait until it has joined.",
    ),
    Why.RECEIVER_MISSING: Ruling(_Q, _SENDER, "Name the receiving organisation by its ODS code."),
    Why.RECEIVER_IS_SENDER: Ruling(_R, _SENDER, "A move inside one trust is not an inter-trust transfer."),
    Why.RECEIVER_CHANGED: Ruling(
        _R, _SENDER, "A transfer keeps its receiver. Cancel it and request a new one."
    ),
    Why.CLOCK_IMPLAUSIBLE: Ruling(
        _Q,
        _SENDER,
        "The time of the event cannot be right; check the system's clock. A stay that goes on may have begun more than a year ago if the message says when it was made (Bundle.timestamp or meta.lastUpdated).",
    ),
    Why.REASON_MISSING: Ruling(
        _R, _SENDER, "A refusal needs a coded reason (Task.statusReason, Encounter.reasonCode)."
    ),
    Why.TRANSFER_UNKNOWN: Ruling(
        _Q,
        _SENDER,
        "No transfer of these two trusts matches. Quote the transfer id or the request's identifier.",
    ),
    Why.TRANSFER_EXISTS: Ruling(
        _R,
        _SENDER,
        "This patient's stay has an open transfer for this specialty. Change or cancel that one, or name it in ServiceRequest.replaces to send it elsewhere.",
    ),
    Why.ADDRESS_DIFFERS: Ruling(
        _R,
        _SENDER,
        "The body is not what the address names. Take the resource from a read of that address, or send this one to its own. Nothing was done.",
    ),
    Why.VERSION_STALE: Ruling(
        _R, _SENDER, "The transfer has changed since this was decided. Look at it again and decide anew."
    ),
    Why.VERSION_UNREADABLE: Ruling(
        _R,
        _SENDER,
        'Say the one version that was decided on as it was read, if-match: W/"3" (Task.meta.versionId, ETag); nothing was done.',
    ),
    Why.SHARED_RECORD_ECHO: Ruling(
        _R,
        _SENDER,
        "This stay belongs to a trust that shares the record system; that trust's own message counts. Nothing needs to be done.",
    ),
    Why.TRANSITION_DENIED: Ruling(
        _R, _SENDER, "The transfer is in a state, or you in a role, that does not allow this."
    ),
    Why.ROLE_NOT_ALLOWED: Ruling(
        _R, _SENDER, "The role you chose when you signed in may not do this: ask somebody who may."
    ),
    Why.MESSAGE_ID_REUSED: Ruling(
        Disposition.CONFLICT,
        _SENDER,
        "Another message had this x-request-id. Send the new content under a new id.",
    ),
    Why.PROCESS_KILLED: Ruling(
        _Q, _HUB, "Reading this message killed the process three times; it was set aside unread."
    ),
    Why.HUB_FAULT: Ruling(
        _Q, _HUB, "A fault in the hub, not in the message. Retry it when the hub is mended."
    ),
}


@value
class Rejection:
    """A message that goes no further.

    ``at`` is where in the message (a FHIRPath expression, a header's name), never what stood there.
    ``detail`` is plain words for the person who mends it, without anything taken from the message.
    """

    why: Why
    at: str = ""
    detail: str = ""
    candidates: tuple[str, ...] = ()
    """The hub's ids of whom or what could be meant, for the duty team's eyes: the sender may not be told who exists."""
    claimed: str = ""
    """Which organisation the message says it is from, where that is not who sent it: an ODS code."""
    changes: tuple[Change, ...] = field(default=(), compare=False, repr=False)
    unmapped: tuple[Unmapped, ...] = field(default=(), compare=False, repr=False)
    """What had been done to the message by then. It holds the message's values: for `hub explain`, never stored or logged."""

    @property
    def ruling(self) -> Ruling:
        return RULINGS[self.why]
