"""What is served, once: the routes, the OpenAPI document and the CapabilityStatement are all made from this table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hub import __version__
from hub.facade.searching import INCLUDES, RESULTS, SEARCHED
from hub.facade.subscribing import TOPIC
from hub.fhir.outgoing import instant
from hub.fhir.tree import Tree

FHIR_JSON = "application/fhir+json"
FHIR_XML = "application/fhir+xml"


@dataclass(frozen=True, slots=True)
class Served:
    """One interaction. ``resource`` and ``verb`` are what a token's scope must hold; ``body`` whether a message comes with it;
    ``writes`` whether it goes through the journey.
    """

    name: str
    method: str
    path: str
    resource: str
    verb: str
    summary: str
    interaction: str = ""
    """FHIR's code (http://hl7.org/fhir/restful-interaction), "" for an operation."""
    body: bool = False
    writes: bool = False


ONE_VERSION: Mapping[str, str] = {
    "Bundle": "bundle",
    "MessageHeader": "message_header",
    "Provenance": "provenance",
    "Organization": "organization",
    "Location": "location",
}
"""Types whose resources are never another version of themselves here → how their interactions are named."""

SERVED: Sequence[Served] = (
    Served("process_message", "POST", "/fhir/$process-message", "Bundle", "c",
           "Send a message; the answer is a message Bundle with its response (BaRS).", body=True, writes=True),
    Served("create_bundle", "POST", "/fhir/Bundle", "Bundle", "c",
           "Send a message or a collection of what happened.", "create", body=True, writes=True),
    Served("read_bundle", "GET", "/fhir/Bundle/{id}", "Bundle", "r",
           "One message of your inbox, acknowledged or not.", "read"),
    Served("inbox", "GET", "/fhir/$inbox", "Bundle", "s",
           "What waits for you, in order, until you acknowledge it."),
    Served("acknowledge", "POST", "/fhir/$ack", "Bundle", "u",
           "You have these messages: they are not given again.", body=True),
    Served("break_glass", "POST", "/fhir/$break-glass", "Patient", "r",
           "A clinician must see a patient of other hospitals: for sixty minutes, with a reason; they are told.", body=True),
    Served("update_encounter", "PUT", "/fhir/Encounter", "Encounter", "u",
           "What happened to a stay, by its identifier (NHS England's encounter notification).", "update",
           body=True, writes=True),
    Served("search_task", "GET", "/fhir/Task", "Task", "s", "Look for your transfers.", "search-type"),
    Served("search_task_post", "POST", "/fhir/Task/_search", "Task", "s",
           "Look for your transfers, with the parameters in the body as a form.", "search-type", body=True),
    Served("read_task", "GET", "/fhir/Task/{id}", "Task", "r", "One transfer as it stands.", "read"),
    Served("update_task", "PUT", "/fhir/Task/{id}", "Task", "u",
           "Decide: accept, reject, allocate a bed …; with If-Match on the version you have seen.", "update",
           body=True, writes=True),
    Served("patch_task", "PATCH", "/fhir/Task/{id}", "Task", "u",
           "Decide by a JSON Patch; with If-Match on the version you have seen.", "patch", body=True, writes=True),
    Served("create_task", "POST", "/fhir/Task", "Task", "c",
           "Send off a request that you have prepared, or decide on one, by its focus.", "create", body=True, writes=True),
    Served("create_request", "POST", "/fhir/ServiceRequest", "ServiceRequest", "c",
           "Ask (active), or prepare to ask (draft), for a transfer.", "create", body=True, writes=True),
    Served("history_task", "GET", "/fhir/Task/{id}/_history", "Task", "r",
           "Every version of a transfer, the last first.", "history-instance"),
    Served("vread_task", "GET", "/fhir/Task/{id}/_history/{version}", "Task", "r",
           "A transfer as it stood.", "vread"),
    Served("search_request", "GET", "/fhir/ServiceRequest", "ServiceRequest", "s",
           "Look for the requests of your transfers.", "search-type"),
    Served("read_request", "GET", "/fhir/ServiceRequest/{id}", "ServiceRequest", "r",
           "What was asked for, as its sender wrote it last; the id is the transfer's.", "read"),
    Served("search_patient", "GET", "/fhir/Patient", "Patient", "s",
           "Patients of your transfers, by their numbers.", "search-type"),
    Served("read_patient", "GET", "/fhir/Patient/{id}", "Patient", "r",
           "A patient of one of your transfers.", "read"),
    Served("history_request", "GET", "/fhir/ServiceRequest/{id}/_history", "ServiceRequest", "r",
           "The request at each version of its transfer, the last first.", "history-instance"),
    Served("vread_request", "GET", "/fhir/ServiceRequest/{id}/_history/{version}", "ServiceRequest", "r",
           "A request as it stood.", "vread"),
    Served("search_encounter", "GET", "/fhir/Encounter", "Encounter", "s",
           "The stays of your transfers, at both ends.", "search-type"),
    Served("read_encounter", "GET", "/fhir/Encounter/{id}", "Encounter", "r",
           "A stay, as its hospital told it last; the id is the transfer's and -sender or -receiver.", "read"),
    Served("history_encounter", "GET", "/fhir/Encounter/{id}/_history", "Encounter", "r",
           "A stay as each message told it, the last first.", "history-instance"),
    Served("vread_encounter", "GET", "/fhir/Encounter/{id}/_history/{version}", "Encounter", "r",
           "A stay as it was told then.", "vread"),
    Served("history_patient", "GET", "/fhir/Patient/{id}/_history", "Patient", "r",
           "A patient as each message of the last transfer told of them, the last first.", "history-instance"),
    Served("vread_patient", "GET", "/fhir/Patient/{id}/_history/{version}", "Patient", "r",
           "A patient as they were told of then.", "vread"),
    Served("search_provenance", "GET", "/fhir/Provenance", "Provenance", "s",
           "Who made which version of your transfers.", "search-type"),
    Served("read_provenance", "GET", "/fhir/Provenance/{id}", "Provenance", "r",
           "Who made a version; the id is the transfer's and the version.", "read"),
    Served("search_message_header", "GET", "/fhir/MessageHeader", "MessageHeader", "s",
           "The headers of your inbox's messages, the last first.", "search-type"),
    Served("read_message_header", "GET", "/fhir/MessageHeader/{id}", "MessageHeader", "r",
           "The header of one message, under its number.", "read"),
    Served("search_location", "GET", "/fhir/Location", "Location", "s",
           "The places that the trusts run.", "search-type"),
    Served("read_location", "GET", "/fhir/Location/{id}", "Location", "r",
           "One place, by its ODS site code.", "read"),
    Served("create_subscription", "POST", "/fhir/Subscription", "Subscription", "c",
           "Be told when a transfer changes (Subscriptions Backport, rest-hook).", "create", body=True),
    Served("search_subscription", "GET", "/fhir/Subscription", "Subscription", "s",
           "Your trust's subscriptions.", "search-type"),
    Served("read_subscription", "GET", "/fhir/Subscription/{id}", "Subscription", "r",
           "A subscription as it stands; what its headers hold is not shown.", "read"),
    Served("update_subscription", "PUT", "/fhir/Subscription/{id}", "Subscription", "u",
           "Ask for it again, differently, or switch it off.", "update", body=True),
    Served("end_subscription", "DELETE", "/fhir/Subscription/{id}", "Subscription", "d",
           "Switch it off.", "delete"),
    Served("subscription_status", "GET", "/fhir/Subscription/{id}/$status", "Subscription", "r",
           "How a subscription stands, and the number of its last event."),
    Served("subscription_events", "GET", "/fhir/Subscription/{id}/$events", "Subscription", "r",
           "What was missed, by event numbers."),
    Served("search_organization", "GET", "/fhir/Organization", "Organization", "s",
           "The trusts that have joined.", "search-type"),
    Served("read_organization", "GET", "/fhir/Organization/{id}", "Organization", "r",
           "One trust, by its ODS code.", "read"),
    Served("search_audit", "GET", "/fhir/AuditEvent", "AuditEvent", "s",
           "The audit: of your trust's patients and people, for its governance; its own acts, for its systems.", "search-type"),
    Served("search_audit_post", "POST", "/fhir/AuditEvent/_search", "AuditEvent", "s",
           "The audit, with the parameters in the body as a form: a number in an address may stand in others' logs.",
           "search-type", body=True),
    Served("read_audit", "GET", "/fhir/AuditEvent/{id}", "AuditEvent", "r",
           "One entry of the audit, by its number.", "read"),
    *(Served(f"history_{name}", "GET", f"/fhir/{resource}/{{id}}/_history", resource, "r",
             "Its one version: it does not change here.", "history-instance") for resource, name in ONE_VERSION.items()),
    *(Served(f"vread_{name}", "GET", f"/fhir/{resource}/{{id}}/_history/{{version}}", resource, "r",
             "Its one version, 1.", "vread") for resource, name in ONE_VERSION.items()),
)  # fmt: skip


def capability_statement(base: str, started_at: datetime) -> Tree:
    """FHIR's statement of what is served here; ``base`` ends in /fhir."""
    resources: dict[str, Tree] = {}
    for each in SERVED:
        if not each.interaction:
            continue
        resource = resources.setdefault(each.resource, {"type": each.resource, "interaction": []})
        code = {"code": each.interaction}
        if code not in resource["interaction"]:
            resource["interaction"].append(code)
    for name, resource in resources.items():
        if name in SEARCHED:
            resource["searchParam"] = [
                {"name": parameter, "type": kind, "documentation": text}
                for parameter, (kind, text) in SEARCHED[name].items()
            ]
        if name in INCLUDES:
            resource["searchInclude"] = sorted(INCLUDES[name])
    resources["Task"] |= {"versioning": "versioned", "readHistory": True, "updateCreate": False}
    operations = [_operation(each, base) for each in SERVED if "$" in each.path and "{" not in each.path]
    resources["Subscription"]["operation"] = [
        _operation(each, base) for each in SERVED if each.resource == "Subscription" and "$" in each.path
    ]
    resources["Subscription"]["extension"] = [{"url": _TOPICS, "valueCanonical": TOPIC}]
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": instant(started_at),
        "kind": "instance",
        "software": {"name": "Transfer hub", "version": __version__},
        "implementation": {"description": "Transfers between NHS trusts", "url": base},
        "fhirVersion": "4.0.1",
        "format": [FHIR_JSON, FHIR_XML, "json", "xml"],
        "rest": [
            {
                "mode": "server",
                "security": {
                    "cors": False,
                    "service": [
                        {
                            "coding": [
                                {
                                    "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                                    "code": "SMART-on-FHIR",
                                }
                            ]
                        }
                    ],
                    "description": "SMART Backend Services: a signed assertion for a token, at oauth2/token.",
                },
                "resource": list(resources.values()),
                "operation": operations,
            }
        ],
    }


def _operation(each: Served, base: str) -> Tree:
    """The backport's own definition where an operation is its; else an address that only names it."""
    name = each.path.rpartition("$")[2]
    if each.resource == "Subscription":
        return {
            "name": name,
            "definition": f"http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-{name}",
        }
    return {"name": name, "definition": f"{base}/OperationDefinition/{name}"}


_TOPICS = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/capabilitystatement-subscriptiontopic-canonical"


def smart_configuration(url: str) -> Tree:
    """What SMART clients look for at .well-known/smart-configuration."""
    return {
        "token_endpoint": f"{url}/oauth2/token",
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384", "RS512"],
        "scopes_supported": sorted({f"system/{each.resource}.{each.verb}" for each in SERVED}),
        "capabilities": ["client-confidential-asymmetric", "permission-v2"],
    }


JSON_PATCH = "application/json-patch+json"
_MADE = frozenset({"create_subscription", "create_task", "create_request"})
_SIMPLE = frozenset({"Organization", "Subscription", "Location", "MessageHeader"})
"""Not looked for as transfers: what is asked for is all that narrows."""


def described(each: Served) -> Mapping[str, Any]:
    """What OpenAPI says of one interaction beyond its path."""
    resource = {"schema": {"type": "object", "required": ["resourceType"]}}
    outcome = {
        "description": "An OperationOutcome: what is wrong and what to do",
        "content": {FHIR_JSON: resource},
    }
    parameters: list[Tree] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("id", "version")
        if f"{{{name}}}" in each.path
    ]
    if each.method == "GET" and each.interaction == "search-type":
        parameters += [_query(name, text) for name, (_, text) in SEARCHED[each.resource].items()]
        if each.resource in SEARCHED and each.resource not in _SIMPLE:
            parameters += [_query(name, "How the answer should look") for name in sorted(RESULTS)]
    if each.name == "subscription_events":
        parameters += [
            _query("eventsSinceNumber", "The first that is wanted; 1 if it is not given"),
            _query("eventsUntilNumber", "The last that is wanted; the newest if it is not given"),
            _query("content", "empty, id-only or full-resource; the subscription's own if it is not given"),
        ]
    if each.name == "update_encounter":
        parameters.append(_query("identifier", "system|value of the stay, as in the body", required=True))
    if each.writes:
        parameters.append(
            _header(
                "X-Request-Id", "A UUID, new for each message, the same when it is sent again", required=True
            )
        )
        parameters.append(_header("X-Correlation-Id", "A UUID for the whole conversation"))
    if each.name in {"update_task", "patch_task"}:
        parameters.append(_header("If-Match", 'The version you decided on: W/"3"'))
    described: Tree = {
        "security": [{"smart": [f"system/{each.resource}.{each.verb}"]}],
        "parameters": parameters,
    }
    if each.path.endswith("/_search"):
        described["requestBody"] = {
            "content": {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}
        }
    elif each.name == "patch_task":
        patch = {"schema": {"type": "array", "items": {"type": "object"}}}
        described["requestBody"] = {"required": True, "content": {JSON_PATCH: patch}}
    elif each.body:
        formats = (FHIR_JSON, FHIR_XML) if each.writes else (FHIR_JSON,)
        described["requestBody"] = {"required": True, "content": dict.fromkeys(formats, resource)}
    described["responses"] = {
        "201" if each.name in _MADE else "200": {
            "description": "Done; committed before this is sent" if each.writes else "Found",
            "content": dict.fromkeys((FHIR_JSON, FHIR_XML), resource),
        },
        "default": outcome,
    }  # fmt: skip
    return described


def _query(name: str, text: str, *, required: bool = False) -> Tree:
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": text,
        "schema": {"type": "string"},
    }


def _header(name: str, text: str, *, required: bool = False) -> Tree:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": text,
        "schema": {"type": "string"},
    }
