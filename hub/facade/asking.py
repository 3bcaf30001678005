"""Asking and deciding resource by resource: `POST ServiceRequest`, `POST Task`, `PUT|PATCH Task`. Each becomes a message of the journey."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jsonpatch
from fastapi import Request, Response

from hub.domain.transfer import State, Transfer
from hub.facade.answers import fhir, resource_of, tree_of, validators
from hub.facade.capability import FHIR_JSON, Served
from hub.facade.errors import FacadeError, bad_request, not_found
from hub.facade.searching import token_of_identifier
from hub.facade.send import answer, request_id_of
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir import decimals, headers
from hub.fhir.systems import HUB_TRANSFER
from hub.fhir.tree import Tree
from hub.store import queries, search
from hub.store.search import Wanted

_AS_JSON: Mapping[str, str] = {headers.CONTENT_TYPE: FHIR_JSON}
"""Of what the facade writes itself, whatever the caller's request was in."""


_A_TASK: Mapping[str, str] = {headers.RESOURCE: "Task"}


async def create_request(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """A request by itself: with status draft it is prepared, with active it is asked; its Task is the hub's."""
    resource = resource_of(body, facade.limits.depth_max)
    if resource is not None and resource.get("resourceType") != "ServiceRequest":
        raise bad_request("Send a ServiceRequest.", "resourceType")
    effects = await facade.take(request, body, caller, {headers.RESOURCE: "ServiceRequest"})
    answer(effects)
    transfer_id = effects.happened.transfer_id if effects.happened else None
    transfer = await facade.transfer(str(transfer_id), caller, served)
    shown = await facade.as_requests([transfer], caller.reader)
    location = {"Location": f"{facade.base}/ServiceRequest/{transfer.id}"}
    return fhir(shown[0], 201, location | validators(shown[0], facade.now()))


async def create_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """A Task about a transfer that is there: the sender's `requested` sends a draft off; the rest are decisions, as with PUT."""
    task = resource_of(body, facade.limits.depth_max)
    if task is None or task.get("resourceType") != "Task":
        raise bad_request("Send a Task.", "resourceType")
    transfer = await _focus(facade, task, caller, served)
    is_asking = task.get("status") == "requested" and caller.trust == transfer.sender
    take = functools.partial(_taken, facade, request, caller, served, transfer, body)
    if await _was_sent(facade, request, caller):
        await take(body)
    elif is_asking and transfer.state is State.DRAFT:
        message = await _asked_for_good(facade, transfer, caller)
        await take(message, {**_AS_JSON, **_made_on(transfer, request)})
    # In these states an active ServiceRequest has asked already: there is nothing to say.
    elif not (is_asking and transfer.state in {State.REQUESTED, State.RECEIVED}):
        [known] = await facade.as_tasks([transfer], caller.reader)
        more = {} if tree_of(body) is not None else _AS_JSON
        await take(decimals.dumps(_about(task, known)), {**more, **_A_TASK})
    return await _task(facade, transfer.id, caller, served, 201)


async def update_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    transfer_id = request.path_params["id"]
    transfer = await facade.transfer(transfer_id, caller, served)
    task = resource_of(body, facade.limits.depth_max)
    if task is not None and (task.get("resourceType"), task.get("id", transfer_id)) != ("Task", transfer_id):
        raise bad_request(
            "The body must be the Task that the address names: take it from a read, change status, owner's answer and reason.",
            "Task.id",
        )
    await _taken(facade, request, caller, served, transfer, body, body, _A_TASK)
    return await _task(facade, transfer_id, caller, served)


async def patch_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """A JSON Patch (RFC 6902) on the Task as it is read; what comes of it is decided as with PUT.

    The bytes of the message are what the patch makes of the present version; a repetition is known by the request.
    """
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    message = body
    # A repetition is answered as the first was: it need not fit the Task as it is now.
    if not await _was_sent(facade, request, caller):
        [task] = await facade.as_tasks([transfer], caller.reader)
        message = _patched(task, body)
    more = {**_AS_JSON, **_A_TASK, **_made_on(transfer, request)}
    await _taken(facade, request, caller, served, transfer, body, message, more)
    return await _task(facade, transfer.id, caller, served)


def _made_on(transfer: Transfer, request: Request) -> Mapping[str, str]:
    """If-Match, where the caller says none: what was made of a version counts only if that is still the present one."""
    said = request.headers.get(headers.IF_MATCH, "").strip()
    return {} if said not in {"", "*"} else {headers.IF_MATCH: f'W/"{transfer.version}"'}


_OPERATIONS = frozenset({"add", "remove", "replace", "test"})
_OPERATIONS_MAX = 100
"""A Task as it is read has some fifteen elements."""


def _patched(task: Tree, body: bytes) -> bytes:
    """What a patch makes of a Task: never more than the Task and the patch together. Raises FacadeError (400)."""
    try:
        operations = decimals.loads(body)
        _must_be_few_and_plain(operations)
        patched = jsonpatch.apply_patch(task, operations)
        if not isinstance(patched, dict) or (patched.get("resourceType"), patched.get("id")) != (
            "Task",
            task["id"],
        ):
            raise bad_request("A patch may not make another resource of it.", "Task.id")
        return decimals.dumps(patched)
    except (
        jsonpatch.JsonPatchException,
        jsonpatch.JsonPointerException,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,  # values some hundred levels deep
    ):
        raise bad_request(
            "The body must be a JSON Patch (RFC 6902) that fits the Task as it is read: a list of operations with op, path and value.",
            "",
            "structure",
        ) from None


def _must_be_few_and_plain(operations: Any) -> None:
    """Nothing that a decision needs is copied or moved, and what is copied onto itself doubles each time. Raises FacadeError (400)."""
    if not isinstance(operations, list):
        return
    if len(operations) > _OPERATIONS_MAX:
        raise bad_request(f"A patch may have {_OPERATIONS_MAX} operations.", "", "too-costly")
    others = {"copy", "move"} & {str(each.get("op")) for each in operations if isinstance(each, dict)}
    if others:
        raise bad_request(
            f"A patch of a Task is made of {', '.join(sorted(_OPERATIONS))}: say with add what {' and '.join(sorted(others))} would bring.",
            "op",
            "not-supported",
        )


async def _was_sent(facade: Facade, request: Request, caller: Caller) -> bool:
    """Whether the caller's trust has used this X-Request-Id. Raises FacadeError (400)."""
    return await queries.was_sent(facade.engine, caller.trust, request_id_of(request.headers))


async def _taken(
    facade: Facade,
    request: Request,
    caller: Caller,
    served: Served,
    transfer: Transfer,
    body: bytes,
    message: bytes,
    more: Mapping[str, str] | None = None,
) -> None:
    """Take a decision in, which may move this transfer and no other, whatever ``message`` names; ``body`` is the request's. A request that
    was sent before is answered as it was then. Raises FacadeError; a stale one (412) comes with the present version.
    """
    asked = f"{request.method} Task/{transfer.id}\n".encode() + body
    own = {headers.ABOUT: transfer.id, headers.REQUEST_SHA256: hashlib.sha256(asked).hexdigest()}
    try:
        answer(await facade.take(request, message, caller, {**(more or {}), **own}))
    except FacadeError as error:
        if error.status == 412:
            now = await facade.transfer(transfer.id, caller, served)
            error.headers = {"ETag": f'W/"{now.version}"'}
        raise


async def _focus(facade: Facade, task: Tree, caller: Caller, served: Served) -> Transfer:
    """The transfer that a new Task is about: by focus or basedOn, as a reference to a ServiceRequest here or by its identifier."""
    based = task.get("basedOn")
    references = [task.get("focus"), *(based if isinstance(based, list) else [])]
    for each in references:
        if not isinstance(each, dict):
            continue
        kind, _, name = str(each.get("reference", "")).removeprefix(f"{facade.base}/").partition("/")
        if kind == "ServiceRequest" and name and "/" not in name and "\x00" not in name:
            return await facade.transfer(name, caller, served)
        if token := token_of_identifier(each.get("identifier")):
            wanted = Wanted(identifiers=(token,), limit=1)
            found, more = await search.search(facade.engine, caller.trust, wanted)
            if more:
                raise bad_request(
                    "More than one request has this identifier: refer to ServiceRequest/{id}.", "Task.focus"
                )
            if not found:
                await facade.denied(caller, served, "unknown")
                raise not_found()
            return found[0]
    raise bad_request(
        "Say which request it is about: Task.focus with a reference to ServiceRequest/{id}.",
        "Task.focus",
        "required",
    )


def _about(task: Tree, known: Tree) -> Tree:
    """The Task with what the journey goes by: the transfer's own name, and whom it is for where it does not say. What version another
    server's Task has says nothing of the transfer's.
    """
    said = task.get("identifier")
    named = [each for each in (said if isinstance(said, list) else []) if isinstance(each, dict)]
    own = {"system": HUB_TRANSFER, "value": known["id"]}
    patient = {"for": known["for"]} if "for" in known else {}
    unversioned = {}
    if task.get("id") != known["id"] and isinstance(meta := task.get("meta"), dict):
        unversioned = {"meta": {name: value for name, value in meta.items() if name != "versionId"}}
    return {
        **patient,
        **task,
        **unversioned,
        "id": known["id"],
        "identifier": [own, *(each for each in named if each.get("system") != HUB_TRANSFER)],
    }


async def _asked_for_good(facade: Facade, transfer: Transfer, caller: Caller) -> bytes:
    """What the sender said of its draft last, with the request made active: the receiver must get all of it."""
    said = next(
        (
            each.resources
            for each in await search.said_of(facade.engine, [transfer])
            if each.trust == caller.trust
            and any(e["resource"]["resourceType"] == "ServiceRequest" for e in each.resources)
        ),
        [],
    )
    entries: list[Any] = [
        {**each, "resource": {**each["resource"], "status": "active"}}
        if each["resource"]["resourceType"] == "ServiceRequest"
        else each
        for each in said
    ]
    return decimals.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries})


async def _task(
    facade: Facade, transfer_id: str, caller: Caller, served: Served, status: int = 200
) -> Response:
    transfer = await facade.transfer(transfer_id, caller, served)
    [task] = await facade.as_tasks([transfer], caller.reader)
    location = {"Location": f"{facade.base}/Task/{transfer.id}"} if status == 201 else {}
    return fhir(task, status, location | validators(task, facade.now()))
