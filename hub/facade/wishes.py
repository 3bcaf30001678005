"""The interactions about subscriptions."""

import uuid
from dataclasses import replace
from typing import Any

from fastapi import Request, Response

from hub.domain.ids import parse_uuid
from hub.facade import searching, subscribing
from hub.facade.answers import asked_with, fhir, searchset, tree_of
from hub.facade.capability import Served
from hub.facade.errors import FacadeError, bad_request, information, not_found
from hub.facade.notifier import notification_of, shown_with
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.store import subscriptions
from hub.store.subscriptions import Subscription

_EVENTS_MAX = 200
_WHY = "Your trust's systems subscribe, not people: a subscription goes on when its author has gone home."


async def create_subscription(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del request
    resource = _resource(caller, body)
    wanted = subscribing.wanted_of(resource, facade.directory[caller.trust])
    await _may_be_told(facade, caller, served, subscribing.content_of(resource))
    if resource["status"] != "requested":
        raise bad_request("A new subscription is requested.", "Subscription.status")
    resource = subscribing.with_kept_headers(resource, None)
    wish = Subscription(
        _id_of(caller),
        caller.trust,
        caller.client_id,
        resource,
        wanted,
        "requested",
        facade.now(),
        subscribing.ends_at(resource),
    )
    made = await subscriptions.add(facade.engine, wish)
    if made.resource != wish.resource:
        raise FacadeError(
            409,
            "REC_CONFLICT",
            "conflict",
            "Another Subscription was made under this X-Request-Id, or this one was changed since. Give each one of its own.",
            "X-Request-Id",
        )
    return fhir(subscribing.shown(made), 201, {"Location": f"{facade.base}/Subscription/{made.id}"})


def _id_of(caller: Caller) -> str:
    """Of a new subscription: one that is sent again under its X-Request-Id is the same."""
    request_id = parse_uuid(caller.request_id or "")
    return str(uuid.uuid5(uuid.UUID(request_id), caller.client_id) if request_id else uuid.uuid4())


async def read_subscription(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    return fhir(subscribing.shown(await _found(facade, request, caller, served)))


async def search_subscription(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    caller.must_be_a_system(_WHY)
    given = asked_with(request, body)
    said, ignored = searching.plainly(served.resource, given.parameters, strict=given.strict)
    wanted = said.get("status")
    found = [
        each
        for each in await subscriptions.all_of(facade.engine, caller.trust)
        if not wanted or each.status in wanted.split(",")
    ]
    links = [{"relation": "self", "url": f"{facade.base}/Subscription"}]
    shown = [subscribing.shown(each) for each in found]
    bundle = searchset(shown, facade.base, links=links, total=len(shown))
    return fhir(searching.with_ignored(bundle, ignored))


async def update_subscription(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    wish = await _found(facade, request, caller, served)
    resource = _resource(caller, body)
    if resource.get("id", wish.id) != wish.id:
        raise bad_request("The body must be the Subscription that the address names.", "Subscription.id")
    wanted = subscribing.wanted_of(resource, facade.directory[caller.trust])
    await _may_be_told(facade, caller, served, subscribing.content_of(resource))
    changed = replace(
        wish,
        wanted=wanted,
        resource=subscribing.with_kept_headers(resource, wish.resource),
        status=resource["status"],
        ends_at=subscribing.ends_at(resource),
        error=None,
        client_id=caller.client_id,
    )
    await subscriptions.change(facade.engine, changed, facade.now())
    return fhir(subscribing.shown(changed))


async def end_subscription(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """Nothing is deleted here: it is off, and its events can still be fetched."""
    del body
    wish = await _found(facade, request, caller, served)
    await subscriptions.change(facade.engine, replace(wish, status="off"), facade.now())
    return fhir(information("The subscription is off."))


async def subscription_status(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    wish = await _found(facade, request, caller, served)
    last = await subscriptions.number_events(facade.engine, wish.id)
    status = subscribing.status(replace(wish, last_number=last), "query-status", facade.base)
    bundle = searchset(
        [status],
        facade.base,
        links=[{"relation": "self", "url": f"{facade.base}/Subscription/{wish.id}/$status"}],
        total=1,
    )
    # It is made for this answer and can be read nowhere.
    bundle["entry"][0]["fullUrl"] = f"urn:uuid:{status['id']}"
    return fhir(bundle)


async def subscription_events(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """What was missed: ``eventsSinceNumber`` to ``eventsUntilNumber``, both included, at most two hundred."""
    del body
    wish = await _found(facade, request, caller, served)
    last = await subscriptions.number_events(facade.engine, wish.id)
    oldest = await subscriptions.oldest_number(facade.engine, wish.id) or last + 1
    since = _number(request, "eventsSinceNumber", oldest)
    if max(since, 1) < oldest:
        raise _aged_out(oldest, last)
    until = min(_number(request, "eventsUntilNumber", last), last)
    content = request.query_params.get("content") or subscribing.content_of(wish.resource)
    if content not in subscribing.CONTENTS:
        raise bad_request("content must be empty, id-only or full-resource.", "content", "value")
    await _may_be_told(facade, caller, served, content)
    found = await subscriptions.events(facade.engine, wish.id, since, until, _EVENTS_MAX)
    # A Task names its patient; an event alone names nobody.
    transfers = await shown_with(facade, wish, found, content)
    told = replace(wish, last_number=last)
    bundle = await notification_of(facade, told, "query-event", found, content, transfers)
    await facade.searched(caller, served, transfers, events=len(found), subscription=wish.id)
    return fhir(bundle)


def _aged_out(oldest: int, last: int) -> FacadeError:
    begin = f"Begin with eventsSinceNumber={oldest}" if oldest <= last else "None is kept"
    return FacadeError(
        410,
        "REC_NOT_FOUND",
        "deleted",
        f"Events of this number have aged out. {begin}; look for the Tasks themselves with _lastUpdated.",
        "eventsSinceNumber",
    )


async def _may_be_told(facade: Facade, caller: Caller, served: Served, content: str) -> None:
    """Whoever is shown Tasks must be allowed to read them. Raises FacadeError (403)."""
    if content == "full-resource":
        await facade.must(caller, served, "Task", "r")


async def _found(facade: Facade, request: Request, caller: Caller, served: Served) -> Subscription:
    caller.must_be_a_system(_WHY)
    wish = await subscriptions.find(facade.engine, caller.trust, request.path_params["id"])
    if wish is None:
        await facade.denied(caller, served, "unknown")
        raise not_found()
    return wish


def _resource(caller: Caller, body: bytes) -> dict[str, Any]:
    caller.must_be_a_system(_WHY)
    resource = tree_of(body)
    if resource is None:
        raise bad_request("Send a Subscription.", "resourceType")
    return resource


def _number(request: Request, name: str, otherwise: int) -> int:
    said = request.query_params.get(name, "")
    if not said:
        return otherwise
    if not said.isascii() or not said.isdigit() or len(said) > 15:
        raise bad_request(f"{name} must be a whole number.", name, "value")
    return int(said)
