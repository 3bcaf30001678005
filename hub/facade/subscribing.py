"""Subscriptions as FHIR says them: what a client asks for, and the Bundles it is told with.

Source: Subscriptions R5 Backport 1.1 for FHIR R4 (hl7.fhir.uv.subscriptions-backport.r4).
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from hub.domain.trust import TrustProfile
from hub.facade.errors import FacadeError, bad_request
from hub.facade.searching import not_too_many, question
from hub.fhir.outgoing import instant
from hub.fhir.structure import check
from hub.fhir.systems import HUB
from hub.fhir.tree import Tree
from hub.store.subscriptions import Event, Subscription

TOPIC = f"{HUB}/SubscriptionTopic/transfer-changed"
"""Any new version of a transfer of the subscriber's trust."""

_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"
_FILTER, _CONTENT = f"{_BACKPORT}/backport-filter-criteria", f"{_BACKPORT}/backport-payload-content"
_HEARTBEAT, _TIMEOUT = f"{_BACKPORT}/backport-heartbeat-period", f"{_BACKPORT}/backport-timeout"
_MAX_COUNT, _STATUS = f"{_BACKPORT}/backport-max-count", f"{_BACKPORT}/backport-subscription-status-r4"
CONTENTS = ("empty", "id-only", "full-resource")
_FILTERS = ("status", "business-status", "requester", "owner")
_HEARTBEAT_MIN_S, _TIMEOUT_MAX_S, _MAX_COUNT_MAX = 10, 30, 100
_HEADER = re.compile(r"([A-Za-z][A-Za-z0-9-]{0,60}): ?([\x20-\x7e]{0,2000})")
_KEPT = "(kept)"
"""Instead of what a header holds."""
_OURS = frozenset({"host", "content-type", "content-length", "transfer-encoding", "connection", "accept"})


def wanted_of(resource: Mapping[str, Any], profile: TrustProfile) -> dict[str, Any]:
    """Check a Subscription and read its filters. Raises FacadeError (400, 422) that names the element and what to do."""
    if resource.get("resourceType") != "Subscription":
        raise bad_request("Send a Subscription.", "resourceType")
    if resource.get("status") not in ("requested", "off"):
        raise _refused("status must be requested (the hub then shakes hands) or off.", "Subscription.status")
    if resource.get("criteria") != TOPIC:
        raise _refused(f"There is one topic: {TOPIC}.", "Subscription.criteria")
    channel = resource.get("channel")
    if not isinstance(channel, dict) or channel.get("type") != "rest-hook":
        raise _refused("The channel must be a rest-hook.", "Subscription.channel.type")
    if channel.get("payload", "application/fhir+json") != "application/fhir+json":
        raise _refused("Notifications are application/fhir+json.", "Subscription.channel.payload")
    if not is_registered(channel.get("endpoint"), profile):
        raise _refused(
            "The endpoint must be https (http on this machine only), at a host that your trust has registered: ask the hub team to "
            "add it to callback_hosts in your trust's profile.",
            "Subscription.channel.endpoint",
        )
    if content_of(resource) not in CONTENTS:
        raise _refused(
            f"The payload's content must be of: {', '.join(CONTENTS)}.",
            "Subscription.channel.payload.extension",
        )
    _headers_hold(channel)
    for url, name, least, most in (
        (_HEARTBEAT, "heartbeat period", _HEARTBEAT_MIN_S, 86_400),
        (_TIMEOUT, "timeout", 1, _TIMEOUT_MAX_S),
        (_MAX_COUNT, "max count", 1, _MAX_COUNT_MAX),
    ):
        value = _extension(channel, url)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most
        ):
            raise _refused(
                f"The {name} must be a whole number from {least} to {most}.", "Subscription.channel.extension"
            )
    ends_at(resource)
    filters = _filters(resource)
    # What is kept is shown again, to all systems of the trust: it must be a Subscription throughout. R4 asks for a reason, the hub does not.
    for each in check(resource):
        if each.code != "required":
            raise FacadeError(
                422, "SEND_UNPROCESSABLE_ENTITY", each.code, each.message, each.path or "Subscription"
            )
    return filters


def _filters(resource: Mapping[str, Any]) -> dict[str, Any]:
    texts = [
        each.get("valueString", "")
        for each in _extensions(resource.get("_criteria"))
        if each.get("url") == _FILTER
    ]
    found: dict[str, Any] = {"states": None, "senders": [], "receivers": []}
    asked = [str(text).partition("?") for text in texts]
    said = [parse_qsl(query, keep_blank_values=True) for _, _, query in asked]
    not_too_many([each for parameters in said for each in parameters])
    for (kind, _, _), parameters in zip(asked, said, strict=True):
        if (
            kind != "Task"
            or not parameters
            or any(name.partition(":")[0] not in _FILTERS for name, _ in parameters)
        ):
            raise _refused(
                f"A filter is Task? and any of {', '.join(_FILTERS)}, as in a search.",
                "Subscription.criteria.extension",
            )
        wanted = question("Task", parameters, strict=True).wanted
        if wanted.states is not None:
            before = found["states"]
            states = [each.value for each in wanted.states]
            found["states"] = states if before is None else [each for each in before if each in states]
        found["senders"] += wanted.senders
        found["receivers"] += wanted.receivers
    return found


def _headers_hold(channel: Mapping[str, Any]) -> None:
    said = channel.get("header", [])
    parsed = [
        _HEADER.fullmatch(each) if isinstance(each, str) else None
        for each in (said if isinstance(said, list) else [None])
    ]
    if len(parsed) > 10 or any(each is None or each[1].lower() in _OURS for each in parsed):
        raise _refused(
            "A header is 'Name: value' in ASCII; those of the request itself are the hub's.",
            "Subscription.channel.header",
        )


def is_registered(url: Any, profile: TrustProfile) -> bool:
    """Whether the hub may post to this address for this trust."""
    if not isinstance(url, str) or any(each <= " " or each in '\\"<>' for each in url):
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    safe = parts.scheme == "https" or (parts.scheme == "http" and host in {"127.0.0.1", "localhost"})
    named = {host, f"{host}:{port}"} if port else {host}
    return bool(safe and host and parts.username is None and named & set(profile.callback_hosts))


def ends_at(resource: Mapping[str, Any]) -> datetime | None:
    """Subscription.end, UTC or with an offset. Raises FacadeError (422)."""
    if (said := resource.get("end")) is None:
        return None
    try:
        found = datetime.fromisoformat(str(said))
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _refused("end must be an instant of the calendar, with its offset.", "Subscription.end")


def content_of(resource: Mapping[str, Any]) -> str:
    """How much of what changed is in a notification."""
    return str(_extension(resource.get("channel", {}).get("_payload") or {}, _CONTENT) or "id-only")


def heartbeat_s(resource: Mapping[str, Any]) -> int | None:
    return _number(resource, _HEARTBEAT)


def timeout_s(resource: Mapping[str, Any]) -> int:
    return _number(resource, _TIMEOUT) or 10


def max_count(resource: Mapping[str, Any]) -> int:
    return _number(resource, _MAX_COUNT) or 20


def headers_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """What the subscriber wants to be sent with each notification, for example its own token."""
    found = (_HEADER.fullmatch(each) for each in resource["channel"].get("header", ()))
    return {each[1]: each[2] for each in found if each}


def with_kept_headers(resource: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """A Subscription whose headers are said to be kept, with what they held: who reads one and puts it back must not lose them. They
    are for the address that they were given for, and for no other. Raises FacadeError (422).
    """
    channel = dict(resource["channel"])
    headers = [_HEADER.fullmatch(each) for each in channel.get("header", ())]
    if not any(each and each[2] == _KEPT for each in headers):
        return dict(resource)
    stored: dict[str, list[str]] = {}
    if before is not None and before["channel"]["endpoint"] == channel["endpoint"]:
        for each in before["channel"].get("header", ()):
            stored.setdefault(each.partition(":")[0].lower(), []).append(each)
    kept = []
    for said in filter(None, headers):
        known = stored.get(said[1].lower())
        if said[2] != _KEPT:
            kept.append(said[0])
        elif known:
            kept.append(known.pop(0))
        else:
            raise _refused(
                f"{_KEPT} stands for what a header of this Subscription holds, as long as its endpoint is the same: write the header anew.",
                "Subscription.channel.header",
            )
    channel["header"] = kept
    return {**resource, "channel": channel}


def shown(wish: Subscription) -> Tree:
    """A subscription as it stands; what its headers hold is its own secret."""
    channel = dict(wish.resource["channel"])
    if "header" in channel:
        channel["header"] = [f"{each.partition(':')[0]}: {_KEPT}" for each in channel["header"]]
    found: Tree = {**wish.resource, "id": wish.id, "status": wish.status, "channel": channel}
    found.pop("error", None)
    if wish.error:
        found["error"] = wish.error
    return found


def notification(
    wish: Subscription,
    kind: str,
    base: str,
    now: datetime,
    events: Sequence[Event] = (),
    resources: Mapping[int, Tree] | None = None,
    content: str = "empty",
) -> Tree:
    """A Bundle of type history: the status first, then what changed. ``resources``: event number → Task, where it may be shown."""
    entries: list[Tree] = [
        {
            "fullUrl": f"urn:uuid:{uuid.uuid4()}",
            "resource": status(wish, kind, base, events, content),
            "request": {"method": "GET", "url": f"Subscription/{wish.id}/$status"},
            "response": {"status": "200"},
        }
    ]
    for each in events if content != "empty" else ():
        task, is_new = (resources or {}).get(each.number), each.version == 1
        entries.append(
            {
                "fullUrl": f"{base}/Task/{each.transfer_id}",
                **({"resource": task} if task else {}),
                "request": {
                    "method": "POST" if is_new else "PUT",
                    "url": "Task" if is_new else f"Task/{each.transfer_id}",
                },
                "response": {
                    "status": "201" if is_new else "200",
                    "etag": f'W/"{each.version}"',
                    "lastModified": instant(each.at),
                },
            }
        )
    return {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "type": "history",
        "timestamp": instant(now),
        "entry": entries,
    }


def status(
    wish: Subscription, kind: str, base: str, events: Sequence[Event] = (), content: str = "empty"
) -> Tree:
    """The status of a subscription: Parameters, with the events it is about."""
    parameters: list[Tree] = [
        {"name": "subscription", "valueReference": {"reference": f"{base}/Subscription/{wish.id}"}},
        *(
            []
            if content == "empty" and kind == "event-notification"
            else [{"name": "topic", "valueCanonical": TOPIC}]
        ),
        {"name": "status", "valueCode": wish.status},
        {"name": "type", "valueCode": kind},
        {
            "name": "events-since-subscription-start",
            "valueString": str(
                events[-1].number if kind == "event-notification" and events else wish.last_number
            ),
        },
    ]
    for each in events:
        part: list[Tree] = [
            {"name": "event-number", "valueString": str(each.number)},
            {"name": "timestamp", "valueInstant": instant(each.at)},
        ]
        if content != "empty":
            part.append(
                {
                    "name": "focus",
                    "valueReference": {
                        "reference": f"{base}/Task/{each.transfer_id}/_history/{each.version}"
                    },
                }
            )
        parameters.append({"name": "notification-event", "part": part})
    if wish.error:
        parameters.append({"name": "error", "valueCodeableConcept": {"text": wish.error}})
    return {
        "resourceType": "Parameters",
        "id": str(uuid.uuid4()),
        "meta": {"profile": [_STATUS]},
        "parameter": parameters,
    }


def _extension(element: Any, url: str) -> Any:
    for each in _extensions(element):
        if each.get("url") == url:
            return next((value for name, value in each.items() if name.startswith("value")), None)
    return None


def _extensions(element: Any) -> list[Mapping[str, Any]]:
    found = element.get("extension") if isinstance(element, dict) else None
    return [each for each in (found if isinstance(found, list) else []) if isinstance(each, dict)]


def _number(resource: Mapping[str, Any], url: str) -> int | None:
    found = _extension(resource.get("channel"), url)
    return found if isinstance(found, int) else None


def _refused(diagnostics: str, at: str) -> FacadeError:
    return FacadeError(422, "SEND_UNPROCESSABLE_ENTITY", "not-supported", diagnostics, at)
