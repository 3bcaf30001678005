"""The interactions by name, and those that read transfers. They raise FacadeError where the answer is no."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from fastapi import Request, Response

from hub.domain.transfer import Transfer
from hub.facade import asking, auditing, glass, inbox, places, searching, tasks, wishes
from hub.facade.access import Reader, Sees, sees
from hub.facade.answers import asked_with, fhir, is_unchanged, resource_of, validators
from hub.facade.capability import ONE_VERSION, Served
from hub.facade.errors import bad_request, not_found
from hub.facade.send import answer
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir import decimals, headers
from hub.fhir.tree import Tree
from hub.store import search
from hub.store.search import Wanted

Handler = Callable[[Facade, Request, Caller, Served, bytes], Awaitable[Response]]


async def process_message(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del served
    return fhir(answer(await facade.take(request, body, caller)))


async def update_encounter(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del served
    system, bar, value = request.query_params.get("identifier", "").rpartition("|")
    if not bar or not value:
        raise bad_request("Name the stay: ?identifier=system|value.", "identifier", "required")
    stay = resource_of(body, facade.limits.depth_max)
    if stay is not None:
        if stay.get("resourceType") != "Encounter":
            raise bad_request("Send an Encounter.", "resourceType")
        said = stay.get("identifier")
        named = [each for each in (said if isinstance(said, list) else ()) if isinstance(each, dict)]
        if not any(each.get("system") == system and each.get("value") == value for each in named):
            raise bad_request(
                "The identifier of the address must be one of the Encounter's own.", "Encounter.identifier"
            )
    return fhir(answer(await facade.take(request, body, caller, {headers.RESOURCE: "Encounter"})))


async def read_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    await facade.seen(caller, served, transfer)
    [task] = await facade.as_tasks([transfer], caller.reader)
    return _given(facade, request, task)


async def search_transfers(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """Tasks, ServiceRequests or Patients: each is looked for as a transfer, and shown as what was asked for."""
    said = asked_with(request, body, served.resource, facade.office)
    asked = searching.question(served.resource, said.parameters, strict=said.strict, base=facade.base)
    for each in asked.includes:
        await facade.must(caller, served, searching.INCLUDED[each], "r")
    found: list[Transfer] = []
    more = False
    if not asked.count_only:
        found, more = await search.search(facade.engine, caller.trust, asked.wanted, caller.broken)
    total = None
    if asked.count_only or asked.total:
        total = await search.count(facade.engine, caller.trust, asked.wanted, caller.broken)
    await facade.searched(caller, served, found, parameters=sorted({name for name, _ in asked.asked}))
    shown = await _SHOWN_AS[served.resource](facade, found, caller.reader)
    if served.resource in searching.PARTS and (ids := {v for n, v in asked.asked if n == "_id"}):
        named = {each for several in ids for each in several.split(",")}
        shown = [each for each in shown if each["id"] in named]
    included: list[Tree] = []
    if "Task:focus" in asked.includes:
        included += await facade.as_requests(found, caller.reader)
    if asked.includes - {"Task:focus"}:
        included += await facade.as_patients(found, caller.reader)
    # Tasks and who made their versions are all that outlives its content.
    has_content = served.resource not in {"Task", "Provenance"} or asked.includes
    gone = await search.aged_out(facade.engine, [each.id for each in found]) if has_content else ()
    return fhir(
        searching.page(
            asked,
            shown,
            facade.base,
            included=included,
            after=searching.place_of(found[-1]) if more else None,
            total=total,
            aged_out=len(gone),
            sealed=facade.office.sealed if said.in_a_form else None,
        )
    )


_SHOWN_AS: Mapping[str, Callable[[Facade, Sequence[Transfer], Reader], Awaitable[list[Tree]]]] = {
    "Task": Facade.as_tasks,
    "ServiceRequest": Facade.as_requests,
    "Patient": Facade.as_patients,
    "Encounter": Facade.as_encounters,
    "Provenance": Facade.as_provenance,
}


async def read_encounter(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """The id is the transfer's and the end: {transfer}-sender, {transfer}-receiver."""
    del body
    return await _part(facade, request, caller, served, facade.as_encounters)


async def read_provenance(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """The id is the transfer's and the version: {transfer}-{version}."""
    del body
    return await _part(facade, request, caller, served, facade.as_provenance)


async def _part(
    facade: Facade,
    request: Request,
    caller: Caller,
    served: Served,
    shown: Callable[[Sequence[Transfer], Reader], Awaitable[list[Tree]]],
) -> Response:
    name = request.path_params["id"]
    transfer = await facade.transfer(name.rpartition("-")[0], caller, served)
    found = [each for each in await shown([transfer], caller.reader) if each["id"] == name]
    if not found:
        raise await facade.missing(caller, served, transfer, "unknown")
    await facade.seen(caller, served, transfer)
    return _given(facade, request, found[0])


async def history(facade: Facade, request: Request, caller: Caller, served: Served, body: bytes) -> Response:
    del body
    transfer, versions = await _then(facade, request, caller, served)
    await facade.seen(caller, served, transfer)
    return fhir(_history(versions[::-1], facade.base))


async def vread(facade: Facade, request: Request, caller: Caller, served: Served, body: bytes) -> Response:
    del body
    transfer, versions = await _then(facade, request, caller, served)
    wanted = request.path_params["version"]
    found = [each for each in versions if each["meta"]["versionId"] == wanted]
    if not found:
        await facade.denied(caller, served, "unknown", transfer)
        raise not_found()
    await facade.seen(caller, served, transfer, version=found[0]["meta"]["versionId"])
    return fhir(found[0], headers=validators(found[0], facade.now()))


async def _then(
    facade: Facade, request: Request, caller: Caller, served: Served
) -> tuple[Transfer, list[Tree]]:
    """Every version of a resource that the caller may see, oldest first, and the transfer it is read by. Raises FacadeError (404)."""
    name = request.path_params["id"]
    if served.resource == "Patient":
        transfer = await _last_with(facade, name, caller, served)
        [versions] = await facade.as_patients_then([transfer], caller.reader)
    elif served.resource == "Encounter":
        transfer = await facade.transfer(name.rpartition("-")[0], caller, served)
        stays = await facade.as_encounters_then([transfer], caller.reader)
        versions = next((each for each in stays if each and each[0]["id"] == name), [])
    else:
        transfer = await facade.transfer(name, caller, served)
        versions = await (
            facade.as_requests_then(transfer, caller.reader)
            if served.resource == "ServiceRequest"
            else facade.as_tasks(tasks.versions(transfer, caller.reader), caller.reader)
        )
    if not versions:
        raise await facade.missing(caller, served, transfer, "not-readable")
    return transfer, versions


async def _last_with(facade: Facade, person_id: str, caller: Caller, served: Served) -> Transfer:
    """The last transfer by which a patient may be read. Raises FacadeError (404)."""
    wanted = Wanted(persons=(person_id,), limit=searching.COUNT_MAX)
    transfers, _ = await search.search(facade.engine, caller.trust, wanted, caller.broken)
    for each in transfers:
        if sees(each, caller.reader, facade.now()) >= Sees.MINIMUM:
            return each
    await facade.denied(caller, served, "no-relationship", transfers[0] if transfers else None)
    raise not_found()


def _history(versions: Sequence[Tree], base: str) -> Tree:
    """A history Bundle, the last version first."""
    entries = [
        {
            "fullUrl": f"{base}/{each['resourceType']}/{each['id']}",
            "resource": each,
            "request": {
                "method": "PUT" if each["meta"]["versionId"] != "1" else "POST",
                "url": f"{each['resourceType']}/{each['id']}",
            },
            "response": {
                "status": "200",
                "etag": f'W/"{each["meta"]["versionId"]}"',
                **({"lastModified": at} if (at := each["meta"].get("lastUpdated")) else {}),
            },
        }
        for each in versions
    ]
    return {"resourceType": "Bundle", "type": "history", "total": len(entries), "entry": entries}


async def read_request(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    found = await facade.as_requests([transfer], caller.reader)
    if not found:
        raise await facade.missing(caller, served, transfer, "not-readable")
    await facade.seen(caller, served, transfer)
    return _given(facade, request, found[0])


async def read_patient(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """A legitimate relationship is a transfer that both are part of; the last that may be read counts."""
    del body
    transfer = await _last_with(facade, request.path_params["id"], caller, served)
    found = await facade.as_patients([transfer], caller.reader)
    if not found:
        raise await facade.missing(caller, served, transfer, "not-readable")
    await facade.seen(caller, served, transfer)
    return _given(facade, request, found[0])


def _given(facade: Facade, request: Request, resource: Tree) -> Response:
    """A resource, or 304 where the caller has this version."""
    if is_unchanged(request.headers, resource):
        return Response(status_code=304, headers=validators(resource, facade.now()))
    return fhir(resource, headers=validators(resource, facade.now()))


def _only_version(read: Handler) -> Handler:
    """History and vread of what has one version here."""

    async def handler(
        facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
    ) -> Response:
        response = await read(facade, request, caller, served, body)
        if response.status_code != 200:
            return response
        found: Tree = decimals.loads(bytes(response.body))
        only = {**found, "meta": {**found.get("meta", {}), "versionId": "1"}}
        if served.interaction == "history-instance":
            return fhir(_history([only], facade.base))
        if request.path_params["version"] != "1":
            raise not_found()
        return fhir(only, headers={"ETag": 'W/"1"'})

    return handler


_READ: Mapping[str, Handler] = {
    "Bundle": inbox.read_bundle,
    "MessageHeader": inbox.read_message_header,
    "Provenance": read_provenance,
    "Organization": places.read_organization,
    "Location": places.read_location,
}

HANDLERS: Mapping[str, Handler] = {
    "process_message": process_message,
    "create_bundle": process_message,
    "read_bundle": inbox.read_bundle,
    "inbox": inbox.inbox,
    "acknowledge": inbox.acknowledge,
    "break_glass": glass.break_the_glass,
    "update_encounter": update_encounter,
    "search_task": search_transfers,
    "search_task_post": search_transfers,
    "search_request": search_transfers,
    "read_request": read_request,
    "search_patient": search_transfers,
    "read_patient": read_patient,
    "read_task": read_task,
    "update_task": asking.update_task,
    "patch_task": asking.patch_task,
    "create_task": asking.create_task,
    "create_request": asking.create_request,
    "history_task": history,
    "vread_task": vread,
    "create_subscription": wishes.create_subscription,
    "read_subscription": wishes.read_subscription,
    "search_subscription": wishes.search_subscription,
    "update_subscription": wishes.update_subscription,
    "end_subscription": wishes.end_subscription,
    "subscription_status": wishes.subscription_status,
    "subscription_events": wishes.subscription_events,
    "search_encounter": search_transfers,
    "read_encounter": read_encounter,
    "search_provenance": search_transfers,
    "read_provenance": read_provenance,
    "search_message_header": inbox.search_message_header,
    "read_message_header": inbox.read_message_header,
    "history_request": history,
    "vread_request": vread,
    "history_encounter": history,
    "vread_encounter": vread,
    "history_patient": history,
    "vread_patient": vread,
    "search_audit": auditing.search_audit,
    "search_audit_post": auditing.search_audit,
    "read_audit": auditing.read_audit,
    "search_location": places.search_location,
    "read_location": places.read_location,
    "search_organization": places.search_organization,
    "read_organization": places.read_organization,
    **{f"history_{name}": _only_version(_READ[resource]) for resource, name in ONE_VERSION.items()},
    **{f"vread_{name}": _only_version(_READ[resource]) for resource, name in ONE_VERSION.items()},
}
