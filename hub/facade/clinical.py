"""The request and the patient of a transfer, as a party may read them: from what was said last, by the rules of the inbox."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from hub.domain.ids import OdsCode
from hub.domain.transfer import EVENT_TYPE, HUB, REQUEST_STATUS, Transfer
from hub.facade.access import Sees
from hub.fhir.detached import detached
from hub.fhir.outgoing import instant, organisation
from hub.fhir.systems import HUB_EVENT, HUB_EVENT_TYPE, NHS_NUMBER
from hub.fhir.tree import Tree
from hub.journey.disclose import resources_for
from hub.store.search import Said


def service_request(
    transfer: Transfer, reader: OdsCode, said: Iterable[Said], *, sensitive: bool, level: Sees = Sees.CLINICAL
) -> Tree | None:
    """The request as its sender wrote it last, with the status that the transfer has now. None if nobody wrote one."""
    told = _told("ServiceRequest", transfer, reader, said, {transfer.sender}, sensitive=sensitive)
    if not told:
        return None
    _, resource, entries = told[-1]
    request = detached(resource, entries, {"Patient": f"Patient/{transfer.person_id}"})
    return {
        **_lessened(request, level, _REQUEST_MINIMUM),
        "id": transfer.id,
        "meta": _meta(transfer),
        "status": REQUEST_STATUS[transfer.state],
    }


def patient(
    transfer: Transfer,
    reader: OdsCode,
    said: Iterable[Said],
    nhs_number: str | None,
    *,
    sensitive: bool,
    level: Sees = Sees.CLINICAL,
) -> Tree:
    """The patient as the reader's own record has them, else as the other hospital told of them; else by number alone."""
    then = patient_then(transfer, reader, said, sensitive=sensitive, level=level)
    if then:
        return then[-1]
    known = [{"system": NHS_NUMBER, "value": nhs_number}] if nhs_number else []
    return {
        "resourceType": "Patient",
        "id": transfer.person_id,
        "meta": {"versionId": "1", "lastUpdated": instant(transfer.requested_at)},
        **({"identifier": known} if known else {}),
    }


def patient_then(
    transfer: Transfer, reader: OdsCode, said: Iterable[Said], *, sensitive: bool, level: Sees
) -> list[Tree]:
    """The patient as each message told of them, oldest first: the reader's own messages, else the other hospital's."""
    every = list(said)
    for author in (reader, transfer.other(reader)):
        told = _told("Patient", transfer, reader, every, {author}, sensitive=sensitive)
        if told:
            shown = [_lessened(detached(r, entries, {}), level, _PATIENT_MINIMUM) for _, r, entries in told]
            return _versions(transfer.person_id, [each for each, _, _ in told], shown)
    return []


def encounter_then(
    transfer: Transfer, end: str, reader: OdsCode, said: Iterable[Said], *, sensitive: bool, level: Sees
) -> list[Tree]:
    """The stay at one end of a transfer (``sender`` or ``receiver``), as each message of that hospital told it, oldest first."""
    author = transfer.sender if end == "sender" else transfer.receiver
    told = _told("Encounter", transfer, reader, said, {author}, sensitive=sensitive)
    addresses = {"Patient": f"Patient/{transfer.person_id}"}
    shown = [_lessened(detached(r, entries, addresses), level, _ENCOUNTER_MINIMUM) for _, r, entries in told]
    return _versions(f"{transfer.id}-{end}", [each for each, _, _ in told], shown)


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
    kind: str,
    transfer: Transfer,
    reader: OdsCode,
    said: Iterable[Said],
    authors: set[OdsCode],
    *,
    sensitive: bool,
) -> list[tuple[datetime, Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
    """Each resource of a kind that one of the authors told of this transfer, as the reader may see it, and what came with it;
    oldest first, with when it came.
    """
    found = []
    for each in said:
        if each.transfer_id != transfer.id or each.trust not in authors:
            continue
        # A hospital's own words come back to it as they were.
        entries: Sequence[Mapping[str, Any]] = (
            each.resources
            if each.trust == reader
            else resources_for(
                each.resources, transfer.part_of(each.trust), transfer.part_of(reader), sensitive=sensitive
            )
        )
        of_kind = [e["resource"] for e in entries if e["resource"]["resourceType"] == kind]
        if of_kind:
            found.append((each.received_at, of_kind[0], entries))
    return found[::-1]


def _meta(transfer: Transfer) -> Tree:
    """The version of the transfer that it was read with."""
    return {
        "versionId": str(transfer.version),
        "lastUpdated": instant(transfer.changed_at or transfer.requested_at),
    }
