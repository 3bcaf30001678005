"""The interactions, one function each. They raise FacadeError where the answer is no."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import parse_qsl

from fastapi import Request, Response

from hub.domain.ids import OdsCode
from hub.domain.transfer import Transfer
from hub.domain.trust import TrustProfile
from hub.facade import searching, tasks
from hub.facade.access import Sees, sees
from hub.facade.capability import FHIR_JSON, Served
from hub.facade.errors import FacadeError, bad_request, information, not_found
from hub.facade.send import answer
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir import decimals
from hub.fhir.systems import ODS_ORGANISATION
from hub.fhir.tree import Tree
from hub.store import outbox, search
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
    system, bar, value = request.query_params.get("identifier", "").rpartition("|")
    if not bar or not value:
        raise bad_request("Name the stay: ?identifier=system|value.", "identifier", "required")
    stay = _tree(body)
    if stay is not None:
        named = [each for each in stay.get("identifier", ()) if isinstance(each, dict)]
        if not any(each.get("system") == system and each.get("value") == value for each in named):
            raise bad_request(
                "The identifier of the address must be one of the Encounter's own.", "Encounter.identifier"
            )
    return await process_message(facade, request, caller, served, body)


async def update_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    transfer_id = request.path_params["id"]
    transfer = await facade.transfer(transfer_id, caller, served)
    task = _tree(body)
    if task is not None and (task.get("resourceType"), task.get("id", transfer_id)) != ("Task", transfer_id):
        raise bad_request(
            "The body must be the Task that the address names: take it from a read, change status, owner's answer and reason.",
            "Task.id",
        )
    try:
        answer(await facade.take(request, body, caller))
    except FacadeError as error:
        if error.status == 412:
            transfer = await facade.transfer(transfer_id, caller, served)
            error.headers = {"ETag": _etag(transfer)}
        raise
    return await _task(facade, await facade.transfer(transfer_id, caller, served), caller)


async def read_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    await facade.seen(caller, served, transfer)
    if request.headers.get("if-none-match") == _etag(transfer):
        return Response(status_code=304, headers=_validators(transfer))
    return await _task(facade, transfer, caller)


async def history_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    await facade.seen(caller, served, transfer)
    then = tasks.versions(transfer, caller.trust)[::-1]
    shown = await facade.as_tasks(then, caller.trust)
    entries = [
        {
            "fullUrl": f"{facade.base}/Task/{transfer.id}",
            "resource": task,
            "request": {"method": "PUT" if version.version > 1 else "POST", "url": f"Task/{transfer.id}"},
            "response": {
                "status": "200",
                "etag": _etag(version),
                "lastModified": task["meta"]["lastUpdated"],
            },
        }
        for version, task in zip(then, shown, strict=True)
    ]
    return fhir({"resourceType": "Bundle", "type": "history", "total": len(entries), "entry": entries})


async def vread_task(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    wanted = request.path_params["version"]
    then = [each for each in tasks.versions(transfer, caller.trust) if str(each.version) == wanted]
    if not then:
        await facade.denied(caller, served, "unknown", transfer)
        raise not_found()
    await facade.seen(caller, served, transfer, version=then[0].version)
    return await _task(facade, then[0], caller)


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
        found, more = await search.search(facade.engine, caller.trust, asked.wanted)
    total = None
    if asked.count_only or asked.total:
        total = await search.count(facade.engine, caller.trust, asked.wanted)
    await facade.seen(caller, served, parameters=sorted({name for name, _ in asked.asked}), found=len(found))
    shown = await _SHOWN_AS[served.resource](facade, found, caller.trust)
    included: list[Tree] = []
    if "Task:focus" in asked.includes:
        included += await facade.as_requests(found, caller.trust)
    if asked.includes - {"Task:focus"}:
        included += await facade.as_patients(found, caller.trust)
    return fhir(
        searching.page(
            asked, shown, facade.base, included=included, after=found[-1] if more else None, total=total
        )
    )


_SHOWN_AS: Mapping[str, Callable[[Facade, Sequence[Transfer], OdsCode], Awaitable[list[Tree]]]] = {
    "Task": Facade.as_tasks,
    "ServiceRequest": Facade.as_requests,
    "Patient": Facade.as_patients,
}


async def read_request(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del body
    transfer = await facade.transfer(request.path_params["id"], caller, served)
    found = await facade.as_requests([transfer], caller.trust)
    if not found:
        await facade.denied(caller, served, "not-readable", transfer)
        raise not_found()
    await facade.seen(caller, served, transfer)
    return fhir(found[0], headers=_validators(transfer))


async def read_patient(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """A legitimate relationship is a transfer that both are part of; the last that may be read counts."""
    del body
    wanted = Wanted(persons=(request.path_params["id"],), limit=searching.COUNT_MAX)
    transfers, _ = await search.search(facade.engine, caller.trust, wanted)
    found = await facade.as_patients(transfers, caller.trust)
    if not found:
        await facade.denied(caller, served, "no-relationship", transfers[0] if transfers else None)
        raise not_found()
    await facade.seen(caller, served, transfers[0])
    return fhir(found[0])


async def inbox(facade: Facade, request: Request, caller: Caller, served: Served, body: bytes) -> Response:
    del served, body
    profile = facade.directory[caller.trust]
    if profile.doors.outward != "polled":
        raise FacadeError(
            422,
            "SEND_UNPROCESSABLE_ENTITY",
            "not-supported",
            f"Your trust's messages go to its Kafka topic {profile.inbox_topic}. To fetch them here instead, ask the hub team "
            "to set doors.outward to polled in your trust's profile.",
        )
    count = request.query_params.get("_count", str(searching.COUNT))
    if not count.isascii() or not count.isdigit() or not 1 <= int(count[:9]) <= searching.COUNT_MAX:
        raise bad_request(f"_count must be a number from 1 to {searching.COUNT_MAX}.", "_count", "value")
    rows = await outbox.pending(facade.engine, caller.trust, int(count), facade.now())
    entries = [
        {"fullUrl": f"{facade.base}/Bundle/{row.seq}", "resource": _numbered(row.payload, row.seq)}
        for row in rows
    ]
    bundle: Tree = {
        "resourceType": "Bundle",
        "type": "collection",
        "link": [{"relation": "self", "url": f"{facade.base}/$inbox?_count={int(count)}"}],
    }
    return fhir(bundle | ({"entry": entries} if entries else {}))


async def acknowledge(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    del request
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
    if transfer and sees(transfer, caller.trust, facade.now()) is not Sees.CLINICAL:
        await facade.denied(caller, served, "not-readable", transfer)
        raise not_found()
    await facade.seen(caller, served, transfer, message=seq)
    return fhir(_numbered(payload, seq))


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


HANDLERS: Mapping[str, Handler] = {
    "process_message": process_message,
    "create_bundle": process_message,
    "read_bundle": read_bundle,
    "inbox": inbox,
    "acknowledge": acknowledge,
    "update_encounter": update_encounter,
    "search_task": search_transfers,
    "search_task_post": search_transfers,
    "search_request": search_transfers,
    "read_request": read_request,
    "search_patient": search_transfers,
    "read_patient": read_patient,
    "read_task": read_task,
    "update_task": update_task,
    "history_task": history_task,
    "vread_task": vread_task,
    "search_organization": search_organization,
    "read_organization": read_organization,
}


def _named_messages(body: bytes) -> list[int]:
    """The numbers in a Parameters resource; none if one of them cannot be a number of ours."""
    tree = _tree(body) or {}
    parameters = tree.get("parameter")
    named = [
        str(each.get("valueId")) if isinstance(each, dict) and each.get("name") == "message" else ""
        for each in (parameters if isinstance(parameters, list) else [])
    ]
    return [] if any(_seq(each) is None for each in named) else [int(each) for each in named]


def _seq(text: str) -> int | None:
    """A number of the outbox, which is a bigint."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _tree(body: bytes) -> Tree | None:
    """The body as far as it is a JSON object: the journey says what is wrong with anything else."""
    try:
        found = decimals.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _numbered(payload: bytes, seq: int) -> Tree:
    """A message of the inbox under its number: that is its address and what is acknowledged."""
    bundle: Tree = decimals.loads(payload)
    return bundle | {"id": str(seq)}


async def _task(facade: Facade, transfer: Transfer, caller: Caller) -> Response:
    [task] = await facade.as_tasks([transfer], caller.trust)
    return fhir(task, headers=_validators(transfer))


def _validators(transfer: Transfer) -> dict[str, str]:
    changed_at = transfer.changed_at or transfer.requested_at
    return {"ETag": _etag(transfer), "Last-Modified": changed_at.strftime("%a, %d %b %Y %H:%M:%S GMT")}


def _etag(transfer: Transfer) -> str:
    return f'W/"{transfer.version}"'


def _organisation(profile: TrustProfile) -> Tree:
    return {
        "resourceType": "Organization",
        "id": profile.ods,
        "identifier": [{"system": ODS_ORGANISATION, "value": OdsCode(profile.ods)}],
        "active": True,
        "name": profile.name,
    }


def fhir(content: Tree | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """FHIR JSON, as a tree or as bytes."""
    body = content if isinstance(content, bytes) else decimals.dumps(content)
    return Response(body, status, media_type=f"{FHIR_JSON}; charset=utf-8", headers=dict(headers or {}))
