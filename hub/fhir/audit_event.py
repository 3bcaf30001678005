"""An entry of the audit as FHIR says it: one AuditEvent for one entry, built as a plain tree. Pure; same entry, same bytes.

Each claims and meets NHS England's profile for the Patient Audit Record Service (PARS), and a disclosure also IHE BALP's
PrivacyDisclosure.Source (decision 0012). PARS closes its lists of agents and entities, so everything has one of these places:

 * agents: the organisation that acted and, second, the one that it was done to; the person who signed in; their role; the system.
 * entities: the patient, the transaction (whose details hold the rest of the entry), the organisation that was claimed, the endpoint.

The patient's number is the only thing about a patient that is said, and no person's name is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import orjson

from hub.audit.catalogue import CATALOGUE, DICOM, Meaning, Purpose
from hub.audit.entries import Code
from hub.domain.transfer import HUB as HUB_ITSELF
from hub.fhir.outgoing import instant, organisation
from hub.fhir.systems import (
    HUB,
    HUB_AUDIT_ENTRY,
    HUB_AUDIT_EVENT,
    HUB_EVENT,
    HUB_OPERATOR,
    HUB_ORGANISATION,
    HUB_REQUEST,
    HUB_ROLE,
    HUB_USER,
    NHS_NUMBER,
    ODS_ORGANISATION,
    PRODUCT,
    SDS_ROLE_PROFILE,
    SDS_USER,
)
from hub.fhir.tree import Tree

PARS = "https://fhir.nhs.uk/England/StructureDefinition/England-AuditEvent-PARS"
BALP_DISCLOSURE = (
    "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit.PrivacyDisclosure.Source"
)

CLAIMED = "claimed"
"""In an entry's detail: the ODS code under which a message came, where another was proved."""
GLASS_BROKEN = "glass_broken"
"""In an entry's detail: it was seen only because the glass was broken."""

_SOURCE_ROLE, _DESTINATION_ROLE = "110153", "110152"
_ENTITY_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_OBJECT_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_BALP_ENTITY_TYPE = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
_RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"
_SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
_DATA_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_URI_ADDRESS = "5"
"""FHIR's network-type: URI."""

_ABSOLUTE_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_REASON_CODE = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")
_AT_THE_COMMAND_LINE = frozenset({"cli", "operator"})


@dataclass(frozen=True, slots=True)
class LocalNumber:
    """What a hospital calls a patient: nothing outside that hospital."""

    ods: str
    system: str
    value: str


@dataclass(frozen=True, slots=True)
class KnownAs:
    """By what a patient can be found. The local number is said only where there is no NHS number."""

    nhs_number: str | None = None
    local: LocalNumber | None = None


@dataclass(frozen=True, slots=True)
class Observer:
    """Who wrote the audit: this hub. ``organisation`` is the ODS code of who runs it, if they have one; ``site`` is which hub it is, among
    several; ``address`` is its URL.
    """

    product: str = "transfer-hub"
    name: str = "Transfer hub"
    site: str = "transfer-hub"
    organisation: str | None = None
    address: str = HUB


def audit_event(
    entry: Mapping[str, Any], person: KnownAs | None, names: Mapping[str, str], source: Observer
) -> Tree:
    """The AuditEvent for one entry.

    ``entry`` has the fields of `AuditEntry` and its number as ``entry``: a row of the store's. ``person`` is None where the entry names nobody.
    ``names`` are trusts' by ODS code. Raises ValueError for a code that the catalogue does not have.
    """
    code = Code(entry["code"])
    meaning = CATALOGUE[code]
    detail: Mapping[str, Any] = entry["detail"]
    is_disclosure = code is Code.DISCLOSURE_SENT and not _is_the_hub(entry["counterpart"])
    event: Tree = {
        "resourceType": "AuditEvent",
        "id": str(entry["entry"]),
        "meta": {"profile": [PARS, BALP_DISCLOSURE] if is_disclosure else [PARS]},
        "type": {"system": meaning.kind.system, "code": meaning.kind.value},
        "subtype": [
            {"system": HUB_AUDIT_EVENT, "code": code.value, "display": meaning.display},
            *({"system": each.system, "code": each.value} for each in meaning.also),
        ],
        "action": meaning.action.value,
    }
    if entry["occurred_at"] is not None:
        moment = instant(entry["occurred_at"])
        event["period"] = {"start": moment, "end": moment}
    event["recorded"] = instant(entry["at"])
    event["outcome"] = str(int(entry["outcome"]))
    why = detail.get("why")
    if isinstance(why, str) and _REASON_CODE.fullmatch(why):
        event["outcomeDesc"] = str(why)
    event["purposeOfEvent"] = [{"coding": [{"system": _ACT_REASON, "code": _purpose(meaning, detail)}]}]
    event["agent"] = _agents(entry, code, names, source, is_disclosure=is_disclosure)
    event["source"] = {
        "site": source.site,
        # PARS wants a Device to observe; BALP wants the very words of the agent that sends, and PARS's word for that one is Endpoint.
        "observer": _itself(source, "Endpoint" if is_disclosure else "Device"),
        "type": [{"system": _SOURCE_TYPE, "code": "4"}],
    }
    event["entity"] = [
        _patient(person, meaning, entry["person_id"]),
        _transaction(entry, detail),
        *_submitted_organisation(detail, names),
        *_endpoint(detail, source),
    ]
    return event


def _purpose(meaning: Meaning, detail: Mapping[str, Any]) -> str:
    return (Purpose.BREAK_THE_GLASS if detail.get(GLASS_BROKEN) else meaning.purpose).value


# -- who --------------------------------------------------------------------------------------------------------


def _agents(
    entry: Mapping[str, Any],
    code: Code,
    names: Mapping[str, str],
    source: Observer,
    *,
    is_disclosure: bool,
) -> list[Tree]:
    """At most one of them asked for it (FHIR R4, AuditEvent.agent.requestor): the person, else the trust, else its system, else the hub."""
    trust, counterpart = entry["trust"], entry["counterpart"]
    user, role, client = (_text(entry[column]) for column in ("user_id", "role_id", "client_id"))
    proved = not _is_the_hub(trust)
    agents = [
        {
            "who": _organisation(trust, names, source),
            # Who could not prove who they are is nobody, and the hub did not ask for it either.
            "requestor": not user and (proved or (not client and code is not Code.AUTHENTICATION_FAILED)),
        }
    ]
    if counterpart:
        agents.append(_counterpart(counterpart, entry["detail"], names, source, disclosed=is_disclosure))
    if user:
        agents.append({"who": _user(user, trust, entry["system"]), "requestor": True})
    if role:
        agents.append({"who": _who("PractitionerRole", _role_system(role), role), "requestor": False})
    if is_disclosure:
        # BALP wants the observer itself as the source, and PARS has room for one system: the client is a detail of the transaction.
        sends = {"address": source.address, "type": _URI_ADDRESS}
        agents.append(
            {"type": _dicom(_SOURCE_ROLE), "who": _itself(source), "requestor": False, "network": sends}
        )
    elif client:
        asked = not user and not proved
        agents.append({"who": _client(client, source), "requestor": asked})
    else:
        agents.append({"who": _itself(source), "requestor": False})
    return agents


def _is_the_hub(trust: str | None) -> bool:
    return not trust or trust.lower() == HUB_ITSELF


def _organisation(ods: str | None, names: Mapping[str, str], source: Observer) -> Tree:
    """A trust; or the hub as an organisation: who runs it, else a name of its own, because PARS has none without one."""
    if ods is not None and not _is_the_hub(ods):
        return _named(organisation(ods), names.get(ods))
    if source.organisation:
        return _named(organisation(source.organisation), names.get(source.organisation) or source.name)
    return _named(_who("Organization", HUB_ORGANISATION, source.site), source.name)


def _named(who: Tree, name: str | None) -> Tree:
    if name:
        who["display"] = name
    return who


def _counterpart(
    ods: str, detail: Mapping[str, Any], names: Mapping[str, str], source: Observer, *, disclosed: bool
) -> Tree:
    agent = {
        "type": _dicom(_DESTINATION_ROLE),
        "who": _organisation(ods, names, source),
        "requestor": False,
    }
    if disclosed:
        topic = _text(detail.get("topic"))
        # A topic's name is none of FHIR's kinds of address.
        agent["network"] = (
            {"address": topic} if topic else {"address": f"{ODS_ORGANISATION}|{ods}", "type": _URI_ADDRESS}
        )
    return agent


def _user(user: str, trust: str | None, system: str) -> Tree:
    if _is_sds(user):
        return _who("Practitioner", SDS_USER, user)
    if system in _AT_THE_COMMAND_LINE or trust is None or _is_the_hub(trust):
        return _who("Practitioner", HUB_OPERATOR, user)
    # Two trusts may give two people one name to sign in with.
    who = _who("Practitioner", HUB_USER, user)
    who["identifier"]["assigner"] = organisation(trust)
    return who


def _role_system(role: str) -> str:
    return SDS_ROLE_PROFILE if _is_sds(role) else HUB_ROLE


def _is_sds(value: str) -> bool:
    """The Spine Directory Service numbers people and their roles with twelve digits."""
    return len(value) == 12 and value.isascii() and value.isdigit()


def _client(client: str, source: Observer) -> Tree:
    # PARS takes only a product's id or an ASID here. The hub gave this one out, and it says so.
    who = _who("Endpoint", PRODUCT, client)
    who["identifier"]["assigner"] = {"display": source.name}
    return who


def _itself(source: Observer, kind: str = "Endpoint") -> Tree:
    return _named(_who(kind, PRODUCT, source.product), source.name)


def _who(kind: str, system: str, value: str) -> Tree:
    return {"type": kind, "identifier": {"system": system, "value": value}}


def _dicom(code: str) -> Tree:
    return {"coding": [{"system": DICOM, "code": code}]}


# -- what -------------------------------------------------------------------------------------------------------


def _patient(person: KnownAs | None, meaning: Meaning, person_id: str | None) -> Tree:
    return {
        "what": {"type": "Patient", "identifier": _number(person, meaning, person_id)},
        "type": {"system": _ENTITY_TYPE, "code": "1"},
        "role": {"system": _OBJECT_ROLE, "code": "1"},
    }


def _number(person: KnownAs | None, meaning: Meaning, person_id: str | None) -> Tree:
    if person is not None and person.nhs_number:
        return {"system": NHS_NUMBER, "value": person.nhs_number}
    local = person.local if person is not None else None
    if local is not None and _text(local.value):
        return {
            "system": _local_system(local),
            "value": _text(local.value),
            "assigner": organisation(local.ods),
        }
    # PARS has no event without a patient.
    known_to_be_none = person is None and person_id is None and not meaning.of_patient
    reason = "not-applicable" if known_to_be_none else "unknown"
    return {
        "system": NHS_NUMBER,
        "_value": {"extension": [{"url": _DATA_ABSENT, "valueCode": reason}]},
    }


def _local_system(local: LocalNumber) -> str:
    """FHIR's are absolute URIs; a hospital's own word for one is put under the hub's."""
    if _ABSOLUTE_URI.fullmatch(local.system):
        return local.system
    return f"{HUB}/Id/patient/{local.ods}/{quote(local.system, safe='')}"


def _transaction(entry: Mapping[str, Any], detail: Mapping[str, Any]) -> Tree:
    return {
        "what": {"identifier": _transaction_id(entry)},
        "type": {"system": _BALP_ENTITY_TYPE, "code": "XrequestId"},
        "detail": [{"type": name, "valueString": value} for name, value in _told(entry, detail)],
    }


def _transaction_id(entry: Mapping[str, Any]) -> Tree:
    request = _text(entry["request_id"])
    if request:
        return {"system": HUB_REQUEST, "value": request}
    if entry["event_id"]:
        return {"system": HUB_EVENT, "value": entry["event_id"]}
    return {"system": HUB_AUDIT_ENTRY, "value": str(entry["entry"])}


def _told(entry: Mapping[str, Any], detail: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The rest of the entry as names and texts, always in one order: what it is about, then its detail by name."""
    yield "system", _text(entry["system"]) or "hub"
    for name, column in (("transfer", "transfer_id"), ("event", "event_id"), ("client", "client_id")):
        value = _text(entry[column])
        if value:
            yield name, value
    for name in sorted(detail):
        label, value = _text(name), _text(detail[name])
        if label and value:
            yield label, value


def _text(value: Any) -> str:
    """A value as a FHIR string: one line, without what cannot be printed. Empty where there is nothing to say."""
    if isinstance(value, str):  # nearly all are
        text = str(value)
    elif value is None:
        return ""
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, Mapping):
        text = " ".join(f"{_text(name)}={_text(value[name])}" for name in sorted(value))
    elif isinstance(value, Sequence):
        text = ", ".join(filter(None, map(_text, value)))
    else:
        text = instant(value) if isinstance(value, datetime) else str(value)
    if text.isprintable() and text == text.strip():
        return text
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _submitted_organisation(detail: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Tree]:
    claimed = _text(detail.get(CLAIMED))
    if claimed:
        yield {
            "what": _named(organisation(claimed), names.get(claimed)),
            "type": {"system": _ENTITY_TYPE, "code": "3"},
        }


def _endpoint(detail: Mapping[str, Any], source: Observer) -> Iterator[Tree]:
    """Through which of the hub's endpoints: a topic, or an interaction of the facade's. Most of what happens inside has none."""
    for key, called in (("topic", "Topic"), ("interaction", "Interaction")):
        name = _text(detail.get(key))
        if name:
            yield {
                "what": {"type": "Endpoint", "identifier": {"system": PRODUCT, "value": source.product}},
                "type": {"system": _RESOURCE_TYPES, "code": "Endpoint"},
                "name": f"{called} {name}",
                "detail": [
                    {"type": "productIdentifier", "valueString": source.product},
                    {"type": "interactionIdentifier", "valueString": name},
                ],
            }
            return


# -- the code system --------------------------------------------------------------------------------------------


def code_system() -> str:
    """The catalogue as a FHIR CodeSystem: the text of ``schemas/codesystems/transfer-audit-event.json``, one code a line."""
    head = {
        "resourceType": "CodeSystem",
        "url": HUB_AUDIT_EVENT,
        "version": "1.0.0",
        "name": "TransferAuditEvent",
        "title": "Transfer hub: audit events",
        "status": "active",
        "description": "The hub's own, for FHIR R4 AuditEvent.subtype; made from hub/audit/catalogue.py.",
        "caseSensitive": True,
        "content": "complete",
    }
    concepts = (
        {"code": code.value, "display": meaning.display, "definition": meaning.definition}
        for code, meaning in CATALOGUE.items()
    )
    lines = [f"  {_json(name)}: {_json(value)}," for name, value in head.items()]
    rows = ",\n".join("    " + _json(each) for each in concepts)
    return "\n".join(["{", *lines, '  "concept": [', rows, "  ]", "}"]) + "\n"


def _json(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_json(name)}: {_json(each)}" for name, each in value.items()) + "}"
    return orjson.dumps(value).decode()
