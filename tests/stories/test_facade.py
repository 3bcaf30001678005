"""A hospital without Kafka: it asks, decides, looks, and fetches over REST, under the same promises."""

import asyncio
import base64
import random
import uuid
from datetime import timedelta
from urllib.parse import quote

import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from hub.demo.people import FENNIMOSS, MARSHWIGGLE, PEOPLE, QUILLFEATHER, THISTLEWICK
from hub.dialects.fhir_xml import parse_xml
from hub.domain.rejection import Why
from hub.domain.trust import Directory, Doors
from hub.facade import send
from hub.fhir.systems import HUB_TRANSFER, NHS_NUMBER, ODS_ORGANISATION
from hub.store import clients
from hub.store import tables as t
from hub.trusts import load_directory
from tests.stories.conftest import PERSONAL, SCHEMAS, edited, resources
from tests.stories.rest import URL, System, facade_of, issue


@pytest.fixture
async def at_exeter(facade):
    return await (await System.join(facade, "RH8", kind="RSA")).signed_in()


@pytest.fixture
async def at_plymouth(facade):
    return await (await System.join(facade, "RK9")).signed_in()


def request(torbay, patient=MARSHWIGGLE, number="TR-1", stay="V-1", to="RH8", **more):
    """A transfer request as Torbay's record system writes it."""
    at = torbay.hub.clock()
    return torbay.epr.asks_to_transfer(
        patient, to=to, request_number=number, encounter_number=stay, at=at, **more
    )


async def asked(hub, torbay, system, *, change=None, **more):
    """A request that was taken in over REST: its transfer's id."""
    message = request(torbay, **more)
    message = edited(message, change) if change else message
    answer = await system.send(message)
    assert answer.status_code == 200, answer.text
    hub.expected += 1
    [row] = await hub.rows(t.message, t.message.c.message_id == message.headers["x-request-id"])
    [event] = await hub.rows(t.event, t.event.c.event_id == row["event_id"])
    return event["transfer_id"]


async def test_a_transfer_from_asking_to_deciding_without_kafka(hub, torbay, at_torbay, at_exeter):
    """Torbay asks, Exeter sees it, reads the Task and says yes with the version it saw; each is told in its inbox."""
    message = request(torbay)
    answer = await at_torbay.send(message)
    hub.expected += 1

    assert answer.status_code == 200
    header = answer.json()["entry"][0]["resource"]
    sent = orjson.loads(message.body)
    assert (header["response"]["code"], header["response"]["identifier"]) == ("ok", sent["id"])
    assert answer.headers["x-request-id"] == message.headers["x-request-id"]
    assert answer.headers["x-correlation-id"] == message.headers["x-correlation-id"]
    [transfer] = await hub.rows(t.transfer)
    assert await hub.told("RH8") == ["transfer.requested"]

    read = await at_exeter.get(f"/Task/{transfer['transfer_id']}")
    assert (read.status_code, read.headers["etag"]) == (200, 'W/"1"')
    task = read.json()
    assert (task["status"], task["for"]["identifier"]["value"]) == ("requested", MARSHWIGGLE.nhs_number)
    hub.clock.later(minutes=10)
    decided = task | {"status": "accepted", "lastModified": hub.clock().isoformat()}
    said = await at_exeter.put(decided, version=1)
    hub.expected += 1

    assert (said.status_code, said.json()["status"], said.headers["etag"]) == (200, "accepted", 'W/"2"')
    assert await hub.told("RA9") == ["transfer.accepted"]
    [_, row] = await hub.rows(t.message)
    assert (row["topic"], row["trust"], row["disposition"]) == (None, "RH8", "accepted")
    heard = await hub.audit(code="msg-received")
    assert {entry["system"] for entry in heard} == {"rest"}


async def test_a_decision_on_what_has_changed_meanwhile_is_refused_with_the_version(
    hub, torbay, at_torbay, at_exeter
):
    transfer_id = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{transfer_id}")).json()
    for status, version in (("received", 1), ("accepted", 1)):
        hub.clock.later(minutes=1)
        said = await at_exeter.put(
            task | {"status": status, "lastModified": hub.clock().isoformat()}, version=version
        )
        hub.expected += 1
    assert said.status_code == 412
    assert issue(said) == ("REC_CONFLICT", "conflict")
    assert said.headers["etag"] == 'W/"2"'


async def test_the_sender_may_not_decide(hub, torbay, at_torbay):
    transfer_id = await asked(hub, torbay, at_torbay)
    task = (await at_torbay.get(f"/Task/{transfer_id}")).json()
    said = await at_torbay.put(task | {"status": "accepted"})
    hub.expected += 1
    assert said.status_code in {409, 422}
    assert (await hub.state(transfer_id)) == "requested"


async def test_the_same_message_again_is_a_duplicate_and_other_bytes_a_conflict(hub, torbay, at_torbay):
    message = request(torbay)
    first = await at_torbay.send(message)
    again = await at_torbay.send(message)
    other = request(torbay, FENNIMOSS, "TR-2", "V-2")
    changed = await at_torbay.send(other, **{"x-request-id": message.headers["x-request-id"]})
    hub.expected += 3

    assert (first.status_code, again.status_code, changed.status_code) == (200, 409, 409)
    assert issue(again) == ("REC_CONFLICT", "duplicate")
    assert issue(changed) == ("REC_CONFLICT", "conflict")
    assert len(await hub.rows(t.transfer)) == 1
    assert await hub.told("RH8") == ["transfer.requested"]


async def test_a_message_sent_over_kafka_and_then_over_rest_is_one_message(hub, torbay, at_torbay):
    message = request(torbay)
    assert str(await torbay.send(message)) == "accepted"
    again = await at_torbay.send(message)
    hub.expected += 1
    assert issue(again) == ("REC_CONFLICT", "duplicate")
    assert await hub.told("RH8") == ["transfer.requested"]


async def test_twenty_attempts_at_once_are_one_message(hub, torbay, at_torbay):
    message = request(torbay)
    answers = await asyncio.gather(*(at_torbay.send(message) for _ in range(20)))
    statuses = sorted(each.status_code for each in answers)
    hub.expected += sum(each.status_code != 425 for each in answers)

    assert statuses[0] == 200
    assert set(statuses[1:]) <= {409, 425}
    assert all(issue(each)[1] == "duplicate" for each in answers if each.status_code != 200)
    assert len(await hub.rows(t.transfer)) == 1
    assert await hub.told("RH8") == ["transfer.requested"]


async def test_what_takes_too_long_is_committed_all_the_same_or_not_at_all(hub, torbay, facade):
    """408 after the time that is allowed; the same id says later that it was delivered."""
    slow = facade_of(hub, answer_s=0.0001)
    system = await (await System.join(slow, "RA9")).signed_in()
    message = request(torbay)
    answer = await system.send(message)
    assert (answer.status_code, issue(answer)) == (408, ("REC_TIMEOUT", "timeout"))
    while slow._late:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    patient = await (await System.join(facade, "RA9")).signed_in()
    again = await patient.send(message)
    hub.expected += 2
    assert issue(again) == ("REC_CONFLICT", "duplicate")
    assert await hub.told("RH8") == ["transfer.requested"]


async def test_an_encounter_is_put_by_its_identifier(hub, torbay, exeter, at_torbay, at_exeter):
    """NHS England's encounter notification: a bare Encounter; the address names the stay that the body names."""
    transfer_id = await asked(hub, torbay, at_torbay)
    hub.clock.later(minutes=30)
    bundle = orjson.loads(
        torbay.epr.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801", at=hub.clock()).body
    )
    stay = next(e["resource"] for e in bundle["entry"] if e["resource"]["resourceType"] == "Encounter")
    stay["subject"] = {
        "type": "Patient",
        "identifier": {"system": NHS_NUMBER, "value": MARSHWIGGLE.nhs_number},
    }
    [named] = stay["identifier"]

    async def put(value):
        said = {"Content-Type": "application/fhir+json", "X-Request-Id": str(uuid.uuid4())}
        return await at_torbay.call(
            "PUT",
            "/Encounter",
            params={"identifier": f"{named['system']}|{value}"},
            headers=said,
            content=orjson.dumps(stay),
        )

    wrong = await put("V-9")
    assert (wrong.status_code, issue(wrong)) == (400, ("SEND_BAD_REQUEST", "invalid"))
    right = await put(named["value"])
    hub.expected += 1
    assert right.status_code == 200, right.text
    assert await hub.state(transfer_id) == "in-transit"


# -- who may ---------------------------------------------------------------------------------------------------


async def test_a_third_trust_is_told_that_there_is_nothing(hub, torbay, at_torbay, at_plymouth):
    """The same words for what is not there and for what is another's; both are written down."""
    transfer_id = await asked(hub, torbay, at_torbay)
    nobodys = str(uuid.uuid4())
    answers = [
        (await at_plymouth.get(f"/Task/{each}{more}"))
        for each in (transfer_id, nobodys)
        for more in ("", "/_history", "/_history/1")
    ]
    assert {each.status_code for each in answers} == {404}
    assert len({each.content for each in answers}) == 1
    task = {"resourceType": "Task", "id": transfer_id, "status": "accepted"}
    assert (await at_plymouth.put(task)).status_code == 404
    denied = await hub.audit(code="access-denied")
    assert [(entry["trust"], entry["transfer_id"]) for entry in denied] == [
        *[("RK9", transfer_id)] * 3,
        *[("RK9", None)] * 3,
        ("RK9", transfer_id),
    ]
    assert (await hub.state(transfer_id)) == "requested"


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_byte_of_a_foreign_trust_comes_back(hub, facade, seed):
    """Random transfers between random hospitals; each asks for everything, its own and others', in every way there is."""
    rng = random.Random(seed)
    trusts = ("RA9", "RH8", "RK9", "RA7")
    systems = {ods: await (await System.join(facade, ods)).signed_in() for ods in trusts}
    parties = {}
    for number in range(6):
        sender, receiver = rng.sample(trusts, 2)
        patient = PEOPLE[number]
        hospital = hub.trust(sender)
        transfer_id = await asked(
            hub, hospital, systems[sender], patient=patient, number=f"TR-{number}", stay=f"V-{number}", to=receiver
        )  # fmt: skip
        parties[transfer_id] = ({sender, receiver}, patient)
        if rng.random() < 0.5:
            hub.clock.later(minutes=1)
            await hub.trust(receiver).answers(
                patient, "accepted", requester=hospital.profile, request_number=f"TR-{number}"
            )
    numbers = [patient.nhs_number for _, patient in parties.values()]
    locals_ = [patient.local[ods] for _, patient in parties.values() for ods in trusts]
    paths = [
        "/Task",
        "/Task?_count=1",
        "/Task?_sort=_lastUpdated&_count=2",
        *(f"/Task?patient:identifier={NHS_NUMBER}|{each}" for each in numbers),
        *(f"/Task?patient:identifier={each}" for each in (*numbers, *locals_)),
        *(f"/Task?identifier=TR-{each}" for each in range(6)),
        *(
            f"/Task?{role}:identifier={ODS_ORGANISATION}|{ods}"
            for role in ("owner", "requester")
            for ods in trusts
        ),
        "/Task?status=requested,accepted",
        "/Task?business-status=accepted&_sort=_lastUpdated",
        *(
            f"/Task/{each}{more}"
            for each in parties
            for more in ("", "/_history", "/_history/1", "/_history/2")
        ),
        *(f"/Task?_id={each}" for each in parties),
        "/Task?_id=" + ",".join(parties),
        *(f"/Task?identifier={HUB_TRANSFER}|{each}" for each in parties),
        *(f"/ServiceRequest/{each}" for each in parties),
        *(f"/Patient/{row['person_id']}" for row in await hub.rows(t.person)),
        *(f"/Patient?_id={row['person_id']}" for row in await hub.rows(t.person)),
        *(f"/Patient?identifier={each}" for each in (*numbers, *locals_)),
        "/Patient?_count=2",
        "/Encounter?_count=2",
        "/Provenance?_count=1",
        "/MessageHeader?_count=2",
        *(f"/Provenance?target=Task/{each}" for each in parties),
        *(f"/MessageHeader?focus=Task/{each}" for each in parties),
        *(f"/Encounter?_id={each}-sender,{each}-receiver" for each in parties),
        *(
            f"/{kind}{more}"
            for each in parties
            for kind in (f"Encounter/{each}-sender", f"Provenance/{each}-1", f"ServiceRequest/{each}")
            for more in ("", "/_history", "/_history/1")
        ),
        *(f"/Patient/{row['person_id']}/_history" for row in await hub.rows(t.person)),
        *(
            f"/{kind}/{row['seq']}{more}"
            for row in await hub.rows(t.outbox)
            for kind in ("MessageHeader", "Bundle")
            for more in ("", "/_history", "/_history/1")
        ),
        "/ServiceRequest?_count=2&_include=ServiceRequest:subject",
        "/Task?_include=Task:focus&_include=Task:patient",
        *(f"/Bundle/{row['seq']}" for row in await hub.rows(t.outbox)),
    ]
    for ods, system in systems.items():
        hidden = [each for each in parties.items() if ods not in each[1][0]]
        for path in rng.sample(paths, 90):
            while path:
                answer = await system.get(path)
                body = answer.json()
                # What was asked for comes back in the links; nothing else may.
                links = {each["relation"]: each["url"] for each in body.pop("link", [])}
                said = orjson.dumps(body).decode()
                for transfer_id, (_, patient) in hidden:
                    for word in (transfer_id, patient.nhs_number, patient.family):
                        assert word not in said, (ods, path)
                path = links.get("next", "").partition("/fhir")[2]  # noqa: PLW2901 - the next page
        count = await system.get("/Task?_summary=count")
        assert count.json()["total"] == len(parties) - len(hidden), ods


async def test_a_draft_is_not_there_for_the_receiver(hub, torbay, at_torbay, at_exeter):
    def draft(tree):
        for each in resources(tree, "ServiceRequest"):
            each["status"] = "draft"

    transfer_id = await asked(hub, torbay, at_torbay, change=draft)
    assert await hub.state(transfer_id) == "draft"
    assert (await at_torbay.get(f"/Task/{transfer_id}")).status_code == 200
    assert (await at_exeter.get(f"/Task/{transfer_id}")).status_code == 404
    assert (await at_exeter.get("/Task?_summary=count")).json()["total"] == 0


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("expired", {"exp": -3600}),
        ("life", {"exp": 3600}),
        ("future", {"iat": 600}),
        ("audience", {"aud": "https://another.example/oauth2/token"}),
        ("unknown-client", {"iss": "somebody-else"}),
        ("subject", {"sub": "somebody-else"}),
        ("jti", {"jti": None}),
        ("exp", {"exp": None}),
        ("jti", {"jti": "a\x00b"}),
        ("issuer", {"iss": "a\x00b"}),
    ],
)
async def test_an_assertion_that_is_not_right_gets_no_token(hub, facade, fault, changed):
    system = await System.join(facade, "RA9")
    now = int(hub.clock().timestamp())
    claims = {name: now + value if isinstance(value, int) else value for name, value in changed.items()}
    answer = await system.ask_for_token(system.assertion(**claims))
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    [entry] = await hub.audit(code="auth-failed")
    assert entry["detail"]["why"] == fault


async def test_a_signature_that_is_not_the_clients_gets_no_token(hub, facade):
    system = await System.join(facade, "RA9")
    forged = system.assertion(key=ECKey.generate_key("P-384", {"kid": "one"}))
    shared = jwt.encode(
        {"alg": "HS256", "kid": "one"}, {"iss": system.client.id}, OctKey.import_key("x" * 48)
    )
    said = base64.urlsafe_b64encode(orjson.dumps({"iss": system.client.id, "sub": system.client.id})).decode()
    unsigned = (
        base64.urlsafe_b64encode(b'{"alg":"none","kid":"one"}').decode().rstrip("=") + f".{said.rstrip('=')}."
    )
    for each in (forged, shared, unsigned, "rubbish", ""):
        assert (await system.ask_for_token(each)).status_code == 401
    assert {entry["detail"]["why"] for entry in await hub.audit(code="auth-failed")} <= {
        "signature",
        "malformed",
    }


async def test_an_assertion_is_good_for_once(hub, facade):
    system = await System.join(facade, "RA9")
    assertion = system.assertion()
    answers = await asyncio.gather(*(system.ask_for_token(assertion) for _ in range(5)))
    assert sorted(each.status_code for each in answers) == [200, 401, 401, 401, 401]
    assert "used before" in next(each for each in answers if each.status_code == 401).text


async def test_a_token_that_is_not_right_opens_nothing(hub, facade, at_torbay):
    office = facade.office
    expired = office.issue(at_torbay.client, "system/*.cruds", hub.clock() - timedelta(hours=4))
    early = office.issue(at_torbay.client, "system/*.cruds", hub.clock() + timedelta(hours=1))
    anothers = facade_of(hub).office.issue(at_torbay.client, "system/*.cruds", hub.clock())
    head, claims, _ = at_torbay.token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=") + f".{claims}."
    assertion = at_torbay.assertion()
    for token in (expired, early, anothers, none, f"{head}.{claims}.", assertion, "rubbish", None):
        at_torbay.token = token
        answer = await at_torbay.get("/Task")
        assert answer.status_code == 401, token
        assert issue(answer)[0] == "SEND_UNAUTHORIZED"


async def test_a_revoked_client_is_out_at_once(hub, facade, at_torbay):
    assert (await at_torbay.get("/Task")).status_code == 200
    await clients.revoke(hub.engine, at_torbay.client.id, hub.clock())
    assert (await at_torbay.get("/Task")).status_code == 401
    assert (await at_torbay.ask_for_token(at_torbay.assertion())).status_code == 401


async def test_a_token_does_only_what_its_scopes_say(hub, torbay, facade):
    reader = await System.join(facade, "RA9", scopes="system/Task.rs system/Bundle.s")
    given = await reader.ask_for_token(reader.assertion(), scope="system/Task.r system/Bundle.c")
    assert given.json()["scope"] == "system/Task.r"
    await reader.signed_in()
    assert (await reader.get("/Task")).status_code == 200
    sent = await reader.send(request(torbay))
    assert (sent.status_code, issue(sent)) == (403, ("SEND_FORBIDDEN", "forbidden"))
    [denied] = await hub.audit(code="access-denied")
    assert denied["detail"]["why"] == "scope"
    assert await hub.rows(t.message) == []


async def test_over_rest_a_message_in_another_trusts_name_is_a_security_event(hub, torbay, at_plymouth):
    answer = await at_plymouth.send(request(torbay))
    hub.expected += 1
    assert (answer.status_code, issue(answer)) == (403, ("REC_FORBIDDEN", "forbidden"))
    assert len(await hub.audit(code="org-mismatch")) == 1


# -- looking ---------------------------------------------------------------------------------------------------


async def test_searching_by_what_a_user_would_expect(hub, torbay, exeter, at_torbay, at_exeter):
    ids = []
    for number, patient in enumerate((MARSHWIGGLE, QUILLFEATHER, THISTLEWICK)):
        ids.append(
            await asked(hub, torbay, at_torbay, patient=patient, number=f"TR-{number}", stay=f"V-{number}")
        )
        hub.clock.later(minutes=1)
    await exeter.answers(QUILLFEATHER, "accepted", requester=torbay.profile, request_number="TR-1")
    first = hub.clock() - timedelta(minutes=3)

    async def found(query):
        answer = await at_exeter.get(f"/Task?{query}")
        assert answer.status_code == 200, answer.text
        return [each["resource"]["id"] for each in answer.json().get("entry", [])]

    local = THISTLEWICK.local["RA9"]
    system = torbay.profile.identifier_systems
    assert await found("") == [ids[1], ids[2], ids[0]]  # the last changed first
    assert await found("_sort=_lastUpdated") == [ids[0], ids[2], ids[1]]
    assert await found("status=requested") == [ids[2], ids[0]]
    assert await found("business-status=accepted") == [ids[1]]
    assert await found("status=requested&business-status=accepted") == []
    assert await found(f"identifier={system.request}|TR-2") == [ids[2]]
    assert await found(f"identifier={HUB_TRANSFER}|{ids[0]}") == [ids[0]]
    assert await found(f"patient:identifier={NHS_NUMBER}|{QUILLFEATHER.nhs_number}") == [ids[1]]
    assert await found(f"subject.identifier={NHS_NUMBER}|{QUILLFEATHER.nhs_number}") == [ids[1]]
    assert await found(f"requester:identifier={ODS_ORGANISATION}|ra9&owner:identifier=RH8&_count=1") == [
        ids[1]
    ]
    assert await found("owner:identifier=RA9") == []
    assert await found(f"_lastUpdated=lt{first:%Y-%m-%dT%H:%M:%SZ}") == []
    assert await found(f"_lastUpdated={first:%Y-%m-%dT%H:%MZ}") == [ids[0]]
    assert await found(f"_lastUpdated=gt{first:%Y-%m-%dT%H:%MZ}&_lastUpdated=le{first:%Y}") == [
        ids[1],
        ids[2],
    ]
    # A hospital's own number is known to that hospital only.
    assert await found(f"patient:identifier={system.patient}|{local}") == []
    mine = await at_torbay.get(f"/Task?patient:identifier={system.patient}|{local}")
    assert [each["resource"]["id"] for each in mine.json()["entry"]] == [ids[2]]
    posted = await at_exeter.call("POST", "/Task/_search", data={"status": "accepted"})
    assert [each["resource"]["id"] for each in posted.json()["entry"]] == [ids[1]]


async def test_pages_hold_while_things_change(hub, torbay, exeter, at_torbay):
    """A transfer that moves while somebody turns pages is seen at most once more, and none is missed."""
    ids = []
    for number in range(5):
        ids.append(
            await asked(hub, torbay, at_torbay, patient=MARSHWIGGLE if number % 2 else QUILLFEATHER,
                        number=f"TR-{number}", stay=f"V-{number}", to="RH8")
        )  # fmt: skip
        hub.clock.later(minutes=1)
    answer = await at_torbay.get("/Task?_count=2&_total=accurate")
    assert answer.json()["total"] == 5
    seen = [each["resource"]["id"] for each in answer.json()["entry"]]
    await exeter.answers(QUILLFEATHER, "accepted", requester=torbay.profile, request_number="TR-0")
    while links := [e["url"] for e in answer.json()["link"] if e["relation"] == "next"]:
        answer = await at_torbay.get(links[0].partition("/fhir")[2])
        seen += [each["resource"]["id"] for each in answer.json()["entry"]]
    assert set(ids[1:]) <= set(seen)
    assert len(seen) == len(set(seen))


async def test_what_a_search_does_not_know(hub, at_torbay):
    lenient = await at_torbay.get("/Task?colour=red&_summary=count")
    assert lenient.json()["entry"][0]["resource"]["issue"][0]["severity"] == "warning"
    assert "colour" not in lenient.json()["link"][0]["url"]
    strict = await at_torbay.get("/Task?colour=red", headers={"Prefer": "handling=strict"})
    assert (strict.status_code, issue(strict)) == (400, ("SEND_BAD_REQUEST", "not-supported"))
    for query in ("status=blue", "_lastUpdated=yesterday", "_count=many", "_sort=colour", "_page=x"):
        answer = await at_torbay.get(f"/Task?{query}")
        assert (answer.status_code, issue(answer)[0]) == (400, "SEND_BAD_REQUEST"), query


@pytest.mark.parametrize(
    "said",
    ["20261123", "ge20261123", "2026-W48-1", "2026-11-23T09", "2026-11-23T090000Z", "ne2026-11-23", "2026-11-23,2026-11-24",
     "20261123T09:00:00Z", "2026-11-23T09:00:00+01", " 026", "+026", "2026-1-1", "2026-11-23 09:00", "\u0662\u0660\u0662\u0666"],
)  # fmt: skip
async def test_a_date_that_is_not_fhirs_is_not_guessed(hub, torbay, at_torbay, said):
    """20261123 was taken for the first minute of that day: nothing was found, and so nobody seemed to have looked."""
    await asked(hub, torbay, at_torbay)
    for query in ("Task?_lastUpdated", "AuditEvent?date", "AuditEvent?_lastUpdated"):
        answer = await at_torbay.get(f"/{query}={quote(said)}")
        assert (answer.status_code, issue(answer)) == (400, ("SEND_BAD_REQUEST", "value")), query
    for sound in ("2026", "2026-11", "2026-11-23", "2026-11-23T09:00Z", "2026-11-23T09:00:00.000%2B00:00"):
        assert (await at_torbay.get(f"/Task?_lastUpdated={sound}&_summary=count")).json()["total"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/Task/a%00b",
        "/Task?identifier=a%00b",
        "/Task?_id=%00",
        "/Patient/%00",
        "/Organization/%00",
        f"/Task?_page={base64.urlsafe_b64encode(b'2026-01-01T00:00:00+00:00 a' + bytes(1)).decode()}",
        f"/Task?_page={base64.urlsafe_b64encode(b'0001-01-01T00:00:00+14:00 a').decode()}",
        "/Task?_lastUpdated=9999-12-31",
        "/Task?_lastUpdated=9999",
        "/Task?_lastUpdated=0001-01-01T00:00%2B14:00",
        "/Task?_lastUpdated=2026-13",
        "/$inbox?_count=0",
    ],
)
async def test_what_no_database_can_look_for_is_said(hub, at_torbay, path):
    answer = await at_torbay.get(path)
    assert answer.status_code in {400, 422}
    assert issue(answer)[0].startswith("SEND_")
    assert [line for line in hub.log.lines if line["level"] == "error"] == []


async def test_every_version_can_be_read_again(hub, torbay, exeter, at_torbay):
    transfer_id = await asked(hub, torbay, at_torbay)
    for status in ("received", "accepted", "ready"):
        hub.clock.later(minutes=5)
        await exeter.answers(MARSHWIGGLE, status, requester=torbay.profile, request_number="TR-1")
    history = (await at_torbay.get(f"/Task/{transfer_id}/_history")).json()
    statuses = [each["resource"]["status"] for each in history["entry"]]
    assert (history["total"], statuses) == (4, ["ready", "accepted", "received", "requested"])
    for entry in history["entry"]:
        version = entry["resource"]["meta"]["versionId"]
        read = await at_torbay.get(f"/Task/{transfer_id}/_history/{version}")
        assert read.json() == entry["resource"]
    assert (await at_torbay.get(f"/Task/{transfer_id}/_history/9")).status_code == 404
    read = await at_torbay.get(f"/Task/{transfer_id}")
    assert read.json() == history["entry"][0]["resource"]
    same = await at_torbay.get(f"/Task/{transfer_id}", headers={"If-None-Match": read.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


async def test_the_request_and_the_patient_are_read_as_they_were_told_last(
    hub, torbay, exeter, at_torbay, at_exeter
):
    """Exeter reads what it was asked and for whom; an update changes it, and its own record of the patient comes first."""
    transfer_id = await asked(hub, torbay, at_torbay)
    task = (await at_exeter.get(f"/Task/{transfer_id}")).json()
    wish = (await at_exeter.get(f"/{task['focus']['reference']}")).json()
    assert (wish["id"], wish["status"]) == (transfer_id, "active")
    assert wish["subject"]["reference"] == task["for"]["reference"]
    assert "urn:uuid" not in orjson.dumps(wish).decode()
    patient = (await at_exeter.get(f"/{wish['subject']['reference']}")).json()
    assert patient["name"][0]["family"] == MARSHWIGGLE.family

    hub.clock.later(minutes=5)
    update = torbay.epr.updates_request(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )
    changed = edited(update, lambda tree: resources(tree, "ServiceRequest")[0].update(priority="stat"))
    assert (await at_torbay.send(changed)).status_code == 200
    hub.expected += 1
    again = await at_exeter.get(f"/ServiceRequest/{transfer_id}")
    assert (again.json()["priority"], again.headers["etag"]) == ("stat", 'W/"2"')

    found = (await at_exeter.get("/Task?_include=Task:focus&_include=Task:patient")).json()["entry"]
    modes = [(each["resource"]["resourceType"], each["search"]["mode"]) for each in found]
    assert modes == [("Task", "match"), ("ServiceRequest", "include"), ("Patient", "include")]
    for query in (
        "ServiceRequest?status=active",
        f"ServiceRequest?patient:identifier={NHS_NUMBER}|{MARSHWIGGLE.nhs_number}",
        f"ServiceRequest?performer:identifier={ODS_ORGANISATION}|RH8&identifier=TR-1",
        f"Patient?identifier={NHS_NUMBER}|{MARSHWIGGLE.nhs_number}",
        f"Patient?_id={patient['id']}",
    ):
        [one] = (await at_exeter.get(f"/{query}")).json()["entry"]
        assert one["resource"]["resourceType"] == query.partition("?")[0]
    assert "entry" not in (await at_exeter.get("/ServiceRequest?status=revoked")).json()


async def test_what_was_refused_is_no_longer_read(hub, torbay, exeter, at_torbay, at_exeter, at_plymouth):
    """After its no the receiver sees how the transfer stands and nothing else; a third trust saw nothing at any time."""
    transfer_id = await asked(hub, torbay, at_torbay)
    person = (await at_torbay.get(f"/Task/{transfer_id}")).json()["for"]["reference"]
    for path in (f"ServiceRequest/{transfer_id}", person):
        assert (await at_exeter.get(f"/{path}")).status_code == 200
        assert (await at_plymouth.get(f"/{path}")).status_code == 404
    await exeter.answers(
        MARSHWIGGLE, "rejected", requester=torbay.profile, request_number="TR-1", reason="RRNA"
    )
    for path in (f"ServiceRequest/{transfer_id}", person):
        assert (await at_exeter.get(f"/{path}")).status_code == 404
        assert (await at_torbay.get(f"/{path}")).status_code == 200
    task = (await at_exeter.get(f"/Task/{transfer_id}?_include=Task:focus")).json()
    assert (task["status"], "reference" in task["focus"]) == ("rejected", False)
    for query in ("Task?_include=Task:focus&_include=Task:patient", "ServiceRequest", "Patient"):
        kinds = {
            each["resource"]["resourceType"]
            for each in (await at_exeter.get(f"/{query}")).json().get("entry", [])
        }
        assert kinds <= {"Task"}
    why = [entry["detail"]["why"] for entry in await hub.audit(code="access-denied")]
    assert why.count("not-readable") == 1
    assert why.count("no-relationship") >= 3


async def test_what_ended_without_an_arrival_is_read_for_thirty_days(hub, torbay, at_torbay, at_exeter):
    transfer_id = await asked(hub, torbay, at_torbay)
    hub.clock.later(minutes=5)
    await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
    assert await hub.state(transfer_id) == "cancelled"
    path = f"/ServiceRequest/{transfer_id}"
    for system in (at_torbay, at_exeter):
        wish = await system.get(path)
        assert (wish.status_code, wish.json()["status"]) == (200, "revoked")
    hub.clock.later(days=31)
    for system, status in ((at_torbay, 200), (at_exeter, 404)):
        await system.signed_in()
        assert (await system.get(path)).status_code == status


async def test_a_restricted_patients_whereabouts_are_not_read(hub, torbay, at_torbay, at_exeter):
    """PDS's R: address, telecom and GP go nowhere, whichever door is asked."""

    def restrict(tree):
        for each in resources(tree, "Patient"):
            each["meta"] = {
                "security": [
                    {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
                ]
            }
            each["address"] = [{"postalCode": "TQ2 7AA"}]

    transfer_id = await asked(hub, torbay, at_torbay, change=restrict)
    person = (await at_exeter.get(f"/Task/{transfer_id}")).json()["for"]["reference"]
    answers = [
        await at_exeter.get(path) for path in (f"/{person}", "/Patient", "/Task?_include=Task:patient")
    ]
    assert {each.status_code for each in answers} == {200}
    assert all("TQ2 7AA" not in each.text for each in answers)
    assert "TQ2 7AA" in (await at_torbay.get(f"/{person}")).text


async def test_reading_is_written_down(hub, torbay, at_torbay, at_exeter):
    transfer_id = await asked(hub, torbay, at_torbay)
    await at_exeter.get(f"/Task/{transfer_id}")
    await at_exeter.get(f"/Task?patient:identifier={NHS_NUMBER}|{MARSHWIGGLE.nhs_number}")
    [read] = await hub.audit(code="record-read")
    [searched] = await hub.audit(code="record-search")
    assert (read["trust"], read["transfer_id"], read["client_id"]) == (
        "RH8", transfer_id, at_exeter.client.id,
    )  # fmt: skip
    assert (searched["detail"]["parameters"], searched["detail"]["found"]) == (["patient:identifier"], 1)


async def test_the_trusts_that_have_joined(hub, at_torbay):
    found = (await at_torbay.get(f"/Organization?identifier={ODS_ORGANISATION}|RH8")).json()
    [exeter] = [each["resource"] for each in found["entry"]]
    assert (await at_torbay.get("/Organization/RH8")).json() == exeter
    assert (await at_torbay.get("/Organization/XXX")).status_code == 404


# -- fetching --------------------------------------------------------------------------------------------------


@pytest.fixture
async def polled(hub):
    """A hub at which Exeter fetches its messages by itself."""
    trusts = load_directory(SCHEMAS)
    profiles = [
        each.model_copy(update={"doors": Doors(outward="polled")}) if each.ods == "RH8" else each
        for each in trusts
    ]
    hub.mend(profiles=profiles)
    return facade_of(hub, directory=Directory(profiles))


async def test_a_hospital_fetches_its_messages_until_it_says_that_it_has_them(hub, torbay, polled):
    """In order, again and again until acknowledged, one by one or together; acknowledged twice does no harm."""
    at_torbay = await (await System.join(polled, "RA9")).signed_in()
    at_exeter = await (await System.join(polled, "RH8")).signed_in()
    transfer_id = await asked(hub, torbay, at_torbay)
    for minute in (1, 2):
        hub.clock.later(minutes=minute)
        update = torbay.epr.updates_request(
            MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
        )
        assert (await at_torbay.send(update)).status_code == 200
        hub.expected += 1

    async def waiting(query=""):
        answer = await at_exeter.get(f"/$inbox{query}")
        assert answer.status_code == 200, answer.text
        return [each["resource"] for each in answer.json().get("entry", [])]

    first = await waiting()
    assert await waiting() == first
    kinds = [each["entry"][0]["resource"]["eventCoding"]["code"] for each in first]
    assert kinds == ["transfer.requested", "transfer.updated", "transfer.updated"]
    assert [each["id"] for each in await waiting("?_count=1")] == [first[0]["id"]]
    assert (await at_exeter.get(f"/Bundle/{first[0]['id']}")).json() == first[0]

    foreign = await at_torbay.get(f"/Bundle/{first[0]['id']}")
    assert foreign.status_code == 404
    strange = await at_exeter.ack("987654", "987655")
    assert strange.status_code == 404
    assert await waiting() == first
    assert (await at_torbay.ack(first[0]["id"])).status_code == 404

    assert "1 acknowledged" in (await at_exeter.ack(first[0]["id"])).text
    assert await waiting() == first[1:]
    assert "2 acknowledged, 1 had been before" in (await at_exeter.ack(*(each["id"] for each in first))).text
    assert await waiting() == []
    sent = await hub.audit(transfer_id=transfer_id, code="disclosure-sent")
    assert len(sent) == 3
    assert {entry["client_id"] for entry in sent} == {at_exeter.client.id}
    assert (await at_exeter.get(f"/Bundle/{first[0]['id']}")).json() == first[0]


async def test_a_number_that_is_not_the_trusts_keeps_no_other_waiting(hub, torbay, polled):
    """Exeter's system says all that it has stored, and one of the numbers is wrong: told 404, it fetched the same for ever."""
    at_torbay = await (await System.join(polled, "RA9")).signed_in()
    at_exeter = await (await System.join(polled, "RH8")).signed_in()
    for number, patient in enumerate((MARSHWIGGLE, QUILLFEATHER, FENNIMOSS), 1):
        await asked(hub, torbay, at_torbay, patient=patient, number=f"TR-{number}", stay=f"V-{number}")
    [*has, last] = [each["resource"]["id"] for each in (await at_exeter.get("/$inbox")).json()["entry"]]
    said = await at_exeter.ack(*has, "987654")
    known, strange = said.json()["issue"]
    assert (said.status_code, known["severity"], strange["severity"]) == (200, "information", "warning")
    assert "2 acknowledged, 0 had been before" in known["diagnostics"]
    assert "987654" in strange["diagnostics"]
    assert not any(f" {each}" in strange["diagnostics"] for each in (*has, last))
    assert [each["resource"]["id"] for each in (await at_exeter.get("/$inbox")).json()["entry"]] == [last]
    [denied] = await hub.audit(code="access-denied")
    assert (denied["trust"], denied["detail"]["interaction"]) == ("RH8", "acknowledge")
    assert len(await hub.audit(code="disclosure-sent")) == 2


async def test_who_fetches_an_inbox_has_seen_the_patient_also_without_acknowledging(hub, torbay, polled):
    """The messages are whole: who has them is written down when they are given, for each patient, not when they say so."""
    at_torbay = await (await System.join(polled, "RA9")).signed_in()
    at_exeter = await (await System.join(polled, "RH8")).signed_in()
    assert (await at_exeter.get("/$inbox")).json().get("entry") is None
    assert await hub.audit(code="record-read") == [], "nothing was given"
    first = await asked(hub, torbay, at_torbay)
    second = await asked(hub, torbay, at_torbay, patient=QUILLFEATHER, number="TR-2", stay="V-2")
    given = (await at_exeter.get("/$inbox")).json()["entry"]
    read = await hub.audit(code="record-read")
    assert [(row["trust"], row["client_id"], row["transfer_id"], row["detail"]) for row in read] == [
        (
            "RH8",
            at_exeter.client.id,
            transfer,
            {"interaction": "inbox", "as": "system", "messages": [int(each["resource"]["id"])]},
        )
        for transfer, each in zip((first, second), given, strict=True)
    ]
    assert len({row["person_id"] for row in read} - {None}) == 2


async def test_a_hospital_with_a_topic_is_told_where_its_messages_are(hub, at_exeter):
    answer = await at_exeter.get("/$inbox")
    assert answer.status_code == 422
    assert "hub.rh8.inbox" in answer.text


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"parameter":[{"name":"message","valueId":"-1"}]}',
                                  b'{"parameter":[{"name":"message","valueId":17}, 3]}', b'{"parameter":{}}'])  # fmt: skip
async def test_an_acknowledgement_that_names_nothing(hub, at_exeter, body):
    said = {"Content-Type": "application/fhir+json"}
    answer = await at_exeter.call("POST", "/$ack", headers=said, content=body)
    assert (answer.status_code, issue(answer)[0]) == (400, "SEND_BAD_REQUEST")


# -- errors ----------------------------------------------------------------------------------------------------


async def test_each_reason_of_the_journey_has_an_answer():
    assert set(send.ANSWERS) == set(Why)


@pytest.mark.parametrize(
    ("body", "headers", "status", "expected"),
    [
        (b"{", {}, 400, ("REC_BAD_REQUEST", "structure")),
        (b'{"resourceType":"Colour"}', {}, 400, ("REC_BAD_REQUEST", "structure")),
        (b'{"resourceType":"Binary","contentType":"text/plain"}', {}, 422,
         ("REC_UNPROCESSABLE_ENTITY", "not-supported")),
        (b"{}", {"X-Request-Id": "seventeen"}, 400, ("SEND_BAD_REQUEST", "value")),
        (b"{}", {"X-Request-Id": ""}, 400, ("SEND_BAD_REQUEST", "required")),
        (b"{}", {"NHSD-End-User-Organisation": "ODS"}, 400, ("SEND_BAD_REQUEST", "value")),
        (b"{}", {"Content-Type": "text/csv"}, 415, ("SEND_UNSUPPORTED_MEDIA_TYPE", "not-supported")),
        (b"{}", {"Content-Type": "application/fhir+json; charset=latin-1"}, 415,
         ("SEND_UNSUPPORTED_MEDIA_TYPE", "not-supported")),
        (b"{}", {"Accept": "text/html"}, 406, ("SEND_NOT_ACCEPTABLE", "not-supported")),
        (b"", {}, 400, ("SEND_BAD_REQUEST", "required")),
        (b"x" * 1_000_001, {}, 413, ("SEND_BAD_REQUEST", "too-long")),
    ],
)  # fmt: skip
async def test_what_cannot_be_used_is_said_with_what_to_do(hub, at_torbay, body, headers, status, expected):
    said = {"Content-Type": "application/fhir+json", "X-Request-Id": str(uuid.uuid4())} | headers
    answer = await at_torbay.call("POST", "/$process-message", headers=said, content=body)
    hub.expected += len(await hub.rows(t.message))
    assert (answer.status_code, issue(answer)) == (status, expected)
    assert answer.headers["content-type"].startswith("application/fhir+json")
    assert answer.json()["issue"][0]["diagnostics"]


async def test_xml_is_taken_in_as_json_is(hub, torbay, at_torbay):
    answer = await at_torbay.call(
        "POST",
        "/Bundle",
        headers={"Content-Type": "application/fhir+xml", "X-Request-Id": str(uuid.uuid4())},
        content=b'<Bundle xmlns="http://hl7.org/fhir"><type value="message"/></Bundle>',
    )
    hub.expected += 1
    assert issue(answer) == ("REC_BAD_REQUEST", "required")


@pytest.mark.parametrize(
    ("query", "accept", "xml"),
    [
        ("", "application/fhir+xml", True),
        ("", "text/xml;q=0.5, application/fhir+json;q=0.4", True),
        ("", "text/xml;q=0.5, */*", False),
        ("?_format=xml", "application/fhir+json", True),
        ("?_format=application/fhir+xml", "", True),
        ("?_format=json", "application/fhir+xml", False),
    ],
)
async def test_answers_come_as_they_are_wanted(hub, torbay, at_torbay, query, accept, xml):
    transfer_id = await asked(hub, torbay, at_torbay)
    plain = await at_torbay.get(f"/Task/{transfer_id}")
    answer = await at_torbay.get(f"/Task/{transfer_id}{query}", headers={"Accept": accept} if accept else {})
    assert answer.headers["etag"] == plain.headers["etag"]
    assert answer.headers["content-type"].startswith(f"application/fhir+{'xml' if xml else 'json'}")
    assert (parse_xml(answer.content, 64) if xml else answer.json()) == plain.json()
    refused = await at_torbay.get(
        f"/Task/{uuid.uuid4()}{query}", headers={"Accept": accept} if accept else {}
    )
    outcome = parse_xml(refused.content, 64) if xml else refused.json()
    assert outcome["resourceType"] == "OperationOutcome"


async def test_an_answer_never_quotes_the_message(hub, torbay, at_torbay):
    """A request with the patient's name in every place where it does not belong."""
    tree = orjson.loads(request(torbay).body)
    for entry in tree["entry"]:
        entry["resource"]["status"] = MARSHWIGGLE.family
    said = {"Content-Type": "application/fhir+json", "X-Request-Id": str(uuid.uuid4())}
    answer = await at_torbay.call("POST", "/$process-message", headers=said, content=orjson.dumps(tree))
    hub.expected += 1
    assert answer.status_code == 400
    assert not PERSONAL.search(answer.text)


async def test_addresses_and_methods_that_are_not_served(hub, at_torbay):
    nowhere = await at_torbay.get("/Nowhere")
    assert (nowhere.status_code, issue(nowhere)) == (404, ("SEND_NOT_FOUND", "not-found"))
    wrong = await at_torbay.call("DELETE", f"/Task/{uuid.uuid4()}")
    assert (wrong.status_code, issue(wrong)) == (405, ("SEND_METHOD_NOT_ALLOWED", "not-supported"))


async def test_a_client_that_asks_too_often_is_told_when_to_come_back(hub):
    system = await (await System.join(facade_of(hub, requests_per_s=3), "RA9")).signed_in()
    answers = await asyncio.gather(*(system.get("/Organization/RH8") for _ in range(12)))
    refused = [each for each in answers if each.status_code == 429]
    assert 5 <= len(refused) <= 9
    assert issue(refused[0]) == ("SEND_TOO_MANY_REQUESTS", "throttled")
    assert refused[0].headers["retry-after"] == "1"


async def test_a_flood_of_strangers_does_not_fill_the_audit(hub, monkeypatch):
    """Whoever reaches the hub can be refused as often as they like, and what is written is never deleted: the next entry says how many had none.
    Who is known goes on.
    """
    at = 1000.0
    monkeypatch.setattr("hub.facade.service.time.monotonic", lambda: at)
    facade = facade_of(hub, refusals_per_s=3)
    known = await (await System.join(facade, "RA9")).signed_in()
    stranger = System(facade, known.client, ECKey.generate_key("P-384", {"kid": "one"}), "ES384")
    stranger.token = stranger.assertion(iss=URL)
    for _ in range(10):
        assert (await stranger.get("/Task")).status_code == 401
        assert (await stranger.ask_for_token(stranger.assertion())).status_code == 401
        assert (await known.get("/Task")).status_code == 200
    assert [row["detail"] for row in await hub.audit(code="auth-failed")] == [{"why": "signature"}] * 3
    at += 1
    assert (await stranger.get("/Task")).status_code == 401
    last = (await hub.audit(code="auth-failed"))[3:]
    assert [row["detail"] for row in last] == [{"why": "signature", "refused_besides": 17}]


async def test_a_fault_of_ours_is_an_answer_and_says_nothing(hub, at_torbay, monkeypatch):
    from hub.facade import interactions

    async def broken(*_):
        raise RuntimeError(MARSHWIGGLE.family)

    monkeypatch.setitem(interactions.HANDLERS, "read_organization", broken)
    answer = await at_torbay.get("/Organization/RH8")
    assert (answer.status_code, issue(answer)) == (500, ("REC_SERVER_ERROR", "exception"))
    assert not PERSONAL.search(answer.text)


async def test_what_operators_ask(hub, torbay, facade, at_torbay):
    await at_torbay.get("/Organization/RH8")
    assert (await at_torbay.http.get("/healthz")).text == "well\n"
    metrics = (await at_torbay.http.get("/metrics")).text
    assert 'hub_http_requests_total{interaction="read_organization",status="200"} 1.0' in metrics
    await asked(hub, torbay, at_torbay)
    hub.clock.later(minutes=5)
    unwell = await at_torbay.http.get("/healthz")
    assert (unwell.status_code, "RH8" in unwell.text) == (503, True)


async def test_who_moved_a_transfer_and_what_was_told_can_be_looked_up(
    hub, torbay, exeter, at_torbay, at_exeter
):
    """Provenance names the hospital of each version; the stays of both ends are there; headers come page by page."""
    transfer_id = await asked(hub, torbay, at_torbay)
    for status in ("received", "accepted"):
        hub.clock.later(minutes=5)
        await exeter.answers(MARSHWIGGLE, status, requester=torbay.profile, request_number="TR-1")
    hub.clock.later(minutes=30)
    await torbay.discharges(MARSHWIGGLE, encounter_number="V-1", to_site="RH801")
    hub.clock.later(minutes=30)
    await exeter.admits(MARSHWIGGLE, encounter_number="W-1", ward="Taw Ward", site="RH801")
    made = (await at_torbay.get(f"/Provenance?target=Task/{transfer_id}")).json()["entry"]
    said = [
        (
            each["resource"]["agent"][0]["who"]["identifier"]["value"],
            each["resource"]["activity"]["coding"][0]["code"],
        )
        for each in made
    ]
    assert said == [
        ("RA9", "transfer.requested"),
        ("RH8", "transfer.received"),
        ("RH8", "transfer.accepted"),
        ("RA9", "transfer.departed"),
        ("RH8", "transfer.completed"),
    ]
    stays = (await at_torbay.get("/Encounter")).json()["entry"]
    assert [each["resource"]["id"] for each in stays] == [f"{transfer_id}-sender", f"{transfer_id}-receiver"]
    history = (await at_torbay.get(f"/Encounter/{transfer_id}-sender/_history")).json()["entry"]
    assert [each["resource"]["status"] for each in history] == ["finished", "in-progress"]
    first = await at_torbay.get(f"/Encounter/{transfer_id}-sender/_history/1")
    assert (first.json()["status"], first.headers["etag"]) == ("in-progress", 'W/"1"')
    unchanged = {"If-None-Match": (await at_torbay.get(f"/Encounter/{transfer_id}-sender")).headers["etag"]}
    again = await at_torbay.get(f"/Encounter/{transfer_id}-sender", headers=unchanged)
    # A number in it can be found not to be the patient's while the version stays.
    assert again.status_code == 200
    pages, path = [], "/MessageHeader?_count=2"
    while path:
        page = (await at_torbay.get(path)).json()
        pages.append([each["resource"]["eventCoding"]["code"] for each in page.get("entry", ())])
        path = next((e["url"].rpartition("/fhir")[2] for e in page["link"] if e["relation"] == "next"), None)
    assert [len(each) for each in pages] == [2, 1]
    assert [code for page in pages for code in page][::-1] == await hub.told("RA9")
    states = [
        each["resource"]["status"]
        for each in (await at_exeter.get(f"/ServiceRequest/{transfer_id}/_history")).json()["entry"]
    ]
    assert states == ["completed", "active", "active", "active", "active"]
    places = (await at_torbay.get("/Location?organization=Organization/RH8")).json()["entry"]
    assert "RH801" in {each["resource"]["id"] for each in places}
    by_id = (await at_torbay.get(f"/Encounter?_id={transfer_id}-receiver")).json()["entry"]
    assert [each["resource"]["id"] for each in by_id] == [f"{transfer_id}-receiver"]
    for path in ("/Location/RH801", "/Organization/RH8", f"/Provenance/{transfer_id}-1"):
        [only] = (await at_torbay.get(f"{path}/_history")).json()["entry"]
        assert (await at_torbay.get(f"{path}/_history/1")).json() == only["resource"]
        assert (await at_torbay.get(f"{path}/_history/2")).status_code == 404
    for path in (
        f"/Encounter/{transfer_id}-elsewhere",
        f"/Provenance/{transfer_id}-9",
        "/Provenance/x",
        "/Location/X99",
    ):
        assert (await at_torbay.get(path)).status_code == 404, path
