"""What a decision over REST is about: the address, the version and the request decide, not what a body happens to name."""

import asyncio
import time
import uuid
from datetime import timedelta

import orjson
import pytest

from hub.demo.people import FENNIMOSS, MARSHWIGGLE, THISTLEWICK
from hub.dialects.fhir_xml_writer import write_xml
from hub.fhir.systems import HUB_TRANSFER
from hub.store import tables as t
from hub.store.packing import unpack
from tests.stories.conftest import TRUSTS, resources
from tests.stories.rest import System, issue
from tests.stories.test_asking import sends, service_request
from tests.stories.test_mistaken_identity import without_nhs_number

JSON = "application/fhir+json"
XML = "application/fhir+xml"
PATCH = "application/json-patch+json"
WHY = {"coding": [{"system": "https://fhir.nhs.uk/CodeSystem/message-reason-bars", "code": "RRNA"}]}


async def asked(hub, torbay, at_torbay, *, number="TR-1", patient=MARSHWIGGLE, status="active", **headers):
    """A request that was taken in: its transfer's id."""
    request = service_request(torbay, number=number, patient=patient, status=status)
    made = await sends(hub, at_torbay, "POST", "/ServiceRequest", request, **headers)
    assert made.status_code == 201, made.text
    hub.clock.later(minutes=1)
    return made.json()["id"]


async def states(hub, *transfers):
    return [await hub.state(each) for each in transfers]


# -- the address says which transfer is meant ----------------------------------------------------------------------------


def without(resource, *names):
    return {name: each for name, each in resource.items() if name not in names}


#        a body at the address of the first request, made of what is read of both
OTHERS = {
    "all that the other one is, under the id of this one": lambda this, other: other | {"id": this["id"]},
    "the same without an id": lambda this, other: without(other, "id"),
    "the other one's identifiers": lambda this, other: this | {"identifier": other["identifier"]},
    "the other one's number": lambda this, other: this | {"identifier": other["identifier"][1:], "focus": other["focus"]},
    "the other one's request": lambda this, other: this | {"focus": other["focus"]},
    "the other one's request, by its reference alone": lambda this, other: this | {"basedOn": [other["focus"]], "focus": other["focus"]},
    "the other patient": lambda this, other: this | {"for": other["for"]},
    "nothing but the other patient": lambda this, other: without(other, "id", "identifier", "focus"),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["PUT", "PUT in XML", "PATCH"])
@pytest.mark.parametrize("body", OTHERS)
async def test_what_is_put_at_one_transfer_never_moves_another(hub, torbay, at_torbay, at_exeter, body, verb):
    """Exeter refuses Marshwiggle's request with a body that names Fennimoss': neither moves, and the answer says that."""
    here = await asked(hub, torbay, at_torbay)
    there = await asked(hub, torbay, at_torbay, number="TR-2", patient=FENNIMOSS)
    this, other = [(await at_exeter.get(f"/Task/{each}")).json() for each in (here, there)]
    decided = {"status": "rejected", "statusReason": WHY, "lastModified": hub.clock().isoformat()}
    task = OTHERS[body](this, other) | decided
    if verb == "PATCH":
        gone = [{"op": "remove", "path": f"/{name}"} for name in this.keys() - task.keys() - {"id"}]
        changed = [{"op": "add", "path": f"/{n}", "value": v} for n, v in task.items() if n != "id"]
        said = await sends(hub, at_exeter, "PATCH", f"/Task/{here}", [*gone, *changed], kind=PATCH)
    else:
        kind, content = (XML, write_xml(task)) if "XML" in verb else (JSON, task)
        said = await sends(hub, at_exeter, "PUT", f"/Task/{here}", content, kind=kind)
    assert (said.status_code, await states(hub, here, there)) == (400, ["requested"] * 2), said.text
    assert await hub.told("RA9") == []


async def test_a_task_in_xml_has_the_id_of_its_address(hub, torbay, at_torbay, at_exeter):
    """The other one's Task as it was read; nothing of it is even kept."""
    here = await asked(hub, torbay, at_torbay)
    there = await asked(hub, torbay, at_torbay, number="TR-2", patient=FENNIMOSS)
    other = (await at_exeter.get(f"/Task/{there}")).json() | {"status": "accepted"}
    said = await sends(hub, at_exeter, "PUT", f"/Task/{here}", write_xml(other), kind=XML)
    assert (said.status_code, said.json()["issue"][0]["expression"]) == (400, ["Task.id"])
    assert len(await hub.rows(t.message)) == 2
    assert await states(hub, here, there) == ["requested"] * 2


@pytest.mark.parametrize("kept", ["id", "for", "focus", None])
async def test_a_body_that_names_nothing_means_the_transfer_of_its_address(
    hub, torbay, at_torbay, at_exeter, kept
):
    """Also under the conversation of another one."""
    conversation = str(uuid.uuid4())
    here = await asked(hub, torbay, at_torbay)
    there = await asked(
        hub, torbay, at_torbay, number="TR-2", patient=FENNIMOSS, **{"X-Correlation-Id": conversation}
    )
    task = (await at_exeter.get(f"/Task/{here}")).json()
    bare = without(task, *({"id", "identifier", "focus"} - {kept})) | {
        "status": "accepted",
        "lastModified": hub.clock().isoformat(),
    }
    headers = {"X-Correlation-Id": conversation}
    said = await sends(hub, at_exeter, "PUT", f"/Task/{here}", bare, **headers)
    assert (said.status_code, said.json()["id"]) == (200, here), said.text
    assert await states(hub, here, there) == ["accepted", "requested"]


async def test_what_only_the_facade_says_is_believed_of_nobody_else(hub, torbay, exeter):
    """A record in Kafka with the facade's own headers is judged without them."""
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1")
    message = exeter.epr.answers(
        MARSHWIGGLE, "accepted", requester=torbay.profile, request_number="TR-1", at=hub.clock()
    )
    message.headers.update({"hub-about": "another", "hub-resource": "Encounter"})
    assert str(await exeter.send(message)) == "accepted"
    [transfer] = await hub.rows(t.transfer)
    assert transfer["state"] == "accepted"


async def test_a_posted_task_is_about_its_focus(hub, torbay, at_torbay, at_exeter):
    """The hub's id of another one in it, or another patient, is no way round."""
    here = await asked(hub, torbay, at_torbay)
    there = await asked(hub, torbay, at_torbay, number="TR-2", patient=FENNIMOSS)
    other = (await at_exeter.get(f"/Task/{there}")).json()
    about = {"focus": {"reference": f"ServiceRequest/{here}"}}
    task = {"resourceType": "Task", "status": "accepted", "intent": "order", **about}
    named = {"type": "ServiceRequest", "identifier": {"system": HUB_TRANSFER, "value": there}}
    for more in ({"for": other["for"]}, {"basedOn": [named]}):
        said = await sends(hub, at_exeter, "POST", "/Task", task | more)
        assert (said.status_code, await states(hub, here, there)) == (400, ["requested"] * 2), said.text
    for kind, body in ((JSON, task), (XML, write_xml(task))):
        said = await sends(hub, at_exeter, "POST", "/Task", body, kind=kind)
        hub.clock.later(minutes=1)
        assert (said.status_code, said.json()["id"]) == (201, here), said.text


# -- the same request again ----------------------------------------------------------------------------------------------


def accepting(hub):
    at = hub.clock().isoformat()
    return [
        {"op": "replace", "path": "/status", "value": "accepted"},
        {"op": "replace", "path": "/lastModified", "value": at},
    ]


async def test_a_refused_patch_is_refused_again(hub, torbay, at_torbay, at_exeter):
    """Exeter's answer was lost: hearing "already delivered" it would believe that it had accepted."""
    transfer_id = await asked(hub, torbay, at_torbay)
    path = f"/Task/{transfer_id}"
    read = [{"op": "replace", "path": "/status", "value": "received"}]
    assert (await sends(hub, at_exeter, "PATCH", path, read, kind=PATCH)).status_code == 200
    patch, once = accepting(hub), {"kind": PATCH, "request_id": str(uuid.uuid4()), "If-Match": 'W/"1"'}
    stale = [await sends(hub, at_exeter, "PATCH", path, patch, **once) for _ in range(3)]
    assert [(each.status_code, issue(each)[1]) for each in stale] == [(412, "conflict")] * 3
    assert {each.headers["etag"] for each in stale} == {'W/"2"'}
    no_reason = [{"op": "replace", "path": "/status", "value": "rejected"}]
    once = {"kind": PATCH, "request_id": str(uuid.uuid4())}
    refused = [await sends(hub, at_exeter, "PATCH", path, no_reason, **once) for _ in range(2)]
    assert [(each.status_code, issue(each)[1]) for each in refused] == [(400, "required")] * 2
    assert await hub.state(transfer_id) == "received"
    once = {"kind": PATCH, "request_id": str(uuid.uuid4())}
    taken = [await sends(hub, at_exeter, "PATCH", path, patch, **once) for _ in range(2)]
    assert [each.status_code for each in taken] == [200, 409]
    assert (issue(taken[1])[1], await hub.state(transfer_id)) == ("duplicate", "accepted")
    repeated = await hub.audit(code="msg-duplicate")
    assert [each["detail"].get("why") for each in repeated] == ["version-stale"] * 2 + [
        "reason-missing",
        None,
    ]


async def test_the_same_body_at_another_address_is_another_decision(hub, torbay, at_torbay, at_exeter):
    """Under the same id it is refused: "already delivered" would be said of a transfer that nobody has decided on."""
    here = await asked(hub, torbay, at_torbay)
    there = await asked(hub, torbay, at_torbay, number="TR-2", patient=FENNIMOSS)
    for verb, kind, body in (
        ("PATCH", PATCH, accepting(hub)),
        ("PUT", JSON, {"resourceType": "Task", "status": "accepted", "intent": "order"}),
    ):
        once = {"kind": kind, "request_id": str(uuid.uuid4())}
        await sends(hub, at_exeter, verb, f"/Task/{here}", body, **once)
        said = await sends(hub, at_exeter, verb, f"/Task/{there}", body, **once)
        assert (said.status_code, issue(said)[1]) == (409, "conflict"), verb
    assert await hub.state(there) == "requested"


async def test_a_posted_task_again_is_a_duplicate_whatever_came_after(hub, torbay, at_torbay, at_exeter):
    """Torbay sends its draft off and does not hear that it was; before it asks again, Exeter has accepted."""
    transfer_id = await asked(hub, torbay, at_torbay, status="draft")
    about = {"focus": {"reference": f"ServiceRequest/{transfer_id}"}}
    task = {"resourceType": "Task", "status": "requested", "intent": "order", **about}
    once = {"request_id": str(uuid.uuid4())}
    assert (await sends(hub, at_torbay, "POST", "/Task", task, **once)).status_code == 201
    hub.clock.later(minutes=1)
    decided = {**task, "status": "accepted", "lastModified": hub.clock().isoformat()}
    theirs = {"request_id": str(uuid.uuid4())}
    assert (await sends(hub, at_exeter, "POST", "/Task", decided, **theirs)).status_code == 201
    hub.clock.later(minutes=1)
    for system, body, mine in ((at_torbay, task, once), (at_exeter, decided, theirs)):
        again = await sends(hub, system, "POST", "/Task", body, **mine)
        assert (again.status_code, issue(again)[1]) == (409, "duplicate")
        other = await sends(hub, system, "POST", "/Task", body | {"priority": "stat"}, **mine)
        assert (other.status_code, issue(other)[1]) == (409, "conflict")
    assert await hub.state(transfer_id) == "accepted"
    assert (await hub.told("RH8")).count("transfer.requested") == 1


# -- the version that was decided on -------------------------------------------------------------------------------------

#   If-Match, on the third version   status
VERSIONS = {
    'W/"3"': 200, '"3"': 200, "3": 200, "*": 200,
    'W/"1"': 412, '"2"': 412, 'W/"0"': 412, 'W/"99999999999"': 412, f'W/"{"9" * 240}"': 412,
    '"3-gzip"': 400, 'W/"1", W/"7"': 400, 'W/"3", W/"3"': 400, "garbage": 400, 'w/"3"': 400, 'W/ "3"': 400, 'W/"3"x': 400,
    'W/"3': 400, '3"': 400, 'W/"03"': 400, '"-3"': 400, '""': 400, "W/": 400, '"\u0663"': 400, f'W/"{"9" * 250}"{" " * 20}x': 400,
}  # fmt: skip


@pytest.mark.parametrize("said", VERSIONS, ids=lambda each: each[:20])
async def test_a_version_that_cannot_be_read_protects_nothing_and_is_not_passed_over(
    hub, torbay, at_torbay, at_exeter, said
):
    transfer_id = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{transfer_id}")).json()
    for status in ("received", "received"):
        decided = task | {"status": status, "lastModified": hub.clock().isoformat()}
        assert (await sends(hub, at_exeter, "PUT", f"/Task/{transfer_id}", decided)).status_code == 200
        hub.clock.later(minutes=1)
    header = {b"If-Match": said.encode()}
    body = task | {"status": "rejected", "statusReason": WHY, "lastModified": hub.clock().isoformat()}
    change = [{"op": "add", "path": f"/{name}", "value": body[name]} for name in ("status", "statusReason")]
    for verb, path, content, kind in (
        ("PATCH", f"/Task/{transfer_id}", change, PATCH),
        ("POST", "/Task", body | {"focus": {"reference": f"ServiceRequest/{transfer_id}"}}, JSON),
        ("PUT", f"/Task/{transfer_id}", body, JSON),
    ):
        if VERSIONS[said] == 200 and verb != "PUT":
            continue
        headers = [
            (b"Content-Type", kind.encode()),
            (b"X-Request-Id", str(uuid.uuid4()).encode()),
            *header.items(),
        ]
        headers.append((b"Authorization", f"Bearer {at_exeter.token}".encode()))
        answer = await at_exeter.http.request(
            verb, f"/fhir{path}", headers=headers, content=orjson.dumps(content)
        )
        assert answer.status_code == VERSIONS[said], (verb, answer.text)
    hub.expected = len(await hub.rows(t.message))
    expected = {200: "rejected", 400: "received", 412: "received"}[VERSIONS[said]]
    assert await hub.state(transfer_id) == expected


async def test_two_versions_in_two_headers_are_none(hub, torbay, at_torbay, at_exeter):
    transfer_id = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{transfer_id}")).json() | {"status": "accepted"}
    headers = [
        ("Authorization", f"Bearer {at_exeter.token}"),
        ("Content-Type", JSON),
        ("X-Request-Id", str(uuid.uuid4())),
        ("If-Match", 'W/"7"'),
        ("If-Match", 'W/"1"'),
    ]
    said = await at_exeter.http.put(f"/fhir/Task/{transfer_id}", headers=headers, content=orjson.dumps(task))
    hub.expected = len(await hub.rows(t.message))
    assert (said.status_code, await hub.state(transfer_id)) == (400, "requested")


@pytest.mark.parametrize("said", ['"1-gzip"', 'W/"1", W/"7"', "garbage"])
async def test_a_version_that_cannot_be_read_is_named_over_kafka_too(hub, torbay, exeter, said):
    """A decision is refused; a stay that is told with such a header is taken in, because a version protects decisions."""
    await torbay.asks_to_transfer(MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1")
    message = exeter.epr.answers(
        MARSHWIGGLE, "accepted", requester=torbay.profile, request_number="TR-1", at=hub.clock()
    )
    message.headers["if-match"] = said
    refused = await exeter.send(message)
    assert str(refused) == "rejected: version-unreadable at if-match"
    [transfer] = await hub.rows(t.transfer)
    assert transfer["state"] == "requested"
    stay = torbay.epr.admits(MARSHWIGGLE, encounter_number="V-2", ward="EAU", at=hub.clock())
    stay.headers["if-match"] = said
    assert str(await torbay.send(stay)) == "accepted"


@pytest.fixture
def together(facade, monkeypatch):
    """So many requests have read what they decide on before the first of them is taken in."""
    taken = facade.take

    def wait_for(parties):
        barrier = asyncio.Barrier(parties)

        async def take(*args):
            await barrier.wait()
            return await taken(*args)

        monkeypatch.setattr(facade, "take", take)

    return wait_for


async def test_two_patches_of_one_version_are_not_both_taken(hub, torbay, at_torbay, at_exeter, together):
    """Both tested what they decide on, and neither says If-Match: the second to come decides on what is no longer so."""
    transfer_id = await asked(hub, torbay, at_torbay)
    tests = [
        {"op": "test", "path": "/status", "value": "requested"},
        {"op": "test", "path": "/meta/versionId", "value": "1"},
    ]
    refusing = [
        {"op": "replace", "path": "/status", "value": "rejected"},
        {"op": "add", "path": "/statusReason", "value": WHY},
    ]
    together(4)
    said = await asyncio.gather(
        *(
            sends(hub, at_exeter, "PATCH", f"/Task/{transfer_id}", [*tests, *change], kind=PATCH, **headers)
            for change in (accepting(hub), refusing)
            for headers in ({}, {"If-Match": "*"})
        )
    )
    assert sorted(each.status_code for each in said) == [200, 412, 412, 412]
    assert {each.headers["etag"] for each in said} == {'W/"2"'}
    hub.expected = len(await hub.rows(t.message))
    assert len(await hub.told("RA9")) == 1


async def test_a_draft_is_sent_off_as_it_was_read(hub, torbay, at_torbay, at_exeter, facade, monkeypatch):
    """Somebody changes it just then: what Exeter gets is never what it no longer is."""
    transfer_id = await asked(hub, torbay, at_torbay, status="draft")
    about = {"focus": {"reference": f"ServiceRequest/{transfer_id}"}}
    task = {"resourceType": "Task", "status": "requested", "intent": "order", **about}
    changed = service_request(torbay, status="draft") | {"reasonCode": [{"text": "Needs a surgical bed"}]}
    taken = facade.take

    async def take(*args):
        monkeypatch.setattr(facade, "take", taken)
        assert (await sends(hub, at_torbay, "POST", "/ServiceRequest", changed)).status_code == 201
        return await taken(*args)

    monkeypatch.setattr(facade, "take", take)
    stale = await sends(hub, at_torbay, "POST", "/Task", task)
    assert (stale.status_code, stale.headers["etag"], await hub.told("RH8")) == (412, 'W/"2"', [])
    assert (await sends(hub, at_torbay, "POST", "/Task", task)).status_code == 201
    shown = (await at_exeter.get(f"/ServiceRequest/{transfer_id}")).json()
    assert shown["reasonCode"] == [{"text": "Needs a surgical bed"}]


# -- an address takes one type of resource -------------------------------------------------------------------------------


@pytest.fixture
async def asks_only(facade):
    """A system of Exeter's that may ask and tell of stays, and decide nothing."""
    scopes = "system/ServiceRequest.c system/Encounter.u"
    return await (await System.join(facade, "RH8", scopes=scopes)).signed_in()


@pytest.mark.parametrize("kind", [JSON, XML])
async def test_no_other_resource_is_taken_than_the_address_says(
    hub, torbay, exeter, at_torbay, at_exeter, asks_only, kind
):
    """A Task is a decision wherever it is sent: a system that may not decide has no address for it."""
    written = write_xml if kind == XML else orjson.dumps
    transfer_id = await asked(hub, torbay, at_torbay)
    before = len(await hub.rows(t.message))
    task = (await at_exeter.get(f"/Task/{transfer_id}")).json() | {"status": "accepted"}
    own = task["identifier"][0]
    request = service_request(torbay, number="TR-2", patient=THISTLEWICK)
    stay = exeter.epr.admits(FENNIMOSS, encounter_number="V-2", ward="EAU", at=hub.clock())
    [encounter] = resources(orjson.loads(stay.body), "Encounter")
    encounter["subject"] = service_request(torbay, patient=FENNIMOSS)["subject"]
    named = encounter["identifier"][0]
    at_stay = f"/Encounter?identifier={named['system']}|{named['value']}"
    for system, method, path, body in (
        (asks_only, "POST", "/ServiceRequest", task),
        (asks_only, "POST", "/ServiceRequest", encounter),
        (asks_only, "PUT", f"/Encounter?identifier={own['system']}|{own['value']}", task),
        (asks_only, "PUT", at_stay, request | {"identifier": [named]}),
        (at_exeter, "PUT", f"/Task/{transfer_id}", encounter | {"id": transfer_id}),
        (at_exeter, "PUT", f"/Task/{transfer_id}", request | {"id": transfer_id}),
        (at_exeter, "POST", "/Task", encounter),
    ):
        said = await sends(hub, system, method, path, written(body), kind=kind)
        assert (said.status_code, said.json()["issue"][0]["code"]) == (400, "invalid"), (path, said.text)
    assert await hub.state(transfer_id) == "requested"
    assert len(await hub.rows(t.message)) == before, "nothing of it was taken in"
    other = encounter | {"identifier": [named | {"value": "V-3"}]}
    said = await sends(hub, asks_only, "PUT", at_stay, written(other), kind=kind)
    assert (said.status_code, said.json()["issue"][0]["expression"]) == (400, ["Encounter.identifier"])
    good = await sends(hub, asks_only, "PUT", at_stay, written(encounter), kind=kind)
    assert good.status_code == 200, good.text
    made = await sends(hub, at_torbay, "POST", "/ServiceRequest", written(request), kind=kind)
    assert (made.status_code, made.json().get("status")) == (201, "active"), made.text


async def test_what_the_address_takes_is_asked_of_what_was_read_not_of_what_was_looked_at(
    hub, torbay, at_torbay, asks_only, at_exeter
):
    """In UTF-16, or as STU3, the facade's own look finds nothing to object to; the journey does, and moves nothing."""
    transfer_id = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{transfer_id}")).json()
    task |= {"status": "accepted", "lastModified": hub.clock().isoformat()}
    text = write_xml(task).decode().replace("utf-8", "utf-16").replace("UTF-8", "UTF-16")
    said = await sends(hub, asks_only, "POST", "/ServiceRequest", text.encode("utf-16"), kind=XML)
    assert (said.status_code, said.json()["issue"][0]["details"]["coding"][-1]["code"]) == (
        400,
        "address-differs",
    )
    assert await hub.state(transfer_id) == "requested"
    [refused] = await hub.rows(t.message, t.message.c.trust == "RH8")
    assert refused["disposition"] == "rejected"


# -- one UUID, however it is written -------------------------------------------------------------------------------------

WRITTEN = [
    str.upper,
    "{{{}}}".format,
    lambda each: each.replace("-", ""),
    "urn:uuid:{}".format,
    " {} ".format,
]


@pytest.mark.parametrize("write", WRITTEN)
async def test_an_id_in_another_spelling_is_the_same_id(hub, torbay, at_torbay, at_exeter, write):
    """What is repeated by another library, or goes through a gateway that writes ids its own way, is no second message; the caller
    gets its id back as it wrote it.
    """
    request_id = str(uuid.uuid4())
    request = service_request(torbay)
    made = await sends(hub, at_torbay, "POST", "/ServiceRequest", request, request_id=request_id)
    again = await sends(hub, at_torbay, "POST", "/ServiceRequest", request, request_id=write(request_id))
    assert (again.status_code, issue(again)[1]) == (409, "duplicate")
    assert again.headers["x-request-id"] == write(request_id)
    path = f"/Task/{made.json()['id']}"
    hub.clock.later(minutes=1)
    patch, once = accepting(hub), str(uuid.uuid4())
    said = [
        await sends(hub, at_exeter, "PATCH", path, patch, kind=PATCH, request_id=each)
        for each in (write(once), once)
    ]
    assert [each.status_code for each in said] == [200, 409]
    assert (issue(said[1])[1], said[0].headers["etag"]) == ("duplicate", 'W/"2"')
    kept = {row["message_id"] for row in await hub.rows(t.message)}
    assert kept == {request_id, once}
    assert {each["request_id"] for each in await hub.audit(code="msg-received")} == kept


async def test_an_id_is_the_same_over_kafka_and_as_it_was_once_kept(hub, torbay, at_torbay):
    """Torbay's receipts have its own spelling; what was taken in before ids had one form is still known."""
    message = torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    request_id = message.headers["x-request-id"]
    message.headers["x-request-id"] = request_id.upper()
    assert str(await torbay.send(message)) == "accepted"
    [receipt] = await hub.receipts("RA9")
    assert receipt.headers["x-request-id"] == request_id.upper()
    for written in (request_id, request_id.upper()):
        again = await at_torbay.send(message, **{"x-request-id": written})
        assert issue(again)[1] == "duplicate"
    async with hub.engine.begin() as connection:
        old = {"message_id": request_id.upper(), "first_key": f"RA9|{request_id.upper()}"}
        await connection.execute(t.message.update().where(t.message.c.first_key.is_not(None)).values(**old))
    again = await at_torbay.send(message)
    assert issue(again)[1] == "duplicate"
    hub.expected = len(await hub.rows(t.message))
    assert len(await hub.rows(t.transfer)) == 1


@pytest.mark.parametrize(
    "said",
    [
        "",
        "1",
        "0x" + "a" * 30,
        "a_" + "b" * 30,
        "\u0661" * 32,
        "0ad5f4d6-2a9f-4f0e-8f43-0d6f2b1a9c01x",
        "-" * 32,
    ],
)
async def test_what_is_no_uuid_is_no_id(at_torbay, torbay, said):
    headers = [
        (b"Authorization", f"Bearer {at_torbay.token}".encode()),
        (b"Content-Type", JSON.encode()),
        (b"X-Request-Id", said.encode()),
    ]
    content = orjson.dumps(service_request(torbay))
    answer = await at_torbay.http.post("/fhir/ServiceRequest", headers=headers, content=content)
    assert (answer.status_code, answer.json()["issue"][0]["expression"]) == (400, ["X-Request-Id"])


# -- a patch that is too much --------------------------------------------------------------------------------------------


def nested(levels, inside="0"):
    return b"[" * levels + inside.encode() + b"]" * levels


DOUBLING = [{"op": "add", "path": "/x", "value": []}, *[{"op": "copy", "from": "/x", "path": "/x/-"}] * 23]
TOO_MUCH = {
    "what doubles each time": orjson.dumps(DOUBLING),
    "a copy": orjson.dumps([{"op": "copy", "from": "/id", "path": "/description"}]),
    "a move": orjson.dumps([{"op": "move", "from": "/note", "path": "/x"}]),
    "many operations": orjson.dumps([{"op": "test", "path": "/status", "value": "requested"}] * 101),
    "a deep value": b'[{"op":"add","path":"/x","value":' + nested(900) + b"}]",
    "a deep value with a fraction": b'[{"op":"add","path":"/x","value":' + nested(1000, "0.5") + b"}]",
    "a value deeper than JSON may be": b'[{"op":"add","path":"/x","value":' + nested(5000) + b"}]",
    "a value as deep as can be written": b'[{"op":"add","path":"/x","value":' + nested(240) + b"}]",
    "a deep test": b'[{"op":"test","path":"/x","value":' + nested(900) + b"}]",
    "a deep path": orjson.dumps([{"op": "add", "path": "/x" * 5000, "value": 1}]),
    "a number beyond the list": orjson.dumps([{"op": "add", "path": f"/identifier/{10**30}", "value": 1}]),
    "no number of the list": orjson.dumps([{"op": "remove", "path": "/identifier/-"}]),
    "no operation": orjson.dumps([{"op": ["copy"], "path": "/x"}]),
    "all of it": orjson.dumps([{"op": "replace", "path": "", "value": []}]),
    "nothing of it": orjson.dumps([{"op": "remove", "path": ""}]),
}


@pytest.mark.parametrize("body", TOO_MUCH)
async def test_a_patch_that_is_too_much_is_refused_at_once(hub, torbay, at_torbay, at_exeter, body):
    """A thousand bytes must not keep everybody waiting: before, these made a gigabyte in half a minute."""
    transfer_id = await asked(hub, torbay, at_torbay)
    began = time.perf_counter()
    said = await sends(hub, at_exeter, "PATCH", f"/Task/{transfer_id}", TOO_MUCH[body], kind=PATCH)
    assert (said.status_code, time.perf_counter() - began < 2) == (400, True), said.text
    assert said.json()["issue"][0]["code"] in {"structure", "not-supported", "too-costly", "invalid"}
    assert await hub.state(transfer_id) == "requested"


async def test_a_patch_keeps_the_digits_of_its_numbers(hub, torbay, at_torbay, at_exeter):
    transfer_id = await asked(hub, torbay, at_torbay)
    value = b'{"type":{"text":"Weight"},"valueQuantity":{"value":70.50}}'
    patch = orjson.dumps(accepting(hub))[:-1] + b',{"op":"add","path":"/input","value":[' + value + b"]}]"
    said = await sends(hub, at_exeter, "PATCH", f"/Task/{transfer_id}", patch, kind=PATCH)
    assert said.status_code == 200, said.text
    [kept] = await hub.rows(t.message, t.message.c.trust == "RH8")
    assert b"70.50" in unpack(kept["raw"])


@pytest.mark.parametrize(
    "deep", [nested(900), nested(1000, "0.5"), nested(300), nested(5000), nested(70, "1.5")]
)
async def test_a_body_that_is_too_deep_is_its_senders_to_mend(hub, torbay, at_torbay, at_exeter, deep):
    transfer_id = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{transfer_id}")).json()
    focus = {"focus": {"reference": f"ServiceRequest/{transfer_id}"}}
    for method, path, resource in (
        ("PUT", f"/Task/{transfer_id}", task | {"status": "accepted"}),
        ("POST", "/Task", task | {"status": "accepted"} | focus),
        ("POST", "/ServiceRequest", service_request(torbay, number="TR-2")),
    ):
        body = orjson.dumps(resource)[:-1] + b',"x":' + deep + b"}"
        said = await sends(hub, at_exeter, method, path, body)
        assert said.status_code == 400, (method, path, said.text)
    assert await hub.state(transfer_id) == "requested"


# -- whom the hub itself knows by no number, and when it was decided -----------------------------------------------------


@pytest.fixture
async def unnumbered(hub, torbay):
    """The transfers of two patients without an NHS number."""
    found = []
    for patient, number in ((MARSHWIGGLE, "TR-1"), (FENNIMOSS, "TR-2")):
        message = torbay.epr.asks_to_transfer(
            patient, to="RH8", request_number=number, encounter_number=f"V-{number}", at=hub.clock()
        )
        found.append((await torbay.send(without_nhs_number(message))).transfer_id)
    hub.clock.later(minutes=1)
    return found


async def decides(hub, system, verb, task, *, version=None, **changed):
    """What is read, with something changed, as each of the ways to decide sends it."""
    path, said = f"/Task/{task['id']}", {"If-Match": f'W/"{version}"'} if version else {}
    if verb == "PATCH":
        patch = [{"op": "add", "path": f"/{name}", "value": value} for name, value in changed.items()]
        return await sends(hub, system, "PATCH", path, patch, kind=PATCH, **said)
    if verb == "POST":
        return await sends(hub, system, "POST", "/Task", task | changed, **said)
    return await sends(hub, system, "PUT", path, task | changed, **said)


@pytest.mark.parametrize("verb", ["PUT", "PATCH", "POST"])
async def test_the_task_of_a_patient_without_an_nhs_number_can_be_decided_as_it_was_read(
    hub, at_exeter, unnumbered, verb
):
    """Somebody whom nobody knows, or whose number was found not to be theirs: all that is told of them is the hub's own reference."""
    here, there = unnumbered
    task = (await at_exeter.get(f"/Task/{here}")).json()
    assert "identifier" not in task["for"]
    for status, becomes in (("rejected", "rejected"), ("accepted", "accepted")):
        said = await decides(hub, at_exeter, verb, task, status=status, statusReason=WHY)
        assert said.is_success, said.text
        assert await states(hub, here, there) == [becomes, "requested"]
        hub.clock.later(minutes=1)
        # Whoever has refused is not even told the reference, and may think it over.
        task = said.json()
        assert ("for" in task) == (status == "accepted")


@pytest.mark.parametrize("verb", ["PUT", "PATCH"])
async def test_another_patient_without_an_nhs_number_is_another(hub, at_exeter, unnumbered, verb):
    here, there = unnumbered
    this, other = [(await at_exeter.get(f"/Task/{each}")).json() for each in unnumbered]
    said = await decides(hub, at_exeter, verb, this, status="accepted", **{"for": other["for"]})
    assert (said.status_code, await states(hub, here, there)) == (400, ["requested"] * 2)
    assert "another patient" in said.text


#     the moment of the decision before, as its author wrote it
MOMENTS = ("2026-11-23T09:01:30.1234567Z", "2026-11-23T09:01:30Z")


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("with_version", [True, False])
@pytest.mark.parametrize("verb", ["PUT", "PATCH", "POST"])
async def test_a_decision_that_keeps_the_time_it_was_read_with_is_made_now(
    hub, torbay, at_torbay, at_exeter, verb, with_version, moment
):
    """Exeter takes its acceptance back and changes the status and the reason only; it was answered 200 and stayed accepted."""
    here = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{here}")).json()
    assert (await decides(hub, at_exeter, "PUT", task, status="accepted", lastModified=moment)).is_success
    now = hub.clock.later(minutes=30)
    task = (await at_exeter.get(f"/Task/{here}")).json()
    version = task["meta"]["versionId"] if with_version else None
    said = await decides(hub, at_exeter, verb, task, version=version, status="rejected", statusReason=WHY)
    assert (said.is_success, said.json()["status"]) == (True, "rejected")
    assert await hub.state(here) == "rejected"
    assert (await hub.rows(t.transfer_history))[-1]["occurred_at"] == now


async def test_a_decision_on_a_version_comes_after_it_whatever_the_clock_says(
    hub, torbay, at_torbay, exeter, at_exeter
):
    """Torbay's clock is fast and Exeter's is slow; over REST and over Kafka, who says which version they decide on has seen it."""
    here = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{here}")).json()
    fast, slow = (hub.clock() + timedelta(minutes=each) for each in (20, -20))
    await decides(hub, at_exeter, "PUT", task, status="on-hold", lastModified=slow.isoformat())
    info = (await at_torbay.get(f"/Task/{here}")).json()
    await decides(hub, at_torbay, "PUT", info, status="requested", lastModified=fast.isoformat())
    hub.clock.later(minutes=1)
    said = await decides(
        hub, at_exeter, "PUT", task, version=3, status="accepted", lastModified=slow.isoformat()
    )
    assert (said.is_success, said.json()["status"]) == (True, "accepted")
    refuses = exeter.epr.answers(
        MARSHWIGGLE, "rejected", requester=TRUSTS["RA9"], request_number="TR-1", reason="RRNA", at=slow
    )
    refuses.headers["if-match"] = 'W/"4"'
    refused = await exeter.send(refuses)
    assert (str(refused), await hub.state(here)) == ("accepted", "rejected")


async def test_a_draft_that_is_sent_off_is_asked_then_and_not_when_it_was_written(
    hub, torbay, at_torbay, facade
):
    """It was written yesterday: who is asked now has had no day to look at it, and who came yesterday has not come for it."""
    request = service_request(torbay, status="draft") | {"authoredOn": hub.clock().isoformat()}
    here = (await sends(hub, at_torbay, "POST", "/ServiceRequest", request)).json()["id"]
    now = hub.clock.later(days=1)
    await at_torbay.signed_in()
    task = {"resourceType": "Task", "status": "requested", "intent": "order"}
    focus = {"reference": f"ServiceRequest/{here}"}
    assert (await sends(hub, at_torbay, "POST", "/Task", task | {"focus": focus})).status_code == 201
    [transfer] = await hub.rows(t.transfer)
    assert (transfer["requested_at"], transfer["due_at"] > now + timedelta(minutes=5)) == (now, True)


#   how the decision is put, of what was read at the second version and at the third; none says If-Match
NOT_LOST = {
    "with the time of an older version": lambda hub, old, task: task | {"lastModified": old["lastModified"]},
    "with when an older version came": lambda hub, old, task: (
        without(task, "lastModified") | {"meta": {"lastUpdated": old["meta"]["lastUpdated"]}}
    ),
    "with its time cut to the second": lambda hub, old, task: (
        without(task, "meta") | {"lastModified": task["lastModified"][:19] + "Z"}
    ),
    "with no time at all": lambda hub, old, task: without(task, "meta", "lastModified", "authoredOn"),
    "by a clock that is slow, as it was read": lambda hub, old, task: (
        task | {"lastModified": (hub.clock() - timedelta(minutes=30)).isoformat()}
    ),
    "by a clock that is two hours ahead": lambda hub, old, task: (
        without(task, "meta") | {"lastModified": (hub.clock() + timedelta(hours=2)).isoformat()}
    ),
}


@pytest.mark.parametrize("verb", ["PUT", "PUT in XML", "POST"])
@pytest.mark.parametrize("how", NOT_LOST)
async def test_a_decision_that_is_answered_200_is_what_the_task_says(
    hub, torbay, at_torbay, at_exeter, how, verb
):
    """Exeter has accepted by a system whose clock is fast, and refuses by another one: answered 200, it stayed accepted."""
    here = await asked(hub, torbay, at_torbay)
    first = (await at_exeter.get(f"/Task/{here}")).json()
    seen = (hub.clock() - timedelta(seconds=7)).isoformat()
    old = (await decides(hub, at_exeter, "PUT", first, status="received", lastModified=seen)).json()
    assert old["lastModified"] != old["meta"]["lastUpdated"] != first["meta"]["lastUpdated"]
    hub.clock.later(seconds=90, milliseconds=345)
    fast = (hub.clock() + timedelta(minutes=20)).isoformat()
    assert (await decides(hub, at_exeter, "PUT", old, status="accepted", lastModified=fast)).is_success
    task = (await at_exeter.get(f"/Task/{here}")).json()
    assert task["lastModified"].endswith(".345Z")
    hub.clock.later(minutes=5)
    put = NOT_LOST[how](hub, old, task) | {"status": "rejected", "statusReason": WHY}
    if "XML" in verb:
        said = await sends(hub, at_exeter, "PUT", f"/Task/{here}", write_xml(put), kind=XML)
    else:
        said = await decides(hub, at_exeter, verb, put)
    assert (said.is_success, said.json()["status"], await hub.state(here)) == (True, "rejected", "rejected")


async def test_another_servers_task_has_versions_of_its_own(hub, torbay, at_torbay, at_exeter):
    """What is posted late, by a Task of Exeter's own that happens to have the version of the transfer, was decided when it says."""
    here = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{here}")).json()
    early = (hub.clock() + timedelta(minutes=1)).isoformat()
    hub.clock.later(minutes=10)
    at = hub.clock().isoformat()
    await decides(hub, at_exeter, "PUT", task, status="rejected", statusReason=WHY, lastModified=at)
    hub.clock.later(minutes=1)
    own = {"id": "T-1", "meta": {"versionId": "2"}, "status": "accepted", "lastModified": early}
    late = await sends(hub, at_exeter, "POST", "/Task", without(task, "statusReason") | own)
    assert (late.status_code, late.json()["status"], await hub.state(here)) == (201, "rejected", "rejected")
