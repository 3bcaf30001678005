"""The request and the patient of a transfer, as a party may read them: from what was said last, by the rules of the inbox."""

from collections.abc import Iterable, Mapping, Sequence
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
    found = _last("ServiceRequest", transfer, reader, said, {transfer.sender}, sensitive=sensitive)
    if found is None:
        return None
    resource, entries = found
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
    told = [each for each in said if each.transfer_id == transfer.id]
    for author in (reader, transfer.other(reader)):
        found = _last("Patient", transfer, reader, told, {author}, sensitive=sensitive)
        if found is not None:
            resource, entries = found
            shown = _lessened(detached(resource, entries, {}), level, _PATIENT_MINIMUM)
            return {**shown, "id": transfer.person_id, "meta": _meta(transfer)}
    known = [{"system": NHS_NUMBER, "value": nhs_number}] if nhs_number else []
    return {
        "resourceType": "Patient",
        "id": transfer.person_id,
        "meta": _meta(transfer),
        **({"identifier": known} if known else {}),
    }


def encounter(
    transfer: Transfer,
    end: str,
    reader: OdsCode,
    said: Iterable[Said],
    *,
    sensitive: bool,
    level: Sees = Sees.CLINICAL,
) -> Tree | None:
    """The stay at one end of a transfer (``sender`` or ``receiver``), as that hospital told it last. None if it told none."""
    author = transfer.sender if end == "sender" else transfer.receiver
    told = [each for each in said if each.trust == author]
    found = _last("Encounter", transfer, reader, told, {author}, sensitive=sensitive)
    if found is None:
        return None
    resource, entries = found
    shown = detached(resource, entries, {"Patient": f"Patient/{transfer.person_id}"})
    return {
        **_lessened(shown, level, _ENCOUNTER_MINIMUM),
        "id": f"{transfer.id}-{end}",
        "meta": _meta(transfer),
    }


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


def _last(
    kind: str,
    transfer: Transfer,
    reader: OdsCode,
    said: Iterable[Said],
    authors: set[OdsCode],
    *,
    sensitive: bool,
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]] | None:
    """The last resource of a kind that one of the authors told, as the reader may see it, and what came with it."""
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
        for entry in entries:
            if entry["resource"]["resourceType"] == kind:
                return entry["resource"], entries
    return None


def _meta(transfer: Transfer) -> Tree:
    """The version of the transfer that it was read with."""
    return {
        "versionId": str(transfer.version),
        "lastUpdated": instant(transfer.changed_at or transfer.requested_at),
    }
