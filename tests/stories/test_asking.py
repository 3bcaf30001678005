"""A hospital that works resource by resource: it prepares a request, sends it off, and the other decides by a patch."""

import uuid
from itertools import cycle

import orjson
import pytest

from hub.demo.people import FENNIMOSS, MARSHWIGGLE, PEOPLE
from hub.fhir.systems import HUB_TRANSFER, NHS_NUMBER, ODS_ORGANISATION
from hub.store import tables as t
from tests.stories.rest import System, issue


def organisation(ods):
    return {"type": "Organization", "identifier": {"system": ODS_ORGANISATION, "value": ods}}


def service_request(
    torbay, *, status="active", number="TR-1", patient=MARSHWIGGLE, requester="RA9", to="RH8"
):
    return {
        "resourceType": "ServiceRequest",
        "identifier": [{"system": torbay.profile.identifier_systems.request, "value": number}],
        "status": status,
        "intent": "order",
        "subject": {
            "type": "Patient",
            "identifier": {"system": NHS_NUMBER, "value": patient.nhs_number},
        },
        "requester": organisation(requester),
        "performer": [organisation(to)],
        "reasonCode": [{"text": "Needs a cardiology bed"}],
    }


async def sends(hub, system, method, path, body, *, kind="application/fhir+json", request_id=None, **headers):
    said = {"Content-Type": kind, "X-Request-Id": request_id or str(uuid.uuid4()), **headers}
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = await system.call(method, path, headers=said, content=content)
    hub.expected = len(await hub.rows(t.message))
    return answer


async def test_a_request_by_itself_is_asked(hub, torbay, at_torbay, at_exeter):
    made = await sends(hub, at_torbay, "POST", "/ServiceRequest", service_request(torbay))
    assert made.status_code == 201, made.text
    assert made.json()["status"] == "active"
    address = made.headers["location"].rpartition("/fhir")[2]
    assert (await at_exeter.get(address)).json()["reasonCode"] == [{"text": "Needs a cardiology bed"}]
    assert await hub.told("RH8") == ["transfer.requested"]
    task = {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "focus": {"reference": address[1:]},
    }
    again = await sends(hub, at_torbay, "POST", "/Task", task)
    assert (again.status_code, again.json()["status"]) == (201, "requested")
    assert len(await hub.rows(t.message)) == 1


async def test_a_draft_is_sent_off_by_its_task(hub, torbay, at_torbay, at_exeter):
    """Exeter does not see the draft; when the Task comes it gets all of the request."""
    draft = await sends(hub, at_torbay, "POST", "/ServiceRequest", service_request(torbay, status="draft"))
    transfer_id = draft.json()["id"]
    assert (draft.status_code, draft.json()["status"]) == (201, "draft")
    assert (await at_exeter.get(f"/ServiceRequest/{transfer_id}")).status_code == 404
    focus = {"reference": f"ServiceRequest/{transfer_id}"}
    task = {"resourceType": "Task", "status": "requested", "intent": "order", "focus": focus}
    assert (await sends(hub, at_exeter, "POST", "/Task", task)).status_code == 404
    request_id = str(uuid.uuid4())
    sent = await sends(hub, at_torbay, "POST", "/Task", task, request_id=request_id)
    assert (sent.status_code, sent.json()["status"]) == (201, "requested")
    assert sent.headers["location"].endswith(f"/Task/{transfer_id}")
    assert await hub.told("RH8") == ["transfer.requested"]
    shown = (await at_exeter.get(f"/ServiceRequest/{transfer_id}")).json()
    assert (shown["status"], shown["reasonCode"]) == ("active", [{"text": "Needs a cardiology bed"}])


async def test_a_decision_is_posted_on_a_request_by_its_number(hub, torbay, at_torbay, at_exeter):
    await sends(hub, at_torbay, "POST", "/ServiceRequest", service_request(torbay))
    system = torbay.profile.identifier_systems.request
    task = {
        "resourceType": "Task",
        "status": "accepted",
        "intent": "order",
        "focus": {"identifier": {"system": system, "value": "TR-1"}},
        "lastModified": hub.clock().isoformat(),
    }
    said = await sends(hub, at_exeter, "POST", "/Task", task)
    assert said.status_code == 201, said.text
    assert said.json()["status"] == "accepted"
    for focus in ({"identifier": {"system": system, "value": "TR-9"}}, {"reference": "ServiceRequest/none"}):
        assert (await sends(hub, at_exeter, "POST", "/Task", task | {"focus": focus})).status_code == 404
    nothing = await sends(hub, at_exeter, "POST", "/Task", {"resourceType": "Task", "status": "accepted"})
    assert (nothing.status_code, issue(nothing)[1]) == (400, "required")


async def test_another_hospital_cannot_ask_in_its_name(hub, torbay, at_torbay):
    said = await sends(hub, at_torbay, "POST", "/ServiceRequest", service_request(torbay, requester="RK9"))
    assert (said.status_code, issue(said)[0]) == (403, "REC_FORBIDDEN")
    nobody = service_request(torbay)
    del nobody["performer"]
    missing = await sends(hub, at_torbay, "POST", "/ServiceRequest", nobody)
    assert (missing.status_code, issue(missing)[1]) == (400, "required")
    wrong = await sends(hub, at_torbay, "POST", "/ServiceRequest", {"resourceType": "Patient"})
    assert wrong.status_code == 400


async def test_a_decision_by_patch(hub, torbay, at_torbay, at_exeter):
    """The same patch again is the same decision, also after it has changed the Task; another under its id is a conflict."""
    made = await sends(hub, at_torbay, "POST", "/ServiceRequest", service_request(torbay))
    path = f"/Task/{made.json()['id']}"
    hub.clock.later(minutes=1)
    patch = [
        {"op": "test", "path": "/status", "value": "requested"},
        {"op": "replace", "path": "/status", "value": "accepted"},
        {"op": "replace", "path": "/lastModified", "value": hub.clock().isoformat()},
    ]
    kind, request_id = "application/json-patch+json", str(uuid.uuid4())

    async def patches(body, **more):
        return await sends(hub, at_exeter, "PATCH", path, body, **({"kind": kind} | more))

    said = await patches(patch, request_id=request_id, **{"If-Match": 'W/"1"'})
    assert (said.status_code, said.json()["status"], said.headers["etag"]) == (200, "accepted", 'W/"2"')
    again = await patches(patch, request_id=request_id)
    other = await patches(patch[1:], request_id=request_id)
    assert (issue(again), issue(other)) == (("REC_CONFLICT", "duplicate"), ("REC_CONFLICT", "conflict"))
    stale = await patches(patch[1:], **{"If-Match": 'W/"1"'})
    assert (stale.status_code, stale.headers["etag"]) == (412, 'W/"2"')
    assert (await patches(patch)).status_code == 400
    assert (await patches(patch, kind="application/fhir+json")).status_code == 415
    for body in ({}, [{"op": "fly"}], [{"op": "replace", "path": "/id", "value": "x"}], [7], "x"):
        assert (await patches(body)).status_code == 400, body
    assert await hub.told("RA9") == ["transfer.accepted"]


async def test_what_has_not_changed_is_not_given_again(hub, torbay, at_torbay):
    made = await sends(hub, at_torbay, "POST", "/ServiceRequest", service_request(torbay))
    path = f"/Task/{made.json()['id']}"
    assert "last-modified" not in (await at_torbay.get(path)).headers
    hub.clock.later(minutes=2)
    read = await at_torbay.get(path)
    same = {"If-Modified-Since": read.headers["last-modified"]}
    for headers, status in (
        (same, 304),
        ({"If-None-Match": read.headers["etag"]}, 304),
        ({"If-None-Match": 'W/"7", W/"1"'}, 304),
        ({"If-None-Match": 'W/"7"', **same}, 200),
        ({"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
    ):
        assert (await at_torbay.get(path, headers=headers)).status_code == status, headers


@pytest.mark.parametrize("kind", ["transaction", "batch", "collection"])
async def test_a_request_in_a_bundle_without_a_header(hub, torbay, at_torbay, at_exeter, kind):
    patient = {
        "resourceType": "Patient",
        "identifier": [{"system": NHS_NUMBER, "value": FENNIMOSS.nhs_number}],
        "name": [{"family": FENNIMOSS.family}],
    }
    subject = {"reference": "urn:uuid:0ad5f4d6-2a9f-4f0e-8f43-0d6f2b1a9c01"}
    request = service_request(torbay) | {"subject": subject}
    entries = [
        {"fullUrl": "urn:uuid:0ad5f4d6-2a9f-4f0e-8f43-0d6f2b1a9c01", "resource": patient},
        {"fullUrl": "urn:uuid:0ad5f4d6-2a9f-4f0e-8f43-0d6f2b1a9c02", "resource": request},
    ]
    if kind != "collection":
        for each in entries:
            each["request"] = {"method": "POST", "url": each["resource"]["resourceType"]}
    bundle = {"resourceType": "Bundle", "type": kind, "entry": entries}
    said = await sends(hub, at_torbay, "POST", "/Bundle", bundle)
    assert said.status_code == 200, said.text
    assert FENNIMOSS.family in (await at_exeter.get("/Patient")).text
    [found] = (await at_exeter.get("/Task")).json()["entry"]
    assert {each["system"] for each in found["resource"]["identifier"]} >= {HUB_TRANSFER}


#          who may        Torbay (sender)  Exeter (receiver)  Plymouth
VERBS = {
    "accepted":         (422, 200, 404),
    "rejected":         (422, 200, 404),
    "ready":            (422, 200, 404),
    "cancelled":        (200, 422, 404),
    "entered-in-error": (200, 422, 404),
    "in-progress":      (200, 200, 404),
    "on-hold":          (422, 200, 404),
}  # fmt: skip


@pytest.mark.parametrize("status", VERBS)
async def test_who_may_decide_what_on_a_request(hub, torbay, facade, at_torbay, at_exeter, status):
    """Each decision by each trust, by PUT, PATCH and POST alike."""
    at_plymouth = await (await System.join(facade, "RK9")).signed_in()
    patients = cycle(each for each in PEOPLE if each.nhs_number)
    for system, expected in zip((at_torbay, at_exeter, at_plymouth), VERBS[status], strict=True):
        for verb in ("PUT", "PATCH", "POST"):
            number, patient = f"TR-{uuid.uuid4()}", next(patients)
            made = await sends(
                hub,
                at_torbay,
                "POST",
                "/ServiceRequest",
                service_request(torbay, number=number, patient=patient),
            )
            assert made.status_code == 201, made.text
            transfer_id = made.json()["id"]
            hub.clock.later(minutes=1)
            task = (await at_torbay.get(f"/Task/{transfer_id}")).json()
            reason = {
                "coding": [{"system": "https://fhir.nhs.uk/CodeSystem/message-reason-bars", "code": "RRNA"}]
            }
            change = {"status": status, "statusReason": reason, "lastModified": hub.clock().isoformat()}
            if verb == "PATCH":
                body = [{"op": "add", "path": f"/{name}", "value": said} for name, said in change.items()]
                said = await sends(
                    hub, system, verb, f"/Task/{transfer_id}", body, kind="application/json-patch+json"
                )
            elif verb == "PUT":
                said = await sends(hub, system, verb, f"/Task/{transfer_id}", task | change)
            else:
                about = {"focus": {"reference": f"ServiceRequest/{transfer_id}"}}
                said = await sends(hub, system, verb, "/Task", task | change | about)
            good = 201 if verb == "POST" else 200
            assert said.status_code == (good if expected == 200 else expected), (verb, said.text)
