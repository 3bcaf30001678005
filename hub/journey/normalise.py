"""Step 2, normalise: what this trust's message says, in the hub's words.

Input: a tree that `read` found sound. Output: `Canonical`, or a `Rejection` naming what is missing and where.
Everybody and everything is found by identifiers (ODS code, NHS number, numbers namespaced by trust), never by a
server's resource id.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from hub.codes.book import CodeBook
from hub.domain.ids import Identifier, OdsCode, parse_ods
from hub.domain.message import (
    Canonical,
    Change,
    EncounterRef,
    Flag,
    FlagCode,
    Kind,
    Received,
    TransferRefs,
    Unmapped,
)
from hub.domain.rejection import Rejection, Why
from hub.domain.trust import Directory
from hub.fhir import headers
from hub.fhir.elements import resource_types
from hub.fhir.systems import HUB_STATE, HUB_TRANSFER, HUB_TRANSFER_TYPE
from hub.fhir.tree import Entry, Tree, code_of, codes, identifiers
from hub.journey.bundle import as_collection, must_be_one, spread, url_of
from hub.journey.canonicalise import canonicalise, instant
from hub.journey.codes import to_national
from hub.journey.draft import Draft, RefusedError
from hub.journey.encounter import (
    encounter_entry,
    encounter_ref,
    event_type,
    own_times,
    provider,
    stated_at,
)
from hub.journey.patient import Described, described_by, person_ref
from hub.journey.read import Read

_PATIENT_TRIGGERS: Mapping[str, str] = {
    "a28": "patient.created",
    "a31": "patient.updated",
    "a37": "patient.unmerged",
    "a40": "patient.merged",
    "a47": "patient.updated",
}


_NAMED_MAX = 6
"""So many types of resource are named when a message is refused."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the hub insists on."""

    nhs_number_check: Literal["enforce", "flag"] = "flag"
    clock_ahead: timedelta = timedelta(hours=1)
    clock_ahead_max: timedelta = timedelta(days=1)
    clock_behind_max: timedelta = timedelta(days=366)
    stay_max: timedelta = timedelta(days=50 * 365)
    """Longer ago lie the dates that systems write where they have none: 1970, 1900, 1753, the year 1."""


def normalise(
    received: Received, found: Read, directory: Directory, rules: Rules, book: CodeBook | None = None
) -> Canonical | Rejection:
    """Say in the hub's words what this trust's message said in its own. Changes ``found.tree`` in place.

    ``book`` is the sender's code book; without one, codes stay as they were sent.
    """
    tree = found.tree
    coded, doubts = to_national(tree, book, directory[received.trust].nation) if book else ((), ())
    changes = (*found.changes, *coded, *canonicalise(tree, lambda index: url_of(received, index)))
    draft = Draft(received, tree, directory, [*found.flags, *doubts])
    try:
        return _meaning(draft, rules, changes, found.unmapped)
    except RefusedError as refused:
        return replace(refused.rejection, changes=changes, unmapped=found.unmapped)


def _meaning(
    draft: Draft, rules: Rules, changes: tuple[Change, ...], unmapped: tuple[Unmapped, ...]
) -> Canonical:
    received, tree, directory = draft.received, draft.tree, draft.directory
    wanted = received.proved(headers.RESOURCE)
    if wanted and tree["resourceType"] != wanted:
        raise RefusedError(Why.ADDRESS_DIFFERS, "resourceType", f"This address takes a {wanted}.")
    spread(draft)
    sender_code = _sender(draft)
    kind, subject = _kind(draft)
    _must_be_what_is_addressed(draft, subject)
    if kind is not Kind.ANSWER or subject.resource["resourceType"] == "Task":
        must_be_one(draft, subject)
    entry = encounter_entry(draft, kind, subject)
    described = described_by(draft, subject)
    person = person_ref(draft, kind, subject, described, rules.nhs_number_check)
    receiver_code = _receiver_code(draft, kind, subject)
    receiver = directory.trust_of(receiver_code) if receiver_code else None
    if kind is Kind.ANSWER and len((draft.header or {}).get("destination", ())) > 1:
        receiver = None  # one of them may be told in copy
    if kind is Kind.ENCOUNTER and entry is not None:
        _own_stay(draft, entry)
    if kind is Kind.REQUEST:
        _must_have_receiver(receiver_code, receiver, received.trust)
        _must_agree_on(draft, subject, receiver)
    encounter = encounter_ref(draft, entry, kind) if entry else None
    event = _event(draft, kind, subject, entry)
    if kind is Kind.ENCOUNTER and entry is not None:
        _must_end_after_it_began(entry)
    goes_on = kind is Kind.ENCOUNTER and event != "encounter.discharged"
    occurred_at, said_at = _occurred_at(draft, kind, subject, entry, event)
    if not (goes_on and occurred_at and _is_long_stay(draft, occurred_at, subject, rules)):
        occurred_at = _plausible(draft, occurred_at, said_at, rules)
    if not received.header(headers.REQUEST_ID):
        draft.flags.append(Flag(FlagCode.MESSAGE_ID_MISSING, headers.REQUEST_ID))
    if not received.key:
        draft.flags.append(Flag(FlagCode.KEY_EMPTY))
    patient = _patient_entry(draft, described)
    refs = _refs(draft, kind, subject)
    return Canonical(
        received=received,
        correlation_id=refs.correlation_id,
        bundle_id=tree.get("id") if tree["resourceType"] == "Bundle" else None,
        kind=kind,
        event_type=event,
        occurred_at=occurred_at,
        sequence=_sequence(subject),
        person=person,
        refs=refs,
        receiver=receiver,
        receiver_code=receiver_code,
        sender_code=sender_code,
        status=_status(kind, subject, encounter),
        reason=_reason(kind, subject, entry),
        encounter=encounter,
        business_status=_business_status(subject),
        expected_version=_expected_version(draft, kind),
        about=received.proved(headers.ABOUT) or None,
        until=instant(((subject.resource.get("restriction") or {}).get("period") or {}).get("end")),
        **_wishes(draft, subject, kind),
        stated_at=stated_at(subject.resource),
        began_at=_began_at(kind, subject),
        resources=tuple(
            [
                {"fullUrl": e.full_url, "resource": e.resource}
                for e in _own_first(draft, subject, patient, entry)
            ]
        ),
        patient_url=patient.full_url if patient else None,
        message=tree,
        changes=(*changes, *as_collection(tree)),
        unmapped=unmapped,
        flags=tuple(draft.flags),
    )


def _sender(draft: Draft) -> str | None:
    """The organisation the message says it comes from, which must be the topic's owner."""
    claims = _header_codes(draft, "sender") or _endpoint_codes(draft.header, "source")
    where = "MessageHeader.sender"
    if not claims and draft.header is None:
        encounter = draft.first("Encounter")
        owner = encounter.resource.get("serviceProvider") if encounter else None
        claims = draft.organisation_codes(owner, inside=encounter.resource if encounter else None)
        where = "Encounter.serviceProvider"
        request = draft.first("ServiceRequest")
        if not claims and request is not None:
            claims = draft.organisation_codes(request.resource.get("requester"), inside=request.resource)
            where = "ServiceRequest.requester"
    if not claims:
        if draft.header is not None:
            raise RefusedError(Why.SENDER_UNKNOWN, where)
        draft.flags.append(Flag(FlagCode.SENDER_NOT_NAMED, where))
        return None
    claimed, trust = draft.directory.trust_of(claims[0]), draft.received.trust
    if draft.header is None and claimed in draft.directory[trust].shares_record_with:
        raise RefusedError(Why.SHARED_RECORD_ECHO, where)
    if claimed != trust:
        raise RefusedError(
            Why.SENDER_NOT_TOPIC_OWNER,
            where,
            f"The message says that it comes from {claims[0]}.",
            claimed=claims[0],
        )
    return claims[0]


def _header_codes(draft: Draft, element: str) -> list[str]:
    return draft.organisation_codes((draft.header or {}).get(element), inside=draft.header)


def _endpoint_codes(header: Mapping[str, Any] | None, element: str) -> list[str]:
    """ODS codes written as ``system|code`` in an endpoint URL, the way BaRS addresses services."""
    parts = (header or {}).get(element, ())
    found: list[str] = []
    for part in (parts,) if isinstance(parts, dict) else parts:
        system, bar, code = str(part.get("endpoint", "")).rpartition("|")
        if bar and "ods" in system.lower() and (parsed := parse_ods(code)):
            found.append(parsed)
    return found


def _kind(draft: Draft) -> tuple[Kind, Entry]:
    """What the message is, and the resource it is about."""
    request, task, encounter = draft.told("ServiceRequest"), draft.told("Task"), draft.told("Encounter")
    event = draft.event_code
    if event in _PATIENT_TRIGGERS and (patient := draft.first("Patient")) is not None:
        return Kind.PATIENT, _patient_subject(draft, patient)
    if event == "servicerequest-request":
        if request is None:
            raise RefusedError(
                Why.MESSAGE_NOT_SUPPORTED,
                "MessageHeader.focus",
                "The focus of a transfer request is a ServiceRequest.",
            )
        return _request_kind(draft, request), request
    if task is not None:
        return Kind.ANSWER, task
    if event == "servicerequest-response":
        if request is None or encounter is None:
            raise RefusedError(
                Why.MESSAGE_NOT_SUPPORTED,
                "MessageHeader.focus",
                "An answer holds a Task, or a ServiceRequest and the receiver's own Encounter.",
            )
        return Kind.ANSWER, request
    if encounter is not None and request is None:
        return Kind.ENCOUNTER, encounter
    if request is not None and draft.header is None:
        return _request_kind(draft, request), request
    if request is None and (patient := draft.told("Patient")) is not None:
        return Kind.PATIENT, _patient_subject(draft, patient)
    at = "MessageHeader.event" if draft.header else draft.tree["resourceType"]
    raise RefusedError(Why.MESSAGE_NOT_SUPPORTED, at, _what_it_holds(draft))


def _what_it_holds(draft: Draft) -> str:
    """Of what types: their names are FHIR's and say nothing of the patient."""
    if draft.header is not None and draft.first("ServiceRequest") is not None:
        return "A ServiceRequest comes with the event servicerequest-request or servicerequest-response."
    types = sorted({each.resource["resourceType"] for each in draft.resources.entries})
    if not types:
        return "It holds no resource."
    more = " and more" if len(types) > _NAMED_MAX else ""
    return f"It holds {', '.join(types[:_NAMED_MAX])}{more}."


def _must_be_what_is_addressed(draft: Draft, subject: Entry) -> None:
    """A Task that is put at an address has that address's id, if any. Raises RefusedError."""
    about, resource = draft.received.proved(headers.ABOUT), subject.resource
    if about and resource["resourceType"] == "Task" and resource.get("id", about) != about:
        raise RefusedError(
            Why.ADDRESS_DIFFERS, f"{subject.path}.id", "The body is another Task than the address names."
        )


def _patient_subject(draft: Draft, first: Entry) -> Entry:
    """The Patient that a patient event is about: the one that says which record it belongs to now."""
    patients = draft.resources.of_type("Patient")
    return next((each for each in patients if each.resource.get("link")), first)


def _patient_entry(draft: Draft, described: Described) -> Entry | None:
    """The Patient of the message who is the person it is about: of a mother and her child, that one."""
    source, _, _ = described
    return next((each for each in draft.resources.of_type("Patient") if each.resource is source), None)


def _own_first(draft: Draft, *own: Entry | None) -> Sequence[Entry]:
    """The message's entries; what it is about comes before what came with it, as most readers take the first of a type."""
    first = draft.first
    others = [
        each
        for each in own
        if each is not None
        and (found := first(each.resource["resourceType"])) is not None
        and found.resource is not each.resource
    ]
    if not others:
        return draft.resources.entries
    known = {id(each.resource) for each in own if each is not None}
    return sorted(draft.resources.entries, key=lambda entry: id(entry.resource) not in known)


def _event(draft: Draft, kind: Kind, subject: Entry, encounter: Entry | None) -> str:
    if kind is Kind.ENCOUNTER and encounter is not None:
        return event_type(draft, encounter)
    if kind is not Kind.PATIENT:
        return kind.value
    linked = any(each.get("type") in {"replaced-by", "replaces"} for each in subject.resource.get("link", ()))
    return "patient.merged" if linked else _PATIENT_TRIGGERS.get(draft.event_code, "patient.updated")


def _own_stay(draft: Draft, entry: Entry) -> None:
    """A record system that several trusts share tells all of them of every stay: only the owner's word counts."""
    owner = provider(draft, entry)
    trust = draft.received.trust
    if owner is None or owner == trust:
        return
    if owner in draft.directory[trust].shares_record_with:
        raise RefusedError(Why.SHARED_RECORD_ECHO, f"{entry.path}.serviceProvider")
    raise RefusedError(
        Why.SENDER_NOT_TOPIC_OWNER,
        f"{entry.path}.serviceProvider",
        f"The message says that the stay is {owner}'s.",
        claimed=owner,
    )


def _request_kind(draft: Draft, request: Entry) -> Kind:
    """New, update or cancel: by status first, because published examples disagree with themselves about the
    reason (BaRS 1.5: update+revoked and delete+entered-in-error are both cancellations).
    """
    status = request.resource.get("status")
    reason = code_of((draft.header or {}).get("reason"))
    if status in {"revoked", "entered-in-error"}:
        if reason == "new":
            draft.flags.append(Flag(FlagCode.REASON_INCONSISTENT, "MessageHeader.reason"))
        return Kind.CANCEL
    if status == "draft" and reason in {None, "new", "update"}:
        return Kind.REQUEST
    if status not in {"active", "on-hold"}:
        raise RefusedError(Why.STATUS_NOT_SUPPORTED, f"{request.path}.status")
    if reason == "delete":
        raise RefusedError(
            Why.MESSAGE_NOT_SUPPORTED,
            "MessageHeader.reason",
            "A deletion has ServiceRequest.status revoked or entered-in-error.",
        )
    return Kind.UPDATE if reason == "update" else Kind.REQUEST


def _receiver_code(draft: Draft, kind: Kind, subject: Entry) -> str | None:
    if kind in {Kind.ENCOUNTER, Kind.PATIENT}:
        return None
    for destination in (draft.header or {}).get("destination", ()):
        found = draft.organisation_codes(destination.get("receiver"), inside=draft.header)
        if found:
            return found[0]
    found = _endpoint_codes(draft.header, "destination")
    if found:
        return found[0]
    if kind is Kind.ANSWER:
        return None
    for performer in subject.resource.get("performer", ()):
        found = draft.organisation_codes(performer, inside=subject.resource)
        if found:
            return found[0]
    return None


def _must_have_receiver(code: str | None, receiver: OdsCode | None, sender: OdsCode) -> None:
    at = "MessageHeader.destination.receiver"
    if code is None:
        raise RefusedError(Why.RECEIVER_MISSING, at)
    if receiver is None:
        raise RefusedError(Why.RECEIVER_UNKNOWN, at)
    if receiver == sender:
        raise RefusedError(Why.RECEIVER_IS_SENDER, at)


def _must_agree_on(draft: Draft, request: Entry, receiver: OdsCode | None) -> None:
    """Who is asked is said twice, by the header and by the request. Where they mean two trusts, either could be the mistake."""
    performers = request.resource.get("performer", ())
    destinations = (draft.header or {}).get("destination", ())
    if len(destinations) + len(performers) < 2:
        return
    told = (
        {receiver}
        if len(destinations) == 1
        else _trusts(draft, [each.get("receiver") for each in destinations], draft.header)
    )
    asked = _trusts(draft, performers, request.resource)
    others = (told or asked) - {receiver, draft.received.trust}
    if asked - {draft.received.trust} and receiver not in asked:
        others |= asked
    if others:
        raise RefusedError(
            Why.RECEIVER_MISSING,
            f"{request.path}.performer" if asked & others else "MessageHeader.destination.receiver",
            f"The message names more than one receiving trust: {', '.join(sorted({receiver or '', *others}))}.",
        )


def _trusts(
    draft: Draft, references: Iterable[Mapping[str, Any] | None], inside: Tree | None
) -> set[OdsCode]:
    """The trusts that references mean, of those that have joined: a practice or a team says nothing of a receiver."""
    return {
        trust
        for each in references
        for code in draft.organisation_codes(each, inside=inside)
        if (trust := draft.directory.trust_of(code)) is not None
    }


def _occurred_at(
    draft: Draft, kind: Kind, subject: Entry, encounter: Entry | None, event: str
) -> tuple[datetime | None, str]:
    """When it happened, and where that is said: the event's own time, then the message's, then the record's."""
    resource = subject.resource
    own: list[tuple[Any, str]] = []
    if kind is Kind.ENCOUNTER and encounter is not None:
        own = [(each, f"{encounter.path}.{at}") for each, at in own_times(encounter.resource, event)]
    elif kind is Kind.ANSWER:
        own = [(resource.get("lastModified"), f"{subject.path}.lastModified")]
    for candidate, at in (
        *own,
        (draft.tree.get("timestamp"), "Bundle.timestamp"),
        ((resource.get("meta") or {}).get("lastUpdated"), f"{subject.path}.meta.lastUpdated"),
        (resource.get("authoredOn"), f"{subject.path}.authoredOn"),
    ):
        found = instant(candidate)
        if found is not None:
            return found, at
    return None, ""


_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def _must_end_after_it_began(stay: Entry) -> None:
    """Either time could be the mistake, and one of them is when the event happened."""
    period = stay.resource.get("period") or {}
    if "end" not in period or "start" not in period:
        return
    began, ended = period["start"], period["end"]
    if len(began) > 10 and len(ended) > 10:
        is_before = (instant(ended) or _LATEST) < (instant(began) or _EARLIEST)
    else:  # a day beside an instant can be the day before it elsewhere
        known = min(len(began), len(ended))
        is_before = max(len(began), len(ended)) <= 10 and ended[:known] < began[:known]
    if is_before:
        raise RefusedError(Why.CLOCK_IMPLAUSIBLE, f"{stay.path}.period", "The stay ends before it begins.")


def _began_at(kind: Kind, subject: Entry) -> datetime | None:
    """When the stay of an encounter event began, whichever event of it this is."""
    if kind is not Kind.ENCOUNTER:
        return None
    return instant((subject.resource.get("period") or {}).get("start"))


def _plausible(draft: Draft, occurred_at: datetime | None, at: str, rules: Rules) -> datetime:
    now = draft.received.received_at
    if occurred_at is None:
        draft.flags.append(Flag(FlagCode.EVENT_TIME_ASSUMED))
        return now
    ahead = occurred_at - now
    if ahead > rules.clock_ahead_max or -ahead > rules.clock_behind_max:
        direction, days = ("ahead of", ahead.days) if ahead > timedelta(0) else ("behind", (-ahead).days)
        raise RefusedError(Why.CLOCK_IMPLAUSIBLE, at, f"{days} days {direction} the hub's clock.")
    if ahead > rules.clock_ahead:
        draft.flags.append(Flag(FlagCode.CLOCK_SKEW, at, f"{int(ahead.total_seconds())} s ahead"))
        return now
    return occurred_at


def _is_long_stay(draft: Draft, began: datetime, subject: Entry, rules: Rules) -> bool:
    """Whether a stay that goes on may have begun so long ago: in mental health it can have lasted for years. It is believed of
    a message that was made lately by its own account (Bundle.timestamp, else the record's meta.lastUpdated): that clock is right.
    """
    now = draft.received.received_at
    made = instant(draft.tree.get("timestamp")) or stated_at(subject.resource)
    if made is None or not rules.clock_behind_max < now - began <= rules.stay_max:
        return False
    return -rules.clock_ahead_max <= now - made <= rules.clock_behind_max


def _sequence(subject: Entry) -> int | None:
    version = (subject.resource.get("meta") or {}).get("versionId", "")
    return int(version) if version.isascii() and version.isdigit() and len(version) < 18 else None


def _refs(draft: Draft, kind: Kind, subject: Entry) -> TransferRefs:
    """All that can name the transfer. The hub's own id may stand on the Task, the ServiceRequest or their references."""
    found = [each for holder in _named_by(draft, kind, subject) for each in identifiers(holder)]
    said = [each.value for each in found if each.system == HUB_TRANSFER]
    requests = [each for each in found if each.system != HUB_TRANSFER]
    about = draft.received.proved(headers.ABOUT)
    if about and set(said) - {about}:
        at = f"{subject.path}.identifier"
        raise RefusedError(Why.ADDRESS_DIFFERS, at, "The body names another transfer than the address.")
    return TransferRefs(
        hub_id=about or (said[0] if said else None),
        requests=tuple(dict.fromkeys(requests)),
        correlation_id=draft.received.header(headers.CORRELATION_ID) or None,
        numbers=_bare_numbers(draft, subject) if kind is Kind.ANSWER else (),
        addresses=_addresses(draft, subject) if kind is Kind.ANSWER else (),
        other=_other(draft, subject) if kind is Kind.ANSWER else "",
    )


def _named_by(draft: Draft, kind: Kind, subject: Entry) -> Iterable[Mapping[str, Any]]:
    """What in a message has the transfer's names. A request has its own: those that came with it are of other things, a
    laboratory's order, or the request that this one stands in for.
    """
    resource = subject.resource
    if kind is Kind.ENCOUNTER:
        part_of = resource.get("partOf")
        return (*resource.get("basedOn", ()), *_hub_ids(resource), *([part_of] if part_of else []))
    if kind is not Kind.ANSWER:
        return (resource,)
    if resource["resourceType"] == "Task":
        # A Task's own number names the Task, not the request.
        return (*_hub_ids(resource), *_answered(draft, subject))
    return (resource, *(each.resource for each in draft.resources.of_type("ServiceRequest")))


def _answered(draft: Draft, task: Entry) -> list[Mapping[str, Any]]:
    """The request that a Task is about: what it refers to; where it names nothing so, all that came with it."""
    referred = [
        each
        for reference in (task.resource.get("focus"), *task.resource.get("basedOn", ()))
        for each in _with_target(draft, reference, task)
        if not _is_no_request(reference, each)
    ]
    named = {each for holder in referred for each in identifiers(holder)}
    requests = [each.resource for each in draft.resources.of_type("ServiceRequest")]
    return [
        *referred,
        *(each for each in requests if not named or not named.isdisjoint(identifiers(each))),
    ]


_TYPE = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)[/?]")
_CAN_BE_ANSWERED = frozenset(
    {"ServiceRequest", "Encounter", "EpisodeOfCare", "Patient", "CarePlan", "Task", "Bundle"}
)


def _other(draft: Draft, answer: Entry) -> str:
    """The type of what a Task is about, where no transfer is asked for by that: a prescription, a questionnaire. A pharmacy's refusal
    of a prescription refuses nothing else.
    """
    resource = answer.resource
    focus = resource.get("focus")
    if resource["resourceType"] != "Task" or not focus or resource.get("basedOn"):
        return ""
    target = draft.resources.resolve(focus, inside=resource) or {}
    url = _TYPE.search(str(focus.get("reference", "")))
    said = target.get("resourceType") or focus.get("type") or (url[1] if url else "")
    return "" if said in _CAN_BE_ANSWERED or said not in resource_types() else str(said)


_OTHERS = re.compile(r"(?:^|/)(?:Encounter|Patient|CarePlan|Task|Appointment|EpisodeOfCare)(?:/|\?)")


def _is_no_request(reference: Mapping[str, Any] | None, each: Mapping[str, Any]) -> bool:
    """Whether a Task's reference, or what it leads to, is something else by its own account: its numbers are no request's."""
    said = each.get("resourceType") or each.get("type") or "ServiceRequest"
    return said != "ServiceRequest" or bool(_OTHERS.search(str((reference or {}).get("reference", ""))))


def _bare_numbers(draft: Draft, answer: Entry) -> tuple[str, ...]:
    """The request's numbers in an answer that do not say of which system they are."""
    said = (holder.get("identifier") or () for holder in _named_by(draft, Kind.ANSWER, answer))
    found = (each for some in said for each in ((some,) if isinstance(some, dict) else some))
    bare = (each["value"] for each in found if each.get("value") and not each.get("system"))
    return tuple(dict.fromkeys(bare))


_ADDRESS = re.compile(r"(?:^|/)ServiceRequest(?:/|\?identifier=\|?)([^/?#|&]+)")


def _addresses(draft: Draft, answer: Entry) -> tuple[str, ...]:
    """What the request is called on a server that the answer refers to, where that is not in the message."""
    resource = answer.resource
    if resource["resourceType"] != "Task":
        return ()
    found = (
        _ADDRESS.search(str(each.get("reference", "")))
        for each in (resource.get("focus"), *resource.get("basedOn", ()))
        if each and draft.resources.resolve(each, inside=resource) is None
    )
    return tuple(dict.fromkeys(each[1] for each in found if each))


def _with_target(
    draft: Draft, reference: Mapping[str, Any] | None, subject: Entry
) -> list[Mapping[str, Any]]:
    """A reference and what it leads to in the message: either may have the identifiers."""
    target = draft.resources.resolve(reference, inside=subject.resource)
    return [each for each in (reference, target) if each]


def _hub_ids(resource: Tree) -> list[Mapping[str, Any]]:
    """Where a resource names the transfer itself among its identifiers."""
    return [
        {"identifier": each} for each in resource.get("identifier", ()) if each.get("system") == HUB_TRANSFER
    ]


def _wishes(draft: Draft, subject: Entry, kind: Kind) -> dict[str, Any]:
    """What a request asks for, as far as the lifecycle and its clocks need it."""
    if kind not in {Kind.REQUEST, Kind.UPDATE}:
        return {}
    request = subject.resource
    categories = [
        code
        for concept in (*request.get("category", ()), *request.get("orderDetail", ()))
        for code in codes(concept)
    ]
    return {
        "specialty": _code(code_of(request.get("performerType"))),
        "priority": next(
            (c.value for c in categories if c.value in _TRANSPORT_PRIORITY), request.get("priority")
        ),
        "transfer_kind": next((c.value for c in categories if c.system == HUB_TRANSFER_TYPE), None),
        "replaces": _replaced(draft, subject) if "replaces" in request else TransferRefs(),
    }


def _replaced(draft: Draft, request: Entry) -> TransferRefs:
    """The request that this one stands in for."""
    found = [
        each
        for reference in request.resource["replaces"]
        for holder in _with_target(draft, reference, request)
        for each in identifiers(holder)
    ]
    return TransferRefs(
        hub_id=next((each.value for each in found if each.system == HUB_TRANSFER), None),
        requests=tuple(each for each in found if each.system != HUB_TRANSFER),
    )


_TRANSPORT_PRIORITY = frozenset({"IFT1", "IFT2", "IFT3", "IFT4"})


def _code(value: str | None) -> str | None:
    return value if value is not None and len(value) <= 20 else None


def _business_status(subject: Entry) -> str | None:
    """The hub's own word for the state, where an answer uses it."""
    found = codes(subject.resource.get("businessStatus"))
    return next((each.value for each in found if each.system == HUB_STATE), None)


_VERSION = re.compile(r'(?:W/)?("?)(0|[1-9][0-9]*)\1')


def _expected_version(draft: Draft, kind: Kind) -> int | None:
    """The version of the transfer that a decision was made on, as HTTP's If-Match has it: ``W/"3"``; ``*`` is whatever it is now.

    One that cannot be read was meant to protect the decision, so that is not taken without. What happened in a ward is no decision.
    Raises RefusedError.
    """
    stated = draft.received.header(headers.IF_MATCH)
    if stated in {"", "*"} or kind in {Kind.ENCOUNTER, Kind.PATIENT}:
        return None
    found = _VERSION.fullmatch(stated)
    if found is None:
        raise RefusedError(Why.VERSION_UNREADABLE, headers.IF_MATCH)
    return int(found[2])


def _status(kind: Kind, subject: Entry, encounter: EncounterRef | None) -> str | None:
    if kind is Kind.ANSWER and subject.resource["resourceType"] != "Task":
        return f"encounter:{encounter.status}" if encounter else None
    return str(subject.resource.get("status")) if "status" in subject.resource else None


def _reason(kind: Kind, subject: Entry, encounter: Entry | None) -> tuple[Identifier, ...]:
    if kind is Kind.ANSWER and subject.resource["resourceType"] != "Task" and encounter is not None:
        return tuple(code for concept in encounter.resource.get("reasonCode", ()) for code in codes(concept))
    return codes(subject.resource.get("statusReason"))
