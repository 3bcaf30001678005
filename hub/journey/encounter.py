"""Part of step 2: what a message says of a stay, and which event it was.

Sources: HL7 v2.4 ADT events in the UK ITK profile (HSCIC ITK v1.0.15); FHIR R4, Encounter.status; UK Core,
AdmissionMethod and DischargeMethod.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from hub.domain.ids import OdsCode
from hub.domain.message import EncounterRef, Kind
from hub.domain.rejection import Why
from hub.fhir.systems import HUB_TRANSFER
from hub.fhir.tree import Entry, Tree, code_of, identifiers
from hub.journey.canonicalise import instant
from hub.journey.draft import Draft, RefusedError

_EVENT_OF_TRIGGER: Mapping[str, str] = {
    "a01": "encounter.admitted",
    "a02": "encounter.transferred",
    "a03": "encounter.discharged",
    "a04": "encounter.registered",
    "a05": "encounter.preadmitted",
    "a08": "encounter.updated",
    "a11": "encounter.admit.cancelled",
    "a12": "encounter.transfer.cancelled",
    "a13": "encounter.discharge.cancelled",
    "a14": "encounter.preadmitted",
    "a15": "encounter.pending",
    "a16": "encounter.pending",
    "a21": "encounter.loa.start",
    "a22": "encounter.loa.end",
    "a25": "encounter.pending.cancelled",
    "a26": "encounter.pending.cancelled",
    "a27": "encounter.admit.cancelled",
    "a38": "encounter.admit.cancelled",
    "a52": "encounter.loa.cancelled",
    "a53": "encounter.loa.cancelled",
}

_EVENT_OF_STATUS: Mapping[str, str] = {
    "finished": "encounter.discharged",
    "arrived": "encounter.registered",
    "triaged": "encounter.registered",
    "planned": "encounter.preadmitted",
    "onleave": "encounter.loa.start",
    "cancelled": "encounter.cancelled",
    "entered-in-error": "encounter.cancelled",
}


def encounter_entry(draft: Draft, kind: Kind, subject: Entry) -> Entry | None:
    """The Encounter that matters: the stay that a request is made in, the receiver's own in an answer (BaRS puts it
    last, behind the sender's).
    """
    found = draft.resources.of_type("Encounter")
    if kind is not Kind.ANSWER:
        said = subject.resource.get("encounter")
        return _referred_to(draft, said, subject) if said else found[0] if found else None
    own = [entry for entry in found if provider(draft, entry) in {None, draft.received.trust}]
    named = [entry for entry in own if provider(draft, entry) == draft.received.trust]
    return (named or own)[-1] if own else None


def _referred_to(draft: Draft, reference: Mapping[str, Any], subject: Entry) -> Entry | None:
    """The stay that the request names: where nothing leads to it, the only one there is. Another stay of several is not it."""
    found = draft.resources.of_type("Encounter")
    tree = draft.resources.resolve(reference, inside=subject.resource)
    if tree is not None and tree["resourceType"] == "Encounter":
        inside = Entry(subject.full_url, tree, f"{subject.path}.contained")
        return next((each for each in found if each.resource is tree), inside)
    named = set(identifiers(reference))
    if named:
        return next((each for each in found if not named.isdisjoint(identifiers(each.resource))), None)
    return found[0] if len(found) == 1 else None


def provider(draft: Draft, entry: Entry) -> OdsCode | None:
    """The trust whose stay it is, if that is said and the trust has joined."""
    claims = draft.organisation_codes(entry.resource.get("serviceProvider"), inside=entry.resource)
    return draft.directory.trust_of(claims[0]) if claims else None


def encounter_ref(draft: Draft, entry: Entry, kind: Kind) -> EncounterRef:
    """What of a stay can move a transfer. Raises RefusedError."""
    resource = entry.resource
    own = next((each for each in identifiers(resource) if each.system != HUB_TRANSFER), None)
    if own is None and kind is Kind.ENCOUNTER:
        raise RefusedError(Why.ENCOUNTER_UNIDENTIFIED, f"{entry.path}.identifier")
    hospitalization = resource.get("hospitalization") or {}
    found = draft.organisation_codes(hospitalization.get("destination"), inside=resource)
    destination = found[0] if found else None
    origin = next(iter(draft.organisation_codes(hospitalization.get("origin"), inside=resource)), None)
    return EncounterRef(
        key=f"{draft.received.trust}|{own.system}|{own.value}" if own else None,
        status=resource["status"],
        encounter_class=(resource.get("class") or {}).get("code"),
        destination=draft.directory.trust_of(destination) if destination else None,
        destination_code=destination,
        disposition=_short(code_of(hospitalization.get("dischargeDisposition"))),
        discharge_method=_short(_extension(hospitalization, "dischargemethod")),
        source=_short(code_of(hospitalization.get("admitSource"))),
        admission_method=_short(_extension(hospitalization, "admissionmethod")),
        origin=draft.directory.trust_of(origin) if origin else None,
    )


def _extension(holder: Mapping[str, Any], family: str) -> str | None:
    for extension in holder.get("extension", ()):
        if family in str(extension.get("url", "")).lower().replace("-", ""):
            return code_of(extension.get("valueCodeableConcept"))
    return None


def _short(code: str | None) -> str | None:
    """National codes have two characters; anything long is no code, and might be a name."""
    return code if code is not None and len(code) <= 2 else None


def event_type(draft: Draft, entry: Entry) -> str:
    """What happened in a stay: by the ADT event where the header names one, else by what the Encounter says."""
    by_trigger = _EVENT_OF_TRIGGER.get(draft.event_code)
    if by_trigger:
        return by_trigger
    status = entry.resource["status"]
    if status == "in-progress":
        several = len(entry.resource.get("location", ())) > 1
        return "encounter.transferred" if several else "encounter.admitted"
    return _EVENT_OF_STATUS.get(status, "encounter.updated")


def own_times(encounter: Tree, event: str) -> list[tuple[Any, str]]:
    """When this event happened as the Encounter itself says it, and where in it."""
    period = encounter.get("period") or {}
    began = (period.get("start"), "period.start")
    moved = [
        ((each.get("period") or {}).get("start"), f"location[{index}].period.start")
        for index, each in enumerate(encounter.get("location", ()))
    ]
    return {
        "encounter.discharged": [(period.get("end"), "period.end")],
        "encounter.admitted": [began],
        "encounter.registered": [began],
        "encounter.transferred": moved[-1:],
    }.get(event, [])


def stated_at(resource: Tree) -> datetime | None:
    """When the sender's record was written (meta.lastUpdated)."""
    return instant((resource.get("meta") or {}).get("lastUpdated"))
