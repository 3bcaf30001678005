"""Step 2, normalise: what this trust's message says, in the hub's words.

Input: a tree that `read` found sound. Output: `Canonical`, or a `Rejection` naming what is missing and where.
Everybody and everything is found by identifiers (ODS code, NHS number, numbers namespaced by trust), never by a
server's resource id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from hub.codes.book import CodeBook
from hub.domain.ids import (
    Identifier,
    NhsNumber,
    OdsCode,
    PersonKey,
    parse_nhs_number,
    parse_ods,
    time_ordered_id,
)
from hub.domain.message import (
    Canonical,
    EncounterRef,
    Flag,
    FlagCode,
    Kind,
    PersonRef,
    Received,
    TransferRefs,
)
from hub.domain.rejection import Rejection, Why
from hub.domain.trust import Directory
from hub.fhir import headers
from hub.fhir.systems import HUB_TRANSFER, NHS_NUMBER, VERIFICATION_EXTENSIONS
from hub.fhir.tree import Entry, Resources, Tree, code_of, codes, identifiers, ods_code
from hub.journey.canonicalise import canonicalise, instant
from hub.journey.codes import to_national
from hub.journey.read import Read


@dataclass(frozen=True, slots=True)
class Rules:
    """What the hub insists on."""

    nhs_number_check: Literal["enforce", "flag"] = "flag"
    clock_ahead: timedelta = timedelta(hours=1)
    clock_ahead_max: timedelta = timedelta(days=1)
    clock_behind_max: timedelta = timedelta(days=366)


class _RefusedError(Exception):
    """Leaves a helper with the answer; never leaves this module."""

    def __init__(self, why: Why, at: str = "", detail: str = "") -> None:
        self.rejection = Rejection(why, at, detail)


@dataclass(slots=True)
class _Draft:
    """One message while it is being understood."""

    received: Received
    tree: Tree
    header: Tree | None
    resources: Resources
    directory: Directory
    flags: list[Flag]

    def first(self, resource_type: str) -> Entry | None:
        return next(iter(self.resources.of_type(resource_type)), None)


def normalise(
    received: Received, found: Read, directory: Directory, rules: Rules, book: CodeBook | None = None
) -> Canonical | Rejection:
    """Say in the hub's words what this trust's message said in its own. Changes ``found.tree`` in place.

    ``book`` is the sender's code book; without one, codes stay as they were sent.
    """
    try:
        return _normalise(received, found, directory, rules, book)
    except _RefusedError as refused:
        return refused.rejection


def _normalise(
    received: Received, found: Read, directory: Directory, rules: Rules, book: CodeBook | None
) -> Canonical:
    tree = found.tree
    coded, doubts = to_national(tree, book, directory[received.trust].nation) if book else ((), ())
    changes = (*found.changes, *coded, *canonicalise(tree, lambda index: _url(received, index)))
    draft = _open(received, tree, directory)
    draft.flags += (*found.flags, *doubts)
    sender_code = _sender(draft)
    kind, subject = _kind(draft)
    encounter_entry = _encounter_entry(draft, kind)
    person = _person(draft, subject, rules)
    receiver_code = _receiver_code(draft, kind, subject)
    receiver = directory.trust_of(receiver_code) if receiver_code else None
    if kind is Kind.REQUEST:
        _must_have_receiver(receiver_code, receiver, received.trust)
    encounter = _encounter(draft, encounter_entry, kind) if encounter_entry else None
    event_type = (
        _encounter_event_type(draft, encounter_entry)
        if kind is Kind.ENCOUNTER and encounter_entry
        else kind.value
    )
    occurred_at = _plausible(draft, _occurred_at(draft, kind, subject, encounter_entry, event_type), rules)
    if not received.header(headers.REQUEST_ID):
        draft.flags.append(Flag(FlagCode.MESSAGE_ID_MISSING, headers.REQUEST_ID))
    if not received.key:
        draft.flags.append(Flag(FlagCode.KEY_EMPTY))
    return Canonical(
        received=received,
        correlation_id=received.header(headers.CORRELATION_ID) or None,
        bundle_id=tree.get("id") if tree["resourceType"] == "Bundle" else None,
        kind=kind,
        event_type=event_type,
        occurred_at=occurred_at,
        sequence=_sequence(subject),
        person=person,
        refs=_refs(draft, kind, subject),
        receiver=receiver,
        receiver_code=receiver_code,
        sender_code=sender_code,
        status=_status(kind, subject, encounter),
        reason=_reason(kind, subject, encounter_entry),
        encounter=encounter,
        resources=tuple({"fullUrl": e.full_url, "resource": e.resource} for e in draft.resources.entries),
        message=tree,
        changes=changes,
        unmapped=found.unmapped,
        flags=tuple(draft.flags),
    )


def _open(received: Received, tree: Tree, directory: Directory) -> _Draft:
    """Spread a message into its resources; a bare resource is a message of one."""
    if tree["resourceType"] != "Bundle":
        return _Draft(
            received,
            tree,
            None,
            Resources([Entry(_url(received, 0), tree, tree["resourceType"])]),
            directory,
            [],
        )
    entries = [
        Entry(
            each.get("fullUrl") or _url(received, index), each["resource"], f"Bundle.entry[{index}].resource"
        )
        for index, each in enumerate(tree.get("entry", ()))
        if "resource" in each
    ]
    header = (
        entries[0].resource if entries and entries[0].resource["resourceType"] == "MessageHeader" else None
    )
    if tree.get("type") == "message" and header is None:
        raise _RefusedError(Why.MESSAGE_HEADER_MISSING, "Bundle.entry[0]")
    if tree.get("type") not in {"message", "collection"}:
        raise _RefusedError(
            Why.MESSAGE_NOT_SUPPORTED, "Bundle.type", "A Bundle must be of type message or collection."
        )
    rest = [entry for entry in entries if entry.resource["resourceType"] != "MessageHeader"]
    return _Draft(received, tree, header, Resources(rest), directory, [])


def _url(received: Received, index: int) -> str:
    return "urn:uuid:" + time_ordered_id(received.received_at, received.event_id, index)


def _sender(draft: _Draft) -> str | None:
    """The organisation the message says it comes from, which must be the topic's owner."""
    claims = _header_codes(draft, "sender") or _endpoint_codes(draft.header, "source")
    where = "MessageHeader.sender"
    if not claims and draft.header is None:
        encounter = draft.first("Encounter")
        provider = encounter.resource.get("serviceProvider") if encounter else None
        claims = _organisation_codes(draft, provider)
        where = "Encounter.serviceProvider"
    if not claims:
        if draft.header is not None:
            raise _RefusedError(Why.SENDER_UNKNOWN, where)
        draft.flags.append(Flag(FlagCode.SENDER_NOT_NAMED, where))
        return None
    if draft.directory.trust_of(claims[0]) != draft.received.trust:
        raise _RefusedError(
            Why.SENDER_NOT_TOPIC_OWNER, where, f"The message says that it comes from {claims[0]}."
        )
    return claims[0]


def _header_codes(draft: _Draft, element: str) -> list[str]:
    return _organisation_codes(draft, (draft.header or {}).get(element))


def _endpoint_codes(header: Mapping[str, Any] | None, element: str) -> list[str]:
    """ODS codes written as ``system|code`` in an endpoint URL, the way BaRS addresses services."""
    parts = (header or {}).get(element, ())
    found: list[str] = []
    for part in (parts,) if isinstance(parts, dict) else parts:
        system, bar, code = str(part.get("endpoint", "")).rpartition("|")
        if bar and "ods" in system.lower() and (parsed := parse_ods(code)):
            found.append(parsed)
    return found


def _organisation_codes(
    draft: _Draft, reference: Mapping[str, Any] | None, *, inside: Tree | None = None
) -> list[str]:
    """The ODS code a reference means: written on it, or on the Organization or PractitionerRole it leads to."""
    if not reference:
        return []
    direct = ods_code(reference)
    if direct:
        return [direct]
    target = draft.resources.resolve(reference, inside=inside)
    if target is None:
        return []
    found = ods_code(target)
    if found:
        return [found]
    return _organisation_codes(draft, target.get("organization") or target.get("managingOrganization"))


def _kind(draft: _Draft) -> tuple[Kind, Entry]:
    """What the message is, and the resource it is about."""
    request, task, encounter = draft.first("ServiceRequest"), draft.first("Task"), draft.first("Encounter")
    event = _event_code(draft.header)
    if event == "servicerequest-request":
        if request is None:
            raise _RefusedError(
                Why.MESSAGE_NOT_SUPPORTED,
                "MessageHeader.focus",
                "The focus of a transfer request is a ServiceRequest.",
            )
        return _request_kind(draft, request), request
    if task is not None:
        return Kind.ANSWER, task
    if event == "servicerequest-response":
        if request is None or encounter is None:
            raise _RefusedError(
                Why.MESSAGE_NOT_SUPPORTED,
                "MessageHeader.focus",
                "An answer holds a Task, or a ServiceRequest and the receiver's own Encounter.",
            )
        return Kind.ANSWER, request
    if encounter is not None and request is None:
        return Kind.ENCOUNTER, encounter
    raise _RefusedError(
        Why.MESSAGE_NOT_SUPPORTED, "MessageHeader.event" if draft.header else draft.tree["resourceType"]
    )


def _event_code(header: Tree | None) -> str:
    if header is None:
        return ""
    return str(
        header.get("eventCoding", {}).get("code") or str(header.get("eventUri", "")).rpartition("#")[2]
    ).lower()


def _request_kind(draft: _Draft, request: Entry) -> Kind:
    """New, update or cancel: by status first, because published examples disagree with themselves about the
    reason (BaRS 1.5: update+revoked and delete+entered-in-error are both cancellations).
    """
    status = request.resource.get("status")
    reason = code_of((draft.header or {}).get("reason"))
    if status in {"revoked", "entered-in-error"}:
        if reason == "new":
            draft.flags.append(Flag(FlagCode.REASON_INCONSISTENT, "MessageHeader.reason"))
        return Kind.CANCEL
    if status not in {"active", "on-hold"}:
        raise _RefusedError(Why.STATUS_NOT_SUPPORTED, f"{request.path}.status")
    if reason == "delete":
        raise _RefusedError(
            Why.MESSAGE_NOT_SUPPORTED,
            "MessageHeader.reason",
            "A deletion has ServiceRequest.status revoked or entered-in-error.",
        )
    return Kind.UPDATE if reason == "update" else Kind.REQUEST


def _encounter_entry(draft: _Draft, kind: Kind) -> Entry | None:
    """The Encounter that matters: the sender's stay in a request, the receiver's own in an answer (BaRS puts it
    last, behind the sender's).
    """
    found = draft.resources.of_type("Encounter")
    if kind is not Kind.ANSWER:
        return found[0] if found else None
    own = [entry for entry in found if _provider(draft, entry) in {None, draft.received.trust}]
    named = [entry for entry in own if _provider(draft, entry) == draft.received.trust]
    return (named or own)[-1] if own else None


def _provider(draft: _Draft, entry: Entry) -> OdsCode | None:
    claims = _organisation_codes(draft, entry.resource.get("serviceProvider"), inside=entry.resource)
    return draft.directory.trust_of(claims[0]) if claims else None


def _person(draft: _Draft, subject: Entry, rules: Rules) -> PersonRef:
    """The patient, by the Patient resource or by a reference that carries an identifier."""
    reference = subject.resource.get("subject") or subject.resource.get("for")
    patient = draft.resources.resolve(reference, inside=subject.resource)
    if patient is None:
        found = draft.first("Patient")
        patient = found.resource if found else None
    source: Mapping[str, Any] | None = patient or reference
    if source is None:
        raise _RefusedError(Why.PATIENT_MISSING, "Patient")
    at = "Patient.identifier" if patient else f"{subject.path}.subject.identifier"
    number, verification = _nhs_number(source, at, draft, rules)
    local = tuple(
        PersonKey(f"{draft.received.trust}|{each.system}", each.value)
        for each in identifiers(source)
        if each.system not in {NHS_NUMBER, HUB_TRANSFER}
    )
    ref = PersonRef(number, verification, local, (patient or {}).get("birthDate"))
    if not ref.keys and number is None:
        raise _RefusedError(Why.PATIENT_UNIDENTIFIED, at)
    if not ref.keys:
        raise _RefusedError(
            Why.PATIENT_UNIDENTIFIED,
            at,
            "The only identifier is an NHS number that is wrong or not verified; it identifies nobody.",
        )
    return ref


def _nhs_number(
    source: Mapping[str, Any], at: str, draft: _Draft, rules: Rules
) -> tuple[NhsNumber | None, str | None]:
    found = source.get("identifier", ())
    for each in (found,) if isinstance(found, dict) else found:
        if not isinstance(each, dict) or each.get("system") != NHS_NUMBER or not each.get("value"):
            continue
        number = parse_nhs_number(each["value"])
        verification = _verification(each)
        if number.repeated:
            raise _RefusedError(Why.NHS_NUMBER_REPEATED_DIGITS, at)
        if not number.valid:
            if rules.nhs_number_check == "enforce":
                raise _RefusedError(Why.NHS_NUMBER_INVALID, at)
            draft.flags.append(Flag(FlagCode.NHS_NUMBER_INVALID, at))
        elif verification not in {None, "01"}:
            draft.flags.append(Flag(FlagCode.NHS_NUMBER_UNVERIFIED, at))
        return number, verification
    return None, None


# The retired slugs still dominate what is sent (UK Core, NHSNumberVerificationStatus).
_VERIFIED = {"01", "number-present-and-verified"}


def _verification(identifier: Mapping[str, Any]) -> str | None:
    for extension in identifier.get("extension", ()):
        url = str(extension.get("url", "")).lower().replace("-", "")
        if VERIFICATION_EXTENSIONS in url:
            code = code_of(extension.get("valueCodeableConcept"))
            return "01" if code in _VERIFIED else code
    return None


def _receiver_code(draft: _Draft, kind: Kind, subject: Entry) -> str | None:
    if kind is Kind.ENCOUNTER:
        return None
    for destination in (draft.header or {}).get("destination", ()):
        found = _organisation_codes(draft, destination.get("receiver"))
        if found:
            return found[0]
    found = _endpoint_codes(draft.header, "destination")
    if found:
        return found[0]
    if kind is Kind.ANSWER:
        return None
    for performer in subject.resource.get("performer", ()):
        found = _organisation_codes(draft, performer, inside=subject.resource)
        if found:
            return found[0]
    return None


def _must_have_receiver(code: str | None, receiver: OdsCode | None, sender: OdsCode) -> None:
    at = "MessageHeader.destination.receiver"
    if code is None:
        raise _RefusedError(Why.RECEIVER_MISSING, at)
    if receiver is None:
        raise _RefusedError(Why.RECEIVER_UNKNOWN, at)
    if receiver == sender:
        raise _RefusedError(Why.RECEIVER_IS_SENDER, at)


def _encounter(draft: _Draft, entry: Entry, kind: Kind) -> EncounterRef:
    resource = entry.resource
    own = next(identifiers(resource), None)
    if own is None and kind is Kind.ENCOUNTER:
        raise _RefusedError(Why.ENCOUNTER_UNIDENTIFIED, f"{entry.path}.identifier")
    destination = _destination(draft, resource)
    return EncounterRef(
        key=f"{draft.received.trust}|{own.system}|{own.value}" if own else None,
        status=resource["status"],
        encounter_class=(resource.get("class") or {}).get("code"),
        destination=draft.directory.trust_of(destination) if destination else None,
        destination_code=destination,
    )


def _destination(draft: _Draft, encounter: Tree) -> str | None:
    reference = (encounter.get("hospitalization") or {}).get("destination")
    found = _organisation_codes(draft, reference, inside=encounter)
    return found[0] if found else None


def _encounter_event_type(draft: _Draft, entry: Entry) -> str:
    """What happened in a stay: by the ADT event where the header names one, else by what the Encounter says."""
    by_trigger = {
        "a01": "encounter.admitted",
        "a02": "encounter.transferred",
        "a03": "encounter.discharged",
        "a04": "encounter.registered",
        "a05": "encounter.preadmitted",
        "a11": "encounter.cancelled",
    }.get(_event_code(draft.header))
    if by_trigger:
        return by_trigger
    status = entry.resource["status"]
    if status == "in-progress":
        return (
            "encounter.transferred" if len(entry.resource.get("location", ())) > 1 else "encounter.admitted"
        )
    return {
        "finished": "encounter.discharged",
        "arrived": "encounter.registered",
        "triaged": "encounter.registered",
        "planned": "encounter.preadmitted",
        "cancelled": "encounter.cancelled",
        "entered-in-error": "encounter.cancelled",
    }.get(status, "encounter.updated")


def _occurred_at(
    draft: _Draft, kind: Kind, subject: Entry, encounter: Entry | None, event_type: str
) -> datetime | None:
    """When it happened: the event's own time, then the message's, then the record's."""
    own: list[Any] = []
    if kind is Kind.ENCOUNTER and encounter is not None:
        period = encounter.resource.get("period") or {}
        moved = [(each.get("period") or {}).get("start") for each in encounter.resource.get("location", ())]
        own = {
            "encounter.discharged": [period.get("end")],
            "encounter.admitted": [period.get("start")],
            "encounter.registered": [period.get("start")],
            "encounter.transferred": moved[-1:],
        }.get(event_type, [])
    elif kind is Kind.ANSWER:
        own = [subject.resource.get("lastModified")]
    for candidate in (
        *own,
        draft.tree.get("timestamp"),
        (subject.resource.get("meta") or {}).get("lastUpdated"),
        subject.resource.get("authoredOn"),
    ):
        found = instant(candidate)
        if found is not None:
            return found
    return None


def _plausible(draft: _Draft, occurred_at: datetime | None, rules: Rules) -> datetime:
    now = draft.received.received_at
    if occurred_at is None:
        draft.flags.append(Flag(FlagCode.EVENT_TIME_ASSUMED))
        return now
    ahead = occurred_at - now
    if ahead > rules.clock_ahead_max or -ahead > rules.clock_behind_max:
        direction, days = ("ahead of", ahead.days) if ahead > timedelta(0) else ("behind", (-ahead).days)
        raise _RefusedError(
            Why.CLOCK_IMPLAUSIBLE, "Bundle.timestamp", f"{days} days {direction} the hub's clock."
        )
    if ahead > rules.clock_ahead:
        draft.flags.append(Flag(FlagCode.CLOCK_SKEW, detail=f"{int(ahead.total_seconds())} s ahead"))
        return now
    return occurred_at


def _sequence(subject: Entry) -> int | None:
    version = (subject.resource.get("meta") or {}).get("versionId", "")
    return int(version) if version.isascii() and version.isdigit() and len(version) < 18 else None


def _refs(draft: _Draft, kind: Kind, subject: Entry) -> TransferRefs:
    """All that can name the transfer. The hub's own id may stand on the Task, the ServiceRequest or their references."""
    holders: list[Mapping[str, Any]] = [
        subject.resource,
        *(e.resource for e in draft.resources.of_type("ServiceRequest")),
    ]
    if kind is Kind.ANSWER:
        holders += [
            reference
            for reference in (subject.resource.get("focus"), *subject.resource.get("basedOn", ()))
            if reference
        ]
    if kind is Kind.ENCOUNTER:
        holders = list(subject.resource.get("basedOn", ()))
    found = [each for holder in holders for each in identifiers(holder)]
    return TransferRefs(
        hub_id=next((each.value for each in found if each.system == HUB_TRANSFER), None),
        requests=tuple(dict.fromkeys(e for e in found if e.system != HUB_TRANSFER))
        if subject.resource["resourceType"] != "Task"
        else _request_identifiers(draft, subject),
        correlation_id=draft.received.header(headers.CORRELATION_ID) or None,
    )


def _request_identifiers(draft: _Draft, task: Entry) -> tuple[Identifier, ...]:
    """The request's identifiers in an answer: a Task's own number names the Task, not the request."""
    references = [
        reference
        for reference in (task.resource.get("focus"), *task.resource.get("basedOn", ()))
        if reference
    ]
    targets = [draft.resources.resolve(reference, inside=task.resource) for reference in references]
    holders = [
        *references,
        *(t for t in targets if t),
        *(e.resource for e in draft.resources.of_type("ServiceRequest")),
    ]
    return tuple(
        dict.fromkeys(e for holder in holders for e in identifiers(holder) if e.system != HUB_TRANSFER)
    )


def _status(kind: Kind, subject: Entry, encounter: EncounterRef | None) -> str | None:
    if kind is Kind.ANSWER and subject.resource["resourceType"] != "Task":
        return f"encounter:{encounter.status}" if encounter else None
    return str(subject.resource.get("status")) if "status" in subject.resource else None


def _reason(kind: Kind, subject: Entry, encounter: Entry | None) -> tuple[Identifier, ...]:
    if kind is Kind.ANSWER and subject.resource["resourceType"] != "Task" and encounter is not None:
        return tuple(code for concept in encounter.resource.get("reasonCode", ()) for code in codes(concept))
    return codes(subject.resource.get("statusReason"))
