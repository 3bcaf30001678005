"""The request, the patient and the stays of a transfer, as a party may read them: from what was said, by the rules of the inbox."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hub.domain.ids import OdsCode, PersonKey
from hub.domain.transfer import EVENT_TYPE, HUB, REQUEST_STATUS, Party, Transfer
from hub.facade.access import Sees
from hub.fhir.detached import detached
from hub.fhir.outgoing import instant, organisation
from hub.fhir.systems import HUB_EVENT, HUB_EVENT_TYPE, NHS_NUMBER
from hub.fhir.tree import Tree, identifiers
from hub.journey.disclose import is_shown, kept_back, resources_for, without, without_in
from hub.store.search import Said


@dataclass(frozen=True, slots=True)
class View:
    """One transfer as one reader may see it. ``said`` is what its parties told of it, the last first; ``sensitive`` whether the
    patient's whereabouts are kept back; ``level`` how much the reader may see, at least `Sees.MINIMUM`. Numbers that are ``not_theirs`` are
    not repeated, whoever told them: somebody would be treated by another patient's record.
    """

    transfer: Transfer
    reader: OdsCode
    level: Sees
    said: Sequence[Said]
    sensitive: bool
    not_theirs: Collection[PersonKey] = ()

    @property
    def aged_out(self) -> bool:
        """Whether something that was said of it is kept no longer."""
        return any(each.aged_out for each in self.said)


def service_request(view: View) -> Tree | None:
    """The request as its sender wrote it last, with the status that the transfer has now. None if nobody wrote one."""
    transfer = view.transfer
    told = _told("ServiceRequest", view, transfer.sender)
    if not told:
        return None
    _, resource, entries = told[-1]
    request = _about_the_patient(resource, entries, view, transfer.sender)
    return {
        **_lessened(request, view.level, _REQUEST_MINIMUM),
        "id": transfer.id,
        "meta": {
            "versionId": str(transfer.version),
            "lastUpdated": instant(transfer.changed_at or transfer.requested_at),
        },
        "status": REQUEST_STATUS[transfer.state],
    }


def patient_then(view: View, nhs_number: str | None) -> list[Tree]:
    """The patient as each message told of them, oldest first: the reader's own messages, else the other hospital's; if none did,
    by number alone. Empty if what they told has aged out: a number alone would look like all there ever was.
    """
    transfer = view.transfer
    for author in (view.reader, transfer.other(view.reader)):
        told = _told("Patient", view, author)
        if told:
            shown = [
                _lessened(detached(r, entries, {}), view.level, _PATIENT_MINIMUM) for _, r, entries in told
            ]
            if view.not_theirs:
                shown = [without(each, author, view.not_theirs) for each in shown]
            return _versions(transfer.person_id, [at for at, _, _ in told], shown)
    if view.aged_out:
        return []
    known = {"identifier": [{"system": NHS_NUMBER, "value": nhs_number}]} if nhs_number else {}
    return _versions(transfer.person_id, [transfer.requested_at], [{"resourceType": "Patient", **known}])


def encounter_then(view: View, end: str) -> list[Tree]:
    """The stay at one end of a transfer (``sender`` or ``receiver``), as each message of that hospital told it, oldest first."""
    transfer = view.transfer
    author = transfer.sender if end == "sender" else transfer.receiver
    told = _told("Encounter", view, author)
    shown = [
        _lessened(_about_the_patient(r, entries, view, author), view.level, _ENCOUNTER_MINIMUM)
        for _, r, entries in told
    ]
    return _versions(f"{transfer.id}-{end}", [at for at, _, _ in told], shown)


def _about_the_patient(
    resource: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], view: View, author: OdsCode
) -> Tree:
    """A request or a stay by itself, which says whom it is about also where the number that said so is not theirs."""
    address = f"Patient/{view.transfer.person_id}"
    alone = detached(resource, entries, {"Patient": address})
    if not view.not_theirs:
        return alone
    kept = without_in(alone, author, view.not_theirs)
    if kept.get("subject") == alone.get("subject"):
        return kept
    return {**kept, "subject": {"reference": address, **kept["subject"]}}


def _versions(name: str, times: Sequence[datetime], shown: Sequence[Tree]) -> list[Tree]:
    """Each telling is a version, numbered from 1."""
    return [
        {**each, "id": name, "meta": {"versionId": str(number), "lastUpdated": instant(at)}}
        for number, (at, each) in enumerate(zip(times, shown, strict=True), 1)
    ]


def provenance(transfer: Transfer, version: int) -> Tree:
    """Who made a version of a transfer, when, by which message."""
    fact = transfer.facts[version - 1]
    return {
        "resourceType": "Provenance",
        "id": f"{transfer.id}-{version}",
        "meta": {"lastUpdated": instant(fact.received_at)},
        "target": [{"reference": f"Task/{transfer.id}/_history/{version}"}],
        "occurredDateTime": instant(fact.occurred_at),
        "recorded": instant(fact.received_at),
        "activity": {"coding": [{"system": HUB_EVENT_TYPE, "code": EVENT_TYPE[fact.step]}]},
        "agent": [{"who": _agent(fact.by)}],
        "entity": [{"role": "source", "what": {"identifier": {"system": HUB_EVENT, "value": fact.event_id}}}],
    }


def _agent(by: OdsCode) -> Tree:
    return {"type": "Device", "display": "Transfer hub"} if by == HUB else organisation(by)


_ENCOUNTER_MINIMUM = frozenset(
    {"resourceType", "identifier", "status", "class", "subject", "period", "location", "serviceProvider"}
)
_REQUEST_MINIMUM = frozenset(
    {"resourceType", "identifier", "status", "intent", "category", "priority", "performerType", "orderDetail", "subject",
     "occurrenceDateTime", "occurrencePeriod", "authoredOn", "requester", "performer", "locationCode", "locationReference"}
)  # fmt: skip
_PATIENT_MINIMUM = frozenset({"resourceType", "identifier", "name", "birthDate", "gender"})
"""What a bed is planned by (DOMAIN, 5.4, bed manager): who, how urgent, which specialty, what care; no reason, no note, no history."""


def _lessened(resource: Tree, level: Sees, minimum: frozenset[str]) -> Tree:
    if level >= Sees.CLINICAL:
        return resource
    return {name: value for name, value in resource.items() if name.removeprefix("_") in minimum}


def _told(
    kind: str, view: View, author: OdsCode
) -> list[tuple[datetime, Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
    """Each resource of a kind that ``author`` told of the transfer, as the reader may see it, and what came with it;
    oldest first, with when it came.
    """
    transfer, found = view.transfer, []
    others = {each.event_id for each in transfer.facts if not is_shown(each)}
    for each in view.said:
        if each.trust != author or each.event_id in others:
            continue
        entries = _entries(each, view)
        of_kind = [e["resource"] for e in entries if e["resource"]["resourceType"] == kind]
        if kind == "Patient":
            of_kind = _whose(of_kind, entries)
        if of_kind:
            found.append((each.received_at, of_kind[0], entries))
    return found[::-1]


def _whose(patients: list[Tree], entries: Sequence[Mapping[str, Any]]) -> list[Tree]:
    """Those of a message's Patients to whom what it is about refers: a mother may be beside her child, or be there alone."""
    about = (e["resource"] for e in entries if e["resource"]["resourceType"] in _ABOUT_A_PATIENT)
    said = (
        next((each.get("for" if each["resourceType"] == "Task" else "subject") for each in about), None) or {}
    )
    meant = {id(e["resource"]) for e in entries if e.get("fullUrl") == said.get("reference", "")}
    led_to = [each for each in patients if id(each) in meant]
    named = set(identifiers(said))
    return led_to or [each for each in patients if not named or not named.isdisjoint(identifiers(each))]


_ABOUT_A_PATIENT = frozenset({"Task", "ServiceRequest", "Encounter"})


def _entries(said: Said, view: View) -> Sequence[Mapping[str, Any]]:
    """What the reader may see of one message. A hospital's own words come back to it as they were."""
    author, reader = view.transfer.part_of(said.trust), view.transfer.part_of(view.reader)
    if said.trust == view.reader:
        return said.resources
    if reader is Party.THIRD:
        # Only somebody who has broken the glass comes so far.
        return kept_back(said.resources) if view.sensitive else said.resources
    return resources_for(said.resources, author, reader, sensitive=view.sensitive)
