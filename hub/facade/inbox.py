"""What the hub told a trust: the polled inbox, and its messages looked at again, whole or by their headers."""

from collections.abc import Sequence
from urllib.parse import urlencode

from fastapi import Request, Response

from hub.facade import errors, searching
from hub.facade.access import Sees, sees
from hub.facade.answers import asked_with, fhir, parameters_of, searchset
from hub.facade.capability import Served
from hub.facade.errors import FacadeError, bad_request, gone, information, not_found
from hub.facade.service import Facade
from hub.facade.tokens import Caller
from hub.fhir import decimals
from hub.fhir.tree import Tree
from hub.store import outbox, search
from hub.store.search import Wanted

_NAMED_MAX = 20
_WHY = "Messages are fetched by your trust's systems, not by people."


async def inbox(facade: Facade, request: Request, caller: Caller, served: Served, body: bytes) -> Response:
    del body
    caller.must_be_a_system(_WHY)
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
    # Whoever fetches has seen it, whether or not they ever say that they have it.
    await facade.handed_out(caller, served, await outbox.about(facade.engine, [row.seq for row in rows]))
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
    caller.must_be_a_system(_WHY)
    seqs = _named_messages(body)
    if not seqs:
        raise bad_request(
            'Send Parameters: {"resourceType": "Parameters", "parameter": [{"name": "message", "valueId": "17"}]}, with the id of '
            "each Bundle that you have.",
            "Parameters.parameter",
        )
    done, strange = await outbox.fetched(facade.engine, caller.trust, seqs, caller.client_id, facade.now())
    own = set(seqs).difference(strange)
    if strange:
        await facade.denied(caller, served, "unknown")
        if not own:
            raise not_found()
        # One number that is wrong must not keep the others waiting: they would be given again and again, and nothing after them.
        done, _ = await outbox.fetched(
            facade.engine, caller.trust, sorted(own), caller.client_id, facade.now()
        )
    said = information(f"{done} acknowledged, {len(own) - done} had been before.")
    if strange:
        said["issue"].append(_of_strange(strange))
    return fhir(said)


def _of_strange(seqs: Sequence[int]) -> Tree:
    """That these numbers are no messages of the caller's."""
    named = ", ".join(map(str, seqs[:_NAMED_MAX])) + (" and more" if len(seqs) > _NAMED_MAX else "")
    text = f"Not in your trust's inbox, and not acknowledged: {named}. The ids are those of the Bundles that $inbox gives."
    return {"severity": "warning", "code": "not-found", "diagnostics": text}


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
    if transfer:
        await facade.seen(caller, served, transfer, message=seq)
    else:
        await facade.searched(caller, served, message=seq)
    if payload is None:
        raise gone()
    return fhir(_numbered(payload, seq))


async def read_message_header(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """The header of a message of your inbox, under the message's number."""
    del body
    seq = _seq(request.path_params["id"]) or 0
    found = await outbox.message_of(facade.engine, caller.trust, seq)
    payload, transfer_id = found or (None, None)
    transfer = await facade.transfer(transfer_id, caller, served) if transfer_id else None
    if transfer is None:
        await facade.denied(caller, served, "unknown")
        raise not_found()
    await facade.seen(caller, served, transfer, message=seq)
    if payload is None:
        raise gone()
    return fhir(_header(payload, seq, transfer.id))


async def search_message_header(
    facade: Facade, request: Request, caller: Caller, served: Served, body: bytes
) -> Response:
    """The headers of your inbox's messages, waiting or had, the last first; `focus` narrows to one transfer."""
    del body
    given = asked_with(request, b"")
    said, ignored = searching.plainly(
        served.resource, given.parameters, strict=given.strict, more={"_count", "_page"}
    )
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
    about = tuple({row.transfer_id for row in rows[:count]})
    wanted = Wanted(ids=about, limit=count)
    found, _ = await search.search(facade.engine, caller.trust, wanted) if about else ([], False)
    seen = {each.id for each in found if sees(each, caller.reader, facade.now()) > Sees.NOTHING}
    visible = [r for r in rows[:count] if r.transfer_id in seen]
    shown = [_header(r.payload, r.seq, r.transfer_id) for r in visible if r.payload is not None]
    shown_of = {r.transfer_id for r in visible}
    await facade.searched(
        caller,
        served,
        [each for each in found if each.id in shown_of],
        parameters=sorted({*said} & {"focus", "_count"}),
    )
    address = f"{facade.base}/MessageHeader"
    kept = [(name, value) for name, value in said.items() if name in {"focus", "_count"}]
    links = [{"relation": "self", "url": f"{address}?{urlencode(kept)}" if kept else address}]
    if len(rows) > count:
        following = [*kept, ("_page", str(rows[count - 1].seq))]
        links.append({"relation": "next", "url": f"{address}?{urlencode(following)}"})
    bundle = searchset(shown, facade.base, links=links)
    if aged := {r.transfer_id for r in visible if r.payload is None}:
        bundle.setdefault("entry", []).append(searching.warning(errors.aged_out(len(aged))))
    return fhir(searching.with_ignored(bundle, ignored))


def _header(payload: bytes, seq: int, transfer_id: str) -> Tree:
    """A message's header by itself: what it is about can be read here."""
    header: Tree = decimals.loads(payload)["entry"][0]["resource"]
    return {**header, "id": str(seq), "focus": [{"reference": f"Task/{transfer_id}"}]}


def _count(text: str) -> int:
    count = searching.whole_number("_count", text)
    if not 1 <= count <= searching.COUNT_MAX:
        raise bad_request(f"_count must be a number from 1 to {searching.COUNT_MAX}.", "_count", "value")
    return count


def _named_messages(body: bytes) -> list[int]:
    """The numbers in a Parameters resource; none if one of them cannot be a number of ours."""
    named = [
        str(each.get("valueId")) if each.get("name") == "message" else "" for each in parameters_of(body)
    ]
    return [] if any(_seq(each) is None for each in named) else [int(each) for each in named]


def _seq(text: str) -> int | None:
    """A number of the outbox, which is a bigint."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _numbered(payload: bytes, seq: int) -> Tree:
    """A message of the inbox under its number: that is its address and what is acknowledged."""
    bundle: Tree = decimals.loads(payload)
    return bundle | {"id": str(seq)}
