"""What the hub says to a trust: FHIR R4 message Bundles, built as plain trees.

Two kinds: news of a transfer (to the inbox) and a receipt for a message (to the receipts). Both are the same
bytes for the same input. Sources: FHIR R4 messaging, Task and OperationOutcome.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from hub.domain.ids import Identifier, made_by
from hub.domain.message import Canonical, Received
from hub.domain.rejection import Disposition, Rejection
from hub.domain.transfer import HUB as HUB_ITSELF
from hub.domain.transfer import TASK_STATUS, Transfer
from hub.domain.value import value
from hub.fhir import decimals
from hub.fhir.systems import (
    HUB,
    HUB_EVENT,
    HUB_EVENT_TYPE,
    HUB_REASON,
    HUB_STATE,
    HUB_TRANSFER,
    ODS_ORGANISATION,
    TASK_CODE,
)
from hub.fhir.tree import Tree, identifiers

_ISSUE_CODE = {
    Disposition.DUPLICATE: "duplicate",
    Disposition.CONFLICT: "conflict",
    Disposition.QUARANTINED: "processing",
    Disposition.REJECTED: "business-rule",
}


@lru_cache(maxsize=1024)
def instant(moment: datetime) -> str:
    """A UTC time as a FHIR instant, to the millisecond. Remembered: one message says the same time several times."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@value
class Occasion:
    """What the news comes from: a message, or the hub's own clock. ``by`` is whose doing it was; times are UTC."""

    event_id: str
    by: str
    occurred_at: datetime
    received_at: datetime

    @classmethod
    def of(cls, canonical: Canonical) -> "Occasion":
        return cls(canonical.event_id, canonical.trust, canonical.occurred_at, canonical.received.received_at)


def transfer_news(
    occasion: Occasion,
    transfer: Transfer,
    event_type: str,
    to: str,
    *,
    resources: Sequence[Mapping[str, Any]] = (),
    written: Iterable[bytes] | None = None,
    patient_url: str | None = None,
    reason: Sequence[Identifier] = (),
    note: str = "",
) -> bytes:
    """The message Bundle that tells ``to`` what happened: a Task with the transfer's state, and what of the message is
    for this party (`hub.journey.disclose`); ``written`` is the same as JSON, where somebody has it already. ``patient_url`` is the
    Patient among them whose transfer it is, if one is. ``note`` is a sentence for a human.
    """
    task_url = f"urn:uuid:{transfer.id}"
    header = {
        "resourceType": "MessageHeader",
        "eventCoding": {"system": HUB_EVENT_TYPE, "code": event_type},
        "destination": [{"endpoint": _endpoint(to), "receiver": organisation(to)}],
        **({} if occasion.by == HUB_ITSELF else {"sender": organisation(occasion.by)}),
        "source": {"name": "Transfer hub", "endpoint": HUB},
        "focus": [{"reference": task_url}],
    }
    task = _task(occasion, transfer, resources, patient_url, reason, note)
    others = resources if written is None else map(orjson.Fragment, written)
    return _bundle(
        occasion, f"{to} {transfer.id}", header, [{"fullUrl": task_url, "resource": task}, *others]
    )


def receipt(
    received: Received,
    disposition: Disposition,
    rejection: Rejection | None,
    bundle_id: str | None,
    message_id: str,
) -> bytes:
    """What became of a message, for the trust that sent it; with an OperationOutcome when something was wrong."""
    response: Tree = {
        "identifier": bundle_id or received.event_id,
        "code": "ok" if disposition in {Disposition.ACCEPTED, Disposition.DUPLICATE} else "fatal-error",
    }
    entries: list[Tree] = []
    if rejection is not None or disposition is not Disposition.ACCEPTED:
        url = "urn:uuid:" + made_by(received.event_id, "outcome", received.event_id)
        response["details"] = {"reference": url}
        entries.append({"fullUrl": url, "resource": _outcome(disposition, rejection)})
    header: Tree = {
        "resourceType": "MessageHeader",
        "extension": [
            {"url": f"{HUB}/StructureDefinition/x-request-id", "valueString": message_id},
            {"url": f"{HUB}/StructureDefinition/disposition", "valueCode": disposition.value},
        ],
        "eventCoding": {"system": HUB_EVENT_TYPE, "code": "receipt"},
        "destination": [{"endpoint": _endpoint(received.trust), "receiver": organisation(received.trust)}],
        "source": {"name": "Transfer hub", "endpoint": HUB},
        "response": response,
    }
    return _bundle(
        Occasion(received.event_id, received.trust, received.received_at, received.received_at),
        "receipt",
        header,
        entries,
    )


def _bundle(occasion: Occasion, purpose: str, header: Tree, entries: Sequence[Any]) -> bytes:
    identity = made_by(occasion.event_id, "bundle", occasion.event_id, purpose)
    head_url = "urn:uuid:" + made_by(occasion.event_id, "header", occasion.event_id, purpose)
    bundle = {
        "resourceType": "Bundle",
        "id": identity,
        "identifier": {"system": HUB_EVENT, "value": occasion.event_id},
        "type": "message",
        "timestamp": instant(occasion.received_at),
        "entry": [{"fullUrl": head_url, "resource": header}, *entries],
    }
    return decimals.dumps(bundle)


def _endpoint(ods: str) -> str:
    return f"{ODS_ORGANISATION}|{ods}"


def organisation(ods: str) -> Tree:
    """A reference to a trust by its ODS code."""
    return {"type": "Organization", "identifier": {"system": ODS_ORGANISATION, "value": ods}}


def _task(
    occasion: Occasion,
    transfer: Transfer,
    resources: Sequence[Mapping[str, Any]],
    patient_url: str | None,
    reason: Sequence[Identifier],
    note: str,
) -> Tree:
    task = task_of(transfer, _focus(resources, transfer), occasion.occurred_at)
    # A message may hold a mother and her child: the first Patient need not be whose transfer it is.
    if patient_url is not None and any(each["fullUrl"] == patient_url for each in resources):
        task["for"] = {"reference": patient_url}
    if reason:
        task["statusReason"] = {"coding": [_coding(code) for code in reason]}
    if note:
        task["note"] = [{"time": instant(occasion.occurred_at), "text": note}]
    return task


def task_of(transfer: Transfer, focus: Tree, modified_at: datetime) -> Tree:
    """A transfer as a FHIR Task, as far as it is the same for every reader. ``modified_at`` is UTC."""
    return {
        "resourceType": "Task",
        "meta": {"versionId": str(transfer.version)},
        "identifier": [{"system": HUB_TRANSFER, "value": transfer.id}],
        "status": TASK_STATUS[transfer.state],
        "businessStatus": {"coding": [{"system": HUB_STATE, "code": transfer.state.value}]},
        "intent": "order",
        "code": {"coding": [{"system": TASK_CODE, "code": "fulfill"}]},
        "focus": focus,
        "authoredOn": instant(transfer.requested_at),
        "lastModified": instant(modified_at),
        "requester": organisation(transfer.sender),
        "owner": organisation(transfer.receiver),
    }


def request_reference(transfer: Transfer) -> Tree:
    """The ServiceRequest by its business identifier."""
    request = next(iter(transfer.requests), Identifier(HUB_TRANSFER, transfer.id))
    return {"type": "ServiceRequest", "identifier": {"system": request.system, "value": request.value}}


def _focus(resources: Sequence[Mapping[str, Any]], transfer: Transfer) -> Tree:
    """The transfer's own ServiceRequest: a message may hold others, of a laboratory, or the one that stands in for it."""
    found = [each for each in resources if each["resource"]["resourceType"] == "ServiceRequest"]
    own = {*transfer.requests, Identifier(HUB_TRANSFER, transfer.id)}
    url = next((e["fullUrl"] for e in found if not own.isdisjoint(identifiers(e["resource"]))), None)
    if url is None and len(found) == 1 and not transfer.requests:
        url = found[0]["fullUrl"]
    return request_reference(transfer) if url is None else {"reference": url}


def _coding(code: Identifier) -> Tree:
    return {"system": code.system, "code": code.value} if code.system else {"code": code.value}


def _outcome(disposition: Disposition, rejection: Rejection | None) -> Tree:
    issue: Tree = {
        "severity": "information" if disposition is Disposition.DUPLICATE else "error",
        "code": _ISSUE_CODE.get(disposition, "informational"),
    }
    if rejection is None:
        issue["diagnostics"] = (
            "This message was already delivered; nothing was done again. Do not send it once more."
        )
    else:
        issue["details"] = {"coding": [{"system": HUB_REASON, "code": rejection.why.value}]}
        issue["diagnostics"] = in_words(rejection)
        if rejection.at:
            issue["expression"] = [rejection.at]
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def in_words(rejection: Rejection) -> str:
    """What is wrong, what to do and who can."""
    ruling = rejection.ruling
    said = (_sentence(rejection.detail), ruling.advice, f"To be mended by: {ruling.owner}.")
    return " ".join(filter(None, said))


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else f"{text}."
