"""The audit catalogue: what each code means in FHIR, and in a sentence.

The words are the hub's own code system (``schemas/codesystems/transfer-audit-event.json``, which is made from this table);
``type``, ``action`` and ``purpose`` are FHIR's, DICOM's and ISO 21089's, for readers that know only those. A code that was
ever written stands in a sealed log, so a row here may be reworded and never taken out.

Sources: DOMAIN, 5.3; FHIR R4 AuditEvent and its value sets; DICOM PS3.15, A.5; IHE Basic Audit Log Patterns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hub.audit.entries import Code
from hub.domain.ids import Identifier
from hub.domain.transfer import CORRECTED, EVENT_TYPE, REOPENED, Step


class Action(StrEnum):
    """FHIR R4 AuditEvent.action (http://hl7.org/fhir/ValueSet/audit-event-action)."""

    CREATE = "C"
    READ = "R"
    UPDATE = "U"
    DELETE = "D"
    EXECUTE = "E"


class Purpose(StrEnum):
    """Why something was done, as far as what was done tells it (HL7 v3 ActReason)."""

    TREATMENT = "TREAT"
    BREAK_THE_GLASS = "BTG"
    OPERATIONS = "HOPERAT"
    SYSTEM_ADMINISTRATION = "HSYSADMIN"


DICOM = "http://dicom.nema.org/resources/ontology/DCM"
LIFECYCLE = "http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle"
INTERACTION = "http://hl7.org/fhir/restful-interaction"


def _dicom(code: str) -> Identifier:
    return Identifier(DICOM, code)


def _record(code: str) -> Identifier:
    return Identifier(LIFECYCLE, code)


APPLICATION_ACTIVITY = _dicom("110100")
AUDIT_LOG_USED = _dicom("110101")
EXPORT = _dicom("110106")
IMPORT = _dicom("110107")
PATIENT_RECORD = _dicom("110110")
SECURITY_ALERT = _dicom("110113")
USER_AUTHENTICATION = _dicom("110114")
REST = Identifier("http://terminology.hl7.org/CodeSystem/audit-event-type", "rest")
DISCLOSE = _record("disclose")


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means.

    ``kind`` is FHIR's AuditEvent.type; ``also`` are subtypes of others' code systems besides the hub's own code.
    ``definition`` is one sentence: what happened, and with that when it is written. ``of_patient``: there is always a patient behind it, so
    where none is named they are unknown; else it may be about nobody.
    """

    kind: Identifier
    action: Action
    display: str
    definition: str
    purpose: Purpose = Purpose.TREATMENT
    also: tuple[Identifier, ...] = ()
    of_patient: bool = True


_C, _R, _U, _D, _E = Action.CREATE, Action.READ, Action.UPDATE, Action.DELETE, Action.EXECUTE


def _moved(display: str, definition: str, action: Action = _U) -> Meaning:
    return Meaning(PATIENT_RECORD, action, display, definition)


def _operated(
    display: str,
    definition: str,
    action: Action,
    *,
    kind: Identifier = APPLICATION_ACTIVITY,
    of_patient: bool = False,
) -> Meaning:
    return Meaning(kind, action, display, definition, Purpose.SYSTEM_ADMINISTRATION, of_patient=of_patient)


def _glass(display: str, definition: str) -> Meaning:
    return Meaning(SECURITY_ALERT, _R, display, definition, Purpose.BREAK_THE_GLASS)


CATALOGUE: Mapping[Code, Meaning] = {
    # A message comes in
    Code.MESSAGE_RECEIVED: Meaning(
        IMPORT, _C, "Message received", "A message was taken in, before anything in it was read."
    ),
    Code.MESSAGE_ACCEPTED: Meaning(
        IMPORT, _C, "Message accepted", "A message was understood as it came and acted on."
    ),
    Code.MESSAGE_REPAIRED: Meaning(
        _record("transform"),
        _U,
        "Message repaired",
        "A message was acted on after the hub had changed or doubted something in it.",
    ),
    Code.MESSAGE_DUPLICATE: Meaning(
        IMPORT, _R, "Message seen before", "The same message came again, so nothing was done."
    ),
    Code.MESSAGE_CONFLICT: Meaning(
        IMPORT,
        _R,
        "Message number used twice",
        "Another message came under the number of an earlier one, and was kept and not acted on.",
    ),
    Code.MESSAGE_REJECTED: Meaning(
        IMPORT, _C, "Message rejected", "A message was understood and refused, and its sender was told why."
    ),
    Code.MESSAGE_QUARANTINED: Meaning(
        IMPORT, _U, "Message quarantined", "A message could not be used, and waits until its cause is mended."
    ),
    Code.MESSAGE_REPLAYED: _operated(
        "Message run again",
        "A message that the hub kept was put through the journey again.",
        _U,
        kind=IMPORT,
        of_patient=True,
    ),
    Code.MESSAGE_RELEASED: _operated(
        "Message released", "A message left quarantine.", _U, kind=IMPORT, of_patient=True
    ),
    Code.MESSAGES_READ: _operated(
        "Messages read",
        "Somebody who runs the hub read messages that it keeps.",
        _R,
        kind=_record("access"),
        of_patient=True,
    ),
    Code.ORGANISATION_MISMATCH: Meaning(
        SECURITY_ALERT,
        _E,
        "Sender not who it claims",
        "A message named another organisation as its sender than the one that is proved to have sent it.",
        Purpose.OPERATIONS,
    ),
    Code.CLOCK_SKEW: Meaning(
        APPLICATION_ACTIVITY,
        _E,
        "Clock ahead",
        "A message told of a time in the future, so the time at which it came was taken.",
    ),
    Code.TIME_ZONE_ASSUMED: Meaning(
        APPLICATION_ACTIVITY,
        _E,
        "Time zone assumed",
        "A message told a time without its offset, so the clock of the trust was assumed.",
    ),
    Code.OUT_OF_ORDER: Meaning(
        APPLICATION_ACTIVITY,
        _E,
        "Out of order",
        "A message told of something that happened before what was already known.",
    ),
    # Whom it is about
    Code.IDENTITY_MATCHED: Meaning(
        _record("link"),
        _U,
        "Patient matched",
        "An identifier or a date of birth that was new was linked to a known patient.",
    ),
    Code.IDENTITY_UNMATCHED: Meaning(
        _record("originate"),
        _U,
        "Patient not matched",
        "Nobody known had the identifiers of a message, so the hub began a new person.",
    ),
    Code.IDENTITY_MERGED: Meaning(
        _record("merge"), _U, "Patients merged", "Two records were said to be of one person, and joined."
    ),
    Code.IDENTITY_UNMERGED: Meaning(
        _record("unmerge"),
        _U,
        "Patients unmerged",
        "Two records that had been joined were said to be of two persons, and taken apart.",
    ),
    Code.IDENTITY_CONFIRMED: Meaning(
        _record("verify"), _U, "Patient confirmed", "A person confirmed whom a message is about."
    ),
    Code.IDENTITY_SUPERSEDED: Meaning(
        _record("amend"), _U, "NHS number superseded", "A patient's NHS number was replaced by another."
    ),
    Code.IDENTITY_NUMBER_TAKEN: _operated(
        "Number found not theirs",
        "Somebody who runs the hub said that a number is not a patient's, or took that back.",
        _U,
        kind=_record("amend"),
        of_patient=True,
    ),
    Code.IDENTITY_BIRTH_DATE_SET: _operated(
        "Date of birth set",
        "Somebody who runs the hub said when a patient was born, because the hub held another date.",
        _U,
        kind=_record("amend"),
        of_patient=True,
    ),
    Code.IDENTITY_READ: _operated(
        "Numbers read",
        "Somebody who runs the hub read by which numbers and which date of birth a patient is known.",
        _R,
        kind=_record("access"),
        of_patient=True,
    ),
    Code.SENSITIVITY_CHANGED: Meaning(
        _record("amend"),
        _U,
        "Sensitivity changed",
        "A patient's record became restricted or stopped being so.",
    ),
    Code.SENSITIVITY_APPLIED: Meaning(
        PATIENT_RECORD,
        _E,
        "Sensitive parts kept back",
        "Parts of what a receiver is told were left out, because the record is restricted.",
    ),
    # What it does to a transfer
    Code.TRANSFER_CREATED: _moved(
        "Transfer created", "A transfer became known to the hub for the first time.", _C
    ),
    Code.TRANSFER_UPDATED: _moved("Transfer updated", "The sender drafted, asked for or changed a transfer."),
    Code.TRANSFER_CANCELLED: _moved("Transfer cancelled", "One of the hospitals called the transfer off."),
    Code.TRANSFER_ENTERED_IN_ERROR: _moved(
        "Transfer entered in error", "The transfer was said never to have been meant."
    ),
    Code.TRANSFER_RECEIVED: _moved("Request received", "The receiver said that it has the request."),
    Code.TRANSFER_QUERIED: _moved("Question asked", "The receiver asked for more before deciding."),
    Code.TRANSFER_ANSWERED: _moved("Question answered", "The sender answered the receiver's question."),
    Code.TRANSFER_ACCEPTED: _moved("Transfer accepted", "The receiver agreed to take the patient."),
    Code.TRANSFER_REJECTED: _moved("Transfer rejected", "The receiver refused to take the patient."),
    Code.TRANSFER_REDIRECTED: _moved("Transfer redirected", "The patient is to go to another hospital."),
    Code.TRANSFER_CONFIRMED: _moved(
        "Move confirmed", "A hospital confirmed a move that had been made without acceptance."
    ),
    Code.TRANSFER_IDENTIFIED: _moved(
        "Patient of transfer identified", "It became known whom the transfer is about."
    ),
    Code.TRANSFER_CORRECTED: _moved(
        "Transfer corrected",
        "Something told earlier was taken back, or came late and changed what followed it.",
    ),
    Code.TRANSFER_DIVERGED: _moved(
        "Records diverged", "The two hospitals' records stopped telling one story."
    ),
    Code.BED_AWAITED: _moved("Bed awaited", "The receiver agreed and has no bed yet."),
    Code.BED_ALLOCATED: _moved("Bed allocated", "The receiver has a bed for the patient."),
    Code.BED_RELEASED: _moved(
        "Bed released", "The bed kept for the patient was given up, or its time ran out."
    ),
    Code.TRANSPORT_BOOKED: _moved("Transport booked", "The sender arranged the journey."),
    Code.DEPARTED: _moved("Patient departed", "The patient left the sending hospital."),
    Code.ARRIVED: _moved("Patient arrived", "The patient reached the receiving hospital."),
    Code.RETURNED: _moved("Patient returned", "The patient came back to the sending hospital."),
    Code.COMPLETED: _moved("Transfer completed", "The receiving hospital admitted the patient."),
    Code.FAILED: _moved("Transfer failed", "The journey began and did not reach its end."),
    Code.DIED: _moved("Patient died", "A hospital told that the patient has died."),
    Code.REOPENED: _moved("Transfer reopened", "A transfer that was over turned out not to be."),
    Code.EXPIRED: _moved("Transfer expired", "The last clock of a transfer ran out, and it was closed."),
    Code.TRANSITION_DENIED: Meaning(
        SECURITY_ALERT,
        _E,
        "Step denied",
        "Somebody tried to move a transfer in a way that its state or their part in it does not allow.",
    ),
    Code.TIMER_ESCALATED: Meaning(
        APPLICATION_ACTIVITY,
        _E,
        "Clock rang",
        "A clock of a transfer ran out, and those who should act were told.",
    ),
    # Who is told
    Code.ROUTED: Meaning(
        APPLICATION_ACTIVITY, _E, "News routed", "The hub decided who is told of something, and where."
    ),
    Code.DISCLOSURE_SENT: Meaning(
        EXPORT,
        _R,
        "Disclosure sent",
        "News of a patient lies where its receiver reads it, or the receiver took it.",
        also=(DISCLOSE,),
    ),
    Code.DELIVERY_ACKNOWLEDGED: Meaning(
        _record("transmit"),
        _E,
        "Delivery acknowledged",
        "A receiver has what the hub had to tell of the receiver's own message.",
    ),
    Code.DELIVERY_RETRY: Meaning(
        _record("transmit"), _E, "Delivery to be tried again", "A delivery failed and waits for another try."
    ),
    # Who looks, and who may not
    Code.RECORD_READ: Meaning(
        REST,
        _R,
        "Record read",
        "A system or a person read a transfer or what belongs to it.",
        also=(Identifier(INTERACTION, "read"),),
    ),
    Code.RECORD_SEARCHED: Meaning(
        REST,
        _E,
        "Records searched",
        "A system or a person searched among transfers.",
        also=(Identifier(INTERACTION, "search-type"),),
        of_patient=False,
    ),
    Code.AUTHENTICATION_FAILED: Meaning(
        USER_AUTHENTICATION,
        _E,
        "Sign-in failed",
        "Somebody could not prove who they are, and was not let in.",
        Purpose.OPERATIONS,
        of_patient=False,
    ),
    Code.ACCESS_DENIED: Meaning(
        SECURITY_ALERT,
        _E,
        "Access denied",
        "Somebody who had signed in asked for what they may not have, or for what is not there.",
    ),
    Code.GLASS_BROKEN: _glass(
        "Glass broken", "A clinician opened a patient's record that their hospital has no part in."
    ),
    Code.GLASS_CLOSED: _glass("Glass closed", "The time for which the glass was broken was over."),
    Code.GLASS_REVIEWED: _glass(
        "Broken glass reviewed", "Somebody judged whether the glass had been broken with good reason."
    ),
    Code.AUDIT_READ: Meaning(
        AUDIT_LOG_USED,
        _R,
        "Audit read",
        "Somebody read audit entries.",
        Purpose.OPERATIONS,
        of_patient=False,
    ),
    Code.AUDIT_EXPORTED: Meaning(
        AUDIT_LOG_USED,
        _R,
        "Audit exported",
        "Somebody took audit entries out of the hub.",
        Purpose.OPERATIONS,
        of_patient=False,
    ),
    # The hub itself
    Code.BRAKE_PULLED: _operated(
        "Brake pulled", "So many messages of a trust failed in a row that the hub stopped reading them.", _E
    ),
    Code.BRAKE_RELEASED: _operated(
        "Brake released", "Somebody let the hub read a trust's messages again.", _E
    ),
    Code.INCIDENT_OPENED: _operated("Incident opened", "The hub found something that a person must see.", _C),
    Code.INCIDENT_CLOSED: _operated(
        "Incident closed", "What had to be seen was seen to, or mended itself.", _U
    ),
    Code.POSITION_SET: _operated("Position set", "Somebody set from where the hub reads a topic.", _U),
    Code.CONFIG_CHANGED: _operated(
        "Configuration changed", "A client, a subscription, a route, a map or a policy was changed.", _U
    ),
    Code.RETENTION_APPLIED: _operated(
        "Retention applied",
        "Messages that were older than the policy keeps them were deleted.",
        _D,
        kind=_record("destroy"),
    ),
}
"""Every code, and nothing else: a test says so."""

NOTABLE = frozenset(
    {
        Code.MESSAGE_CONFLICT,
        Code.MESSAGES_READ,
        Code.ORGANISATION_MISMATCH,
        Code.IDENTITY_MERGED,
        Code.IDENTITY_UNMERGED,
        Code.SENSITIVITY_CHANGED,
        Code.TRANSFER_ENTERED_IN_ERROR,
        Code.TRANSITION_DENIED,
        Code.AUTHENTICATION_FAILED,
        Code.ACCESS_DENIED,
        Code.GLASS_BROKEN,
        Code.GLASS_CLOSED,
        Code.GLASS_REVIEWED,
        Code.AUDIT_READ,
        Code.AUDIT_EXPORTED,
        Code.BRAKE_PULLED,
        Code.BRAKE_RELEASED,
        Code.POSITION_SET,
        Code.CONFIG_CHANGED,
        Code.RETENTION_APPLIED,
    }
)
"""What governance asks for by its name, and is rare among millions: the store keeps an index of these alone, so a change here needs a
migration.
"""

_OF_STEP: Mapping[Step, Code] = {
    # The first word of a transfer is written as TRANSFER_CREATED, whichever step it is.
    Step.DRAFT: Code.TRANSFER_UPDATED,
    Step.REQUEST: Code.TRANSFER_UPDATED,
    Step.UPDATE: Code.TRANSFER_UPDATED,
    Step.CANCEL: Code.TRANSFER_CANCELLED,
    Step.VOID: Code.TRANSFER_ENTERED_IN_ERROR,
    Step.RECEIVE: Code.TRANSFER_RECEIVED,
    Step.QUERY: Code.TRANSFER_QUERIED,
    Step.ANSWER_QUERY: Code.TRANSFER_ANSWERED,
    Step.ACCEPT: Code.TRANSFER_ACCEPTED,
    Step.REJECT: Code.TRANSFER_REJECTED,
    Step.REDIRECT: Code.TRANSFER_REDIRECTED,
    Step.AWAIT_BED: Code.BED_AWAITED,
    Step.ALLOCATE_BED: Code.BED_ALLOCATED,
    Step.RELEASE_BED: Code.BED_RELEASED,
    Step.BOOK_TRANSPORT: Code.TRANSPORT_BOOKED,
    Step.DEPART: Code.DEPARTED,
    Step.ARRIVE: Code.ARRIVED,
    Step.ADMIT: Code.COMPLETED,
    Step.RETURN: Code.RETURNED,
    Step.FAIL: Code.FAILED,
    Step.DIE: Code.DIED,
    Step.DIVERGE: Code.TRANSFER_DIVERGED,
    Step.CONFIRM: Code.TRANSFER_CONFIRMED,
    Step.IDENTIFY: Code.TRANSFER_IDENTIFIED,
    Step.RETRACT: Code.TRANSFER_CORRECTED,
    Step.ESCALATE: Code.TIMER_ESCALATED,
    Step.EXPIRE: Code.EXPIRED,
}
TRANSFER_CODE: Mapping[str, Code] = {EVENT_TYPE[step]: code for step, code in _OF_STEP.items()} | {
    CORRECTED: Code.TRANSFER_CORRECTED,
    REOPENED: Code.REOPENED,
}
"""What happened to a transfer, by the event type that it is told under."""
TRANSFER_CODES = frozenset({Code.TRANSFER_CREATED, *TRANSFER_CODE.values()})
"""Every code that says what happened to a transfer."""
