"""The interactions, one function each. They raise FacadeError where the answer is no."""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Request, Response
from sqlalchemy import Row

from hub.domain.ids import OdsCode, time_ordered_id
from hub.domain.transfer import Transfer
from hub.domain.trust import TrustProfile
from hub.facade import asking, searching, tasks, wishes
from hub.facade.access import MAY_BREAK_THE_GLASS, Reader, Sees, sees
from hub.facade.answers import fhir, is_unchanged, tree_of, validators
from hub.facade.capability import ONE_VERSION, Served
from hub.facade.errors import FacadeError, bad_request, forbidden, information, not_found
from hub.facade.send import answer
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir import decimals
from hub.fhir.outgoing import instant
from hub.fhir.systems import NHS_NUMBER, ODS_ORGANISATION, ODS_SITE, canonical_system
from hub.fhir.tree import Tree
from hub.store import break_glass, outbox, queries, search
from hub.store.break_glass import REASON_MIN, Grant
from hub.store.search import Token, Wanted

Handler = Callable[[Facade, Request, Caller, Served, bytes], Awaitable[Response]]


async def process_message(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del served
    return fhir(answer(await facade.take(request, body, caller)))


async def update_encounter(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    system, bar, value = request.query_params.get("identifier", "").rpartition("|")
    if not bar or not value:
        raise bad_request("Name the stay: ?identifier=system|value.", "identifier", "required")
    stay = tree_of(body)
    if stay is not None:
        named = [each for each in stay.get("identifier", ()) if isinstance(each, dict)]
        if not any(each.get("system") == system and each.get("value") == value for each in named):
            raise bad_request(
                "The identifier of the address must be one of the Encounter's own.", "Encounter.identifier"
            )
    return await process_message(facade, request, caller, served, body)


async def read_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    await facade.seen(caller, served, transfer)
    [task] = await facade.as_tasks([transfer], caller.reader)
    return _given(request, task)


async def search_transfers(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """Tasks, ServiceRequests or Patients: each is looked for as a transfer, and shown as what was asked for."""
    parameters = list(request.query_params.multi_items())
    if request.method == "POST":
        try:
            parameters += parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=bool(body))
        except ValueError:
            raise bad_request("Send the parameters as application/x-www-form-urlencoded.") from None
        if any("\x00" in value for _, value in parameters):
            raise bad_request("A value holds U+0000, which nothing here has.")
    strict = "handling=strict" in request.headers.get("prefer", "").replace(" ", "").lower()
    asked = searching.question(served.resource, [each for each in parameters if each[1]], strict=strict)
    found: list[Transfer] = []
    more = False
    if not asked.count_only:
        found, more = await search.search(facade.engine, caller.trust, asked.wanted, caller.broken)
    total = None
    if asked.count_only or asked.total:
        total = await search.count(facade.engine, caller.trust, asked.wanted, caller.broken)
    await facade.seen(caller, served, parameters=sorted({name for name, _ in asked.asked}), found=len(found))
    shown = await _SHOWN_AS[served.resource](facade, found, caller.reader)
    if served.resource in searching.PARTS and (ids := {v for n, v in asked.asked if n == "_id"}):
        named = {each for several in ids for each in several.split(",")}
        shown = [each for each in shown if each["id"] in named]
    included: list[Tree] = []
    if "Task:focus" in asked.includes:
        included += await facade.as_requests(found, caller.reader)
    if asked.includes - {"Task:focus"}:
        included += await facade.as_patients(found, caller.reader)
    return fhir(
        searching.page(
            asked, shown, facade.base, included=included, after=found[-1] if more else None, total=total
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
        await facade.denied(caller, served, "unknown", transfer)
        raise not_found()
    await facade.seen(caller, served, transfer)
    return _given(request, found[0])


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
    return fhir(found[0], headers=validators(found[0]))


async def _then(
    facade: Facade, request: Request, caller: Caller, served: Served
) -> tuple[Transfer, list[Tree]]:
    """Every version of a resource that the caller may see, oldest first, and the transfer it is read by. Raises FacadeError (404)."""
    name = request.path_params["id"]
    if served.resource == "Patient":
        transfer = await _last_with(facade, name, caller, served)
        versions = await facade.as_patient_then(transfer, caller.reader)
    elif served.resource == "Encounter":
        transfer = await facade.transfer(name.rpartition("-")[0], caller, served)
        every = await facade.as_encounters([transfer], caller.reader, every=True)
        versions = [each for each in every if each["id"] == name]
    else:
        transfer = await facade.transfer(name, caller, served)
        versions = await (
            facade.as_requests_then(transfer, caller.reader)
            if served.resource == "ServiceRequest"
            else facade.as_tasks(tasks.versions(transfer, caller.reader), caller.reader)
        )
    if not versions:
        await facade.denied(caller, served, "not-readable", transfer)
        raise not_found()
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
        await facade.denied(caller, served, "not-readable", transfer)
        raise not_found()
    await facade.seen(caller, served, transfer)
    return _given(request, found[0])


async def read_patient(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """A legitimate relationship is a transfer that both are part of; the last that may be read counts."""
    del body
    transfer = await _last_with(facade, request.path_params["id"], caller, served)
    [patient] = await facade.as_patients([transfer], caller.reader)
    await facade.seen(caller, served, transfer)
    return _given(request, patient)


def _given(request: Request, resource: Tree) -> Response:
    """A resource, or 304 where the caller has this version."""
    if is_unchanged(request.headers, resource):
        return Response(status_code=304, headers=validators(resource))
    return fhir(resource, headers=validators(resource))


async def break_the_glass(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """Parameters ``patient`` (an identifier) and ``reason`` for sixty minutes of a patient whose hospital this is not."""
    del request
    if caller.person is None or caller.role not in MAY_BREAK_THE_GLASS:
        await facade.denied(caller, served, "role")
        raise forbidden("Only a clinician who signed in may break the glass.")
    said = {each.get("name"): each for each in _parameters(body)}
    reason = str(said.get("reason", {}).get("valueString", "")).strip()
    named = said.get("patient", {}).get("valueIdentifier")
    if len(reason) < REASON_MIN or "\x00" in reason:
        raise bad_request(
            f"Say why you must see this patient, in {REASON_MIN} characters or more: parameter reason, valueString.",
            "Parameters.parameter.where(name='reason')",
            "required",
        )
    if not isinstance(named, dict) or not isinstance(named.get("value"), str) or "\x00" in str(named):
        raise bad_request(
            "Name the patient: parameter patient, valueIdentifier with system and value.",
            "Parameters.parameter.where(name='patient')",
            "required",
        )
    token = Token(canonical_system(str(named.get("system") or NHS_NUMBER)), named["value"])
    persons = await search.persons(facade.engine, caller.trust, token)
    if not persons:
        await facade.denied(caller, served, "unknown")
        raise not_found()
    now = facade.now()
    given = Grant(
        time_ordered_id(now, "break-glass", caller.client_id, uuid.uuid4().hex),
        caller.trust,
        caller.person.id,
        caller.person.role_id,
        persons[0],
        reason[:2000],
        now,
    )
    await break_glass.grant(facade.engine, given, persons, "rest", facade.directory)
    answer_: Tree = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "grant", "valueId": given.id},
            {"name": "until", "valueInstant": instant(given.expires_at)},
            *({"name": "patient", "valueReference": {"reference": f"Patient/{each}"}} for each in persons),
        ],
    }
    return fhir(answer_)


async def inbox(facade: Facade, request: Request, caller: Caller, served: Served, body: bytes) -> Response:
    del served, body
    _systems_only(caller)
    profile = facade.directory[caller.trust]
    if profile.doors.outward != "polled":
        raise FacadeError(
            422,
            "SEND_UNPROCESSABLE_ENTITY",
            "not-supported",
            f"Your trust's messages go to its Kafka topic {profile.inbox_topic}. To fetch them here instead, ask the hub team "
            "to set doors.outward to polled in your trust's profile.",
        )
    count = _count(request.query_params.get("_count", str(searching.COUNT)))
    rows = await outbox.pending(facade.engine, caller.trust, count, facade.now())
    entries = [
        {"fullUrl": f"{facade.base}/Bundle/{row.seq}", "resource": _numbered(row.payload, row.seq)}
        for row in rows
    ]
    bundle: Tree = {
        "resourceType": "Bundle",
        "type": "collection",
        "link": [{"relation": "self", "url": f"{facade.base}/$inbox?_count={count}"}],
    }
    return fhir(bundle | ({"entry": entries} if entries else {}))


async def acknowledge(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del request
    _systems_only(caller)
    seqs = _named_messages(body)
    if not seqs:
        raise bad_request(
            'Send Parameters: {"resourceType": "Parameters", "parameter": [{"name": "message", "valueId": "17"}]}, with the id of '
            "each Bundle that you have.",
            "Parameters.parameter",
        )
    done, strange = await outbox.fetched(facade.engine, caller.trust, seqs, caller.client_id, facade.now())
    if strange:
        await facade.denied(caller, served, "unknown")
        raise not_found()
    return fhir(information(f"{done} acknowledged, {len(set(seqs)) - done} had been before."))


async def read_bundle(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    seq = _seq(request.path_params["id"]) or 0
    found = await outbox.message_of(facade.engine, caller.trust, seq)
    if found is None:
        await facade.denied(caller, served, "unknown")
        raise not_found()
    payload, transfer_id = found
    transfer = await facade.transfer(transfer_id, caller, served) if transfer_id else None
    # What waits in the inbox is given whatever has become of its transfer; looking back later is reading like any other.
    if transfer and sees(transfer, caller.reader, facade.now()) is not Sees.CLINICAL:
        await facade.denied(caller, served, "not-readable", transfer)
        raise not_found()
    await facade.seen(caller, served, transfer, message=seq)
    return fhir(_numbered(payload, seq))


async def read_message_header(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """The header of a message of your inbox, under the message's number."""
    del body
    seq = _seq(request.path_params["id"]) or 0
    found = await outbox.message_of(facade.engine, caller.trust, seq)
    payload, transfer_id = found or (b"", None)
    transfer = await facade.transfer(transfer_id, caller, served) if transfer_id else None
    if transfer is None:
        await facade.denied(caller, served, "unknown")
        raise not_found()
    await facade.seen(caller, served, transfer, message=seq)
    return fhir(_header(payload, seq, transfer.id))


async def search_message_header(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """The headers of your inbox's messages, waiting or had, the last first; `focus` narrows to one transfer."""
    del body
    said = request.query_params
    count = _count(said.get("_count", str(searching.COUNT)))
    before = said.get("_page", "")
    if before and _seq(before) is None:
        raise bad_request(
            "_page is not one of this server's: follow the link `next` as it is.", "_page", "value"
        )
    focus = said.get("focus", "").removeprefix(f"{facade.base}/").removeprefix("Task/") or None
    rows = await outbox.of_trust(
        facade.engine, caller.trust, int(before) if before else None, count + 1, focus
    )
    shown: list[Row[Any]] = []
    for row in rows[:count]:
        transfer = await queries.transfer(facade.engine, row.transfer_id)
        if sees(transfer, caller.reader, facade.now()) > Sees.NOTHING:
            shown.append(row)
    await facade.seen(caller, served, parameters=sorted({*said} & {"focus", "_count"}), found=len(shown))
    address = f"{facade.base}/MessageHeader"
    kept = [(name, value) for name, value in said.multi_items() if name in {"focus", "_count"}]
    links = [{"relation": "self", "url": f"{address}?{urlencode(kept)}" if kept else address}]
    if len(rows) > count:
        following = [*kept, ("_page", str(rows[count - 1].seq))]
        links.append({"relation": "next", "url": f"{address}?{urlencode(following)}"})
    entries = [
        {
            "fullUrl": f"{address}/{row.seq}",
            "resource": _header(row.payload, row.seq, row.transfer_id),
            "search": {"mode": "match"},
        }
        for row in shown
    ]
    bundle: Tree = {"resourceType": "Bundle", "type": "searchset", "link": links}
    return fhir(bundle | ({"entry": entries} if entries else {}))


def _header(payload: bytes, seq: int, transfer_id: str) -> Tree:
    """A message's header by itself: what it is about can be read here."""
    header: Tree = decimals.loads(payload)["entry"][0]["resource"]
    return {**header, "id": str(seq), "focus": [{"reference": f"Task/{transfer_id}"}]}


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= searching.COUNT_MAX:
        raise bad_request(f"_count must be a number from 1 to {searching.COUNT_MAX}.", "_count", "value")
    return int(text)


def _sites(facade: Facade) -> list[Tree]:
    return [
        {
            "resourceType": "Location",
            "id": site.ods,
            "identifier": [{"system": ODS_SITE, "value": site.ods}],
            "status": "active",
            "name": site.name,
            "mode": "instance",
            "managingOrganization": {"reference": f"Organization/{profile.ods}", "type": "Organization"},
        }
        for profile in facade.directory
        for site in profile.sites
    ]


async def search_location(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """The places that the trusts run, as their profiles say."""
    del body, caller, served
    found = _sites(facade)
    if wanted := request.query_params.get("identifier"):
        codes = {each.rpartition("|")[2].upper() for each in wanted.split(",")}
        found = [each for each in found if each["id"] in codes]
    if name := request.query_params.get("name"):
        found = [each for each in found if each["name"].lower().startswith(name.lower())]
    if organisation := request.query_params.get("organization"):
        owners = {f"Organization/{each.rpartition('/')[2].upper()}" for each in organisation.split(",")}
        found = [each for each in found if each["managingOrganization"]["reference"] in owners]
    entries = [
        {"fullUrl": f"{facade.base}/Location/{each['id']}", "resource": each, "search": {"mode": "match"}}
        for each in found
    ]
    bundle: Tree = {"resourceType": "Bundle", "type": "searchset", "total": len(entries)}
    return fhir(bundle | ({"entry": entries} if entries else {}))


async def read_location(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body, caller, served
    found = [each for each in _sites(facade) if each["id"] == request.path_params["id"]]
    if not found:
        raise not_found()
    return fhir(found[0])


async def search_organization(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body, caller, served
    found = list(facade.directory)
    if wanted := request.query_params.get("identifier"):
        codes = {each.rpartition("|")[2].upper() for each in wanted.split(",")}
        found = [each for each in found if each.ods in codes]
    if name := request.query_params.get("name"):
        found = [each for each in found if each.name.lower().startswith(name.lower())]
    entries = [
        {
            "fullUrl": f"{facade.base}/Organization/{each.ods}",
            "resource": _organisation(each),
            "search": {"mode": "match"},
        }
        for each in found
    ]
    bundle: Tree = {"resourceType": "Bundle", "type": "searchset", "total": len(entries)}
    return fhir(bundle | ({"entry": entries} if entries else {}))


async def read_organization(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body, caller, served
    if (ods := request.path_params["id"]) not in facade.directory:
        raise not_found()
    return fhir(_organisation(facade.directory[ods]))


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
    "Bundle": read_bundle,
    "MessageHeader": read_message_header,
    "Provenance": read_provenance,
    "Organization": read_organization,
    "Location": read_location,
}

HANDLERS: Mapping[str, Handler] = {
    "process_message": process_message,
    "create_bundle": process_message,
    "read_bundle": read_bundle,
    "inbox": inbox,
    "acknowledge": acknowledge,
    "break_glass": break_the_glass,
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
    "search_message_header": search_message_header,
    "read_message_header": read_message_header,
    "history_request": history,
    "vread_request": vread,
    "history_encounter": history,
    "vread_encounter": vread,
    "history_patient": history,
    "vread_patient": vread,
    "search_location": search_location,
    "read_location": read_location,
    "search_organization": search_organization,
    "read_organization": read_organization,
    **{f"history_{name}": _only_version(_READ[resource]) for resource, name in ONE_VERSION.items()},
    **{f"vread_{name}": _only_version(_READ[resource]) for resource, name in ONE_VERSION.items()},
}


def _systems_only(caller: Caller) -> None:
    """What a trust's systems fetch holds whole messages. Raises FacadeError (403)."""
    if caller.person is not None:
        raise forbidden("Messages are fetched by your trust's systems, not by people.")


def _parameters(body: bytes) -> list[Tree]:
    """What a Parameters resource holds; nothing if it is none."""
    found = (tree_of(body) or {}).get("parameter")
    sound = isinstance(found, list) and all(isinstance(each, dict) for each in found)
    return found if sound and found else []


def _named_messages(body: bytes) -> list[int]:
    """The numbers in a Parameters resource; none if one of them cannot be a number of ours."""
    named = [str(each.get("valueId")) if each.get("name") == "message" else "" for each in _parameters(body)]
    return [] if any(_seq(each) is None for each in named) else [int(each) for each in named]


def _seq(text: str) -> int | None:
    """A number of the outbox, which is a bigint."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _numbered(payload: bytes, seq: int) -> Tree:
    """A message of the inbox under its number: that is its address and what is acknowledged."""
    bundle: Tree = decimals.loads(payload)
    return bundle | {"id": str(seq)}


def _organisation(profile: TrustProfile) -> Tree:
    return {
        "resourceType": "Organization",
        "id": profile.ods,
        "identifier": [{"system": ODS_ORGANISATION, "value": OdsCode(profile.ods)}],
        "active": True,
        "name": profile.name,
    }
