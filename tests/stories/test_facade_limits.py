"""What is asked in a way that the facade does not serve, or asks too much, is refused before anything is made of it."""

import asyncio
import time
import uuid
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import pytest
from sqlalchemy.exc import DBAPIError

from hub.demo.people import FENNIMOSS, MARSHWIGGLE
from hub.domain.trust import Directory
from hub.facade.app import make_app
from hub.facade.capability import SERVED
from hub.facade.searching import INCLUDED, INCLUDES, token_of_identifier
from hub.fhir.systems import NHS_NUMBER
from hub.store import search
from hub.store import tables as t
from tests.stories.rest import System, facade_of, issue
from tests.stories.test_facade import asked, request

JSON = "application/fhir+json"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
async def polled(hub):
    """A system of Torbay, which fetches its messages."""
    trusts = [
        each.model_copy(update={"doors": each.doors.model_copy(update={"outward": "polled"})})
        if each.ods == "RA9"
        else each
        for each in hub.journey.directory
    ]
    return await (await System.join(facade_of(hub, directory=Directory(trusts)), "RA9")).signed_in()


def faults(hub):
    return [line for line in hub.log.lines if line["level"] == "error"]


async def two_patients(hub, torbay, at_torbay):
    """The transfer of Mr Marshwiggle; Ms Fennimoss has one too."""
    transfer = await asked(hub, torbay, at_torbay)
    await asked(hub, torbay, at_torbay, patient=FENNIMOSS, number="TR-2", stay="V-2")
    return transfer


# -- one patient, and nobody else --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["patient", "subject", "patient:Patient"])
@pytest.mark.parametrize("begin", ["Patient/", "", "https://hub.example/fhir/Patient/"])
async def test_a_patient_is_asked_for_by_the_reference_in_the_task(hub, torbay, at_torbay, name, begin):
    transfer = await two_patients(hub, torbay, at_torbay)
    reference = (await at_torbay.get(f"/Task/{transfer}")).json()["for"]["reference"]
    said = begin + reference.removeprefix("Patient/")
    for kind, must in (("Task", [transfer]), ("ServiceRequest", [transfer])):
        answer = (await at_torbay.get(f"/{kind}?{name}={said}&_total=accurate")).json()
        assert ([each["resource"]["id"] for each in answer["entry"]], answer["total"]) == (must, 1)
    nobody = (await at_torbay.get(f"/Task?{name}={begin}somebody-else&_total=accurate")).json()
    assert (nobody["total"], nobody.get("entry")) == (0, None)


async def test_a_patient_is_asked_for_by_a_chain_to_their_number(hub, torbay, at_torbay):
    transfer = await two_patients(hub, torbay, at_torbay)
    answer = await at_torbay.get(f"/Task?patient:Patient.identifier={NHS_NUMBER}|{MARSHWIGGLE.nhs_number}")
    assert [each["resource"]["id"] for each in answer.json()["entry"]] == [transfer]


@pytest.mark.parametrize("prefer", ["handling=lenient", "handling=strict"])
@pytest.mark.parametrize(
    "query",
    [
        "Task?for=Patient/x",
        "Task?patient:identifier=",
        "Task?patient=",
        "Task?subject:missing=true",
        "Task?patient:Patient.name=x",
        "Task?patient=https://elsewhere.example/Patient/x",
        "Task?patient=Organization/RA9",
        "Task?status:not=accepted",
        "Task?status=",
        "Task?owner=Organization/RH8",
        "Patient?patient=x",
        "Patient?identifier:exact=x",
        "Patient?family=Marshwiggle&birthdate=1950-01-01",
        "Patient?name:contains=Marsh",
        "Patient?birthdate=",
        "Patient?gender=male",
        "Patient?phone=01803555000",
        "Patient?address-postalcode=TQ2",
        "Patient?general-practitioner:identifier=x",
        "Patient?_has:Encounter:subject:identifier=x",
        "Task?_filter=patient eq x",
        "AuditEvent?_has:Provenance:target:agent=x",
        "Location?_text=x",
        "MessageHeader?focus=",
        "MessageHeader?focus:identifier=x",
        "MessageHeader?patient=x",
        "MessageHeader?focus=Task/a&focus=Task/b",
        "Subscription?status:not=off",
        "Organization?identifier=",
        "AuditEvent?patient=Patient/x",
        "AuditEvent?patient:identifier=",
        "AuditEvent?agent=Organization/RA9",
        "AuditEvent?subject:identifier=x",
    ],
)
async def test_what_narrows_is_never_passed_over(hub, at_torbay, query, prefer):
    """A client that believes that it asked for one patient must not be shown others."""
    answer = await at_torbay.get(f"/{query}", headers={"Prefer": prefer})
    assert (answer.status_code, issue(answer)[0]) == (400, "SEND_BAD_REQUEST")


async def test_everywhere_what_is_not_known_is_named(hub, at_torbay):
    for kind in ("MessageHeader", "Subscription", "Organization", "Location"):
        lenient = await at_torbay.get(f"/{kind}?colour=red")
        assert "colour" in lenient.json()["entry"][-1]["resource"]["issue"][0]["diagnostics"]
        strict = await at_torbay.get(f"/{kind}?colour=red", headers={"Prefer": "handling=strict"})
        assert issue(strict) == ("SEND_BAD_REQUEST", "not-supported")


# -- as much as can be answered ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Task", "AuditEvent"])
@pytest.mark.parametrize(
    "form",
    [
        "identifier=x&" * 20_000,
        "colour=x&" * 20_000,
        "patient:identifier=" + ",".join(str(each) for each in range(10_000)),
        "_id=" + "1," * 20_000,
        "status=" + "accepted%2C" * 2_000,
    ],
)
async def test_a_search_of_thousands_of_values_is_refused_at_once(hub, at_torbay, kind, form):
    began = time.perf_counter()
    answer = await at_torbay.call("POST", f"/{kind}/_search", headers=FORM, content=form.rstrip("&"))
    assert (answer.status_code, issue(answer)) == (400, ("SEND_BAD_REQUEST", "too-costly"))
    assert time.perf_counter() - began < 3  # it took seconds to minutes
    assert faults(hub) == []


@pytest.mark.parametrize(
    "query",
    [
        "Task?patient:identifier={}",
        "Task?identifier={}",
        "AuditEvent?patient:identifier={}",
        "AuditEvent?agent:identifier={}",
        "AuditEvent?entity:identifier={}",
    ],
)
async def test_as_many_values_as_a_search_may_hold(hub, torbay, at_torbay, query):
    assert (await at_torbay.get("/" + query.format(",".join(["x"] * 100)))).status_code == 200
    assert (await at_torbay.get("/" + query.format(",".join(["x"] * 101)))).status_code == 400
    for kind in ("Task", "Patient", "Encounter", "AuditEvent"):
        ids = ",".join(str(each) for each in range(500))
        assert (await at_torbay.get(f"/{kind}?_id={ids}")).status_code == 200
        assert (await at_torbay.get(f"/{kind}?_id={ids},500")).status_code == 400
    assert faults(hub) == []


@pytest.mark.parametrize("count", ["0000000010000000000", "000000001" + "9" * 30, "9" * 4400, "0", "1e3"])
async def test_how_many_is_read_as_a_number(hub, torbay, polled, count):
    await polled.send(request(torbay))
    hub.expected += 1
    for path in ("/$inbox", "/MessageHeader"):
        answer = await polled.get(f"{path}?_count={count}")
        assert (answer.status_code, issue(answer)[0]) == (400, "SEND_BAD_REQUEST")
        assert (await polled.get(f"{path}?_count=0000000000200")).status_code == 200
    for kind in ("Task", "AuditEvent"):
        answer = await polled.get(f"/{kind}?_count={count}")
        assert answer.status_code == (400 if count == "1e3" else 200)
    assert faults(hub) == []


async def test_a_page_as_long_as_can_be_and_a_count_of_nought_however_written(hub, torbay, at_torbay):
    await two_patients(hub, torbay, at_torbay)
    assert len((await at_torbay.get("/Task?_count=0000000010000000000")).json()["entry"]) == 2
    assert (await at_torbay.get("/Task?_count=000")).json().get("entry") is None


# -- what a token lets its holder see ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "query", "status"),
    [
        ("system/Task.s", "Task", 200),
        ("system/Task.s", "Task?_include=Task:focus", 403),
        ("system/Task.s", "Task?_include=Task:patient", 403),
        ("system/Task.s system/Patient.r", "Task?_include=Task:patient", 200),
        ("system/Task.s system/ServiceRequest.r", "Task?_include=Task:focus&_include=Task:patient", 403),
        ("system/ServiceRequest.rs", "ServiceRequest?_include=ServiceRequest:subject", 403),
    ],
)
async def test_what_comes_along_needs_its_own_scope(hub, torbay, facade, at_torbay, scopes, query, status):
    await asked(hub, torbay, at_torbay)
    reader = await (await System.join(facade, "RA9", scopes=scopes)).signed_in()
    answer = await reader.get(f"/{query}")
    assert answer.status_code == status
    if status == 403:
        assert issue(answer) == ("SEND_FORBIDDEN", "forbidden")
        assert [each["detail"]["why"] for each in await hub.audit(code="access-denied")] == ["scope"]
    for kind in INCLUDES:
        assert INCLUDES[kind] <= set(INCLUDED)


# -- what nobody foresaw -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fhir/Task/", "/fhir/AuditEvent/", "/oauth2/token/", "/fhir/"])
async def test_no_redirect_to_a_host_that_the_request_names(hub, at_torbay, path):
    answer = await at_torbay.http.get(
        f"{path}?patient:identifier={MARSHWIGGLE.nhs_number}", headers={"Host": "evil.example"}
    )
    assert (answer.status_code, "location" in answer.headers) == (404, False)
    assert issue(answer) == ("SEND_NOT_FOUND", "not-found")


@pytest.mark.parametrize("identifier", [None, 5, True, "x", {"system": "a", "value": "b"}, [None]])
async def test_a_stay_whose_identifier_is_none(hub, at_torbay, identifier):
    stay = orjson.dumps({"resourceType": "Encounter", "identifier": identifier})
    said = {"Content-Type": JSON, "X-Request-Id": str(uuid.uuid4())}
    answer = await at_torbay.call("PUT", "/Encounter?identifier=a|b", headers=said, content=stay)
    assert (answer.status_code, issue(answer)[0]) == (400, "SEND_BAD_REQUEST")
    assert faults(hub) == []


def nested(levels, inmost=b"1"):
    return b'{"resourceType": "Task", "x": ' + b"[" * levels + inmost + b"]" * levels + b"}"


@pytest.mark.parametrize("levels", [65, 250, 252, 900, 1005, 1010, 1015, 5_000])
@pytest.mark.parametrize("inmost", [b"1", b"1.5"])
async def test_a_body_is_read_to_one_depth_everywhere(hub, at_exeter, levels, inmost):
    """Nothing is stored that could not be shown again, and nothing is kept for a retry that would end alike."""
    for served in SERVED:
        if not served.body or served.name in {"break_glass", "search_task_post", "search_audit_post"}:
            continue
        path = served.path.removeprefix("/fhir").replace("{id}", str(uuid.uuid4()))
        query = "?identifier=a|b" if served.name == "update_encounter" else ""
        kind = "application/json-patch+json" if served.name == "patch_task" else JSON
        said = {"Content-Type": kind, "X-Request-Id": str(uuid.uuid4())}
        body = nested(levels, inmost)
        answer = await at_exeter.call(served.method, path + query, headers=said, content=body)
        assert answer.status_code in {400, 422}, (served.name, answer.text)
        assert issue(answer)[1] != "exception"
    kept = await hub.rows(t.message)
    hub.expected += len(kept)
    assert {row["why"] for row in kept} == {"message-too-deep"}
    assert await hub.rows(t.subscription) == []
    assert faults(hub) == []


@pytest.mark.parametrize(
    "since", ["1 Jan 1 0:0:0 +9999999999999999999", "Mon, 1 Jan 0001 00:00:00 +1400", "x", "99999999999"]
)
async def test_a_time_that_is_none_makes_no_condition(hub, torbay, at_torbay, since):
    transfer = await asked(hub, torbay, at_torbay)
    answer = await at_torbay.get(f"/Task/{transfer}", headers={"If-Modified-Since": since})
    assert (answer.status_code, faults(hub)) == (200, [])


@pytest.mark.parametrize("value", ["\x00", "a\x00b"])
async def test_a_number_with_u_0000_is_the_callers_fault(hub, torbay, at_torbay, at_exeter, value):
    await asked(hub, torbay, at_torbay)
    for focus in ({"value": value}, {"system": value, "value": "TR-1"}):
        task = {
            "resourceType": "Task",
            "status": "accepted",
            "intent": "order",
            "focus": {"identifier": focus},
        }
        said = {"Content-Type": JSON, "X-Request-Id": str(uuid.uuid4())}
        answer = await at_exeter.call("POST", "/Task", headers=said, content=orjson.dumps(task))
        assert answer.status_code in {400, 422}, answer.text
    assert token_of_identifier({"system": "https://x.example", "value": value}) is None
    assert token_of_identifier({"system": value, "value": "1"}) is None
    assert token_of_identifier({"system": "https://x.example", "value": "\\x00"}) is not None
    assert faults(hub) == []


@pytest.mark.parametrize("state", ["22021", "22P05", "23514"])
async def test_a_value_that_the_database_refuses_is_no_reason_to_send_again(
    hub, at_torbay, monkeypatch, state
):
    class RefusedError(Exception):
        sqlstate = state

    async def refuses(*_args, **_more):
        raise DBAPIError("SELECT 1", {}, RefusedError("9990000018"))

    monkeypatch.setattr(search, "search", refuses)
    answer = await at_torbay.get("/Task")
    assert (answer.status_code, issue(answer)) == (422, ("SEND_UNPROCESSABLE_ENTITY", "value"))
    assert "retry-after" not in answer.headers
    assert faults(hub) == []
    assert "9990000018" not in str(hub.log.lines) + answer.text


async def test_an_answer_that_cannot_be_written_in_xml_is_an_answer(hub, at_torbay, monkeypatch):
    def fails(_tree):
        raise TypeError("9990000018")

    monkeypatch.setattr("hub.facade.app.write_xml", fails)
    for path in ("/Task", "/metadata"):
        answer = await at_torbay.get(path, headers={"Accept": "application/fhir+xml"})
        assert (answer.status_code, issue(answer)) == (500, ("REC_SERVER_ERROR", "exception"))
        assert "9990000018" not in answer.text


class Slow(httpx.AsyncByteStream):
    """A body of which one byte comes, and then nothing; or, ``gone``, whose sender goes."""

    def __init__(self, *, gone=False):
        self.gone = gone

    async def __aiter__(self):
        yield b"{"
        if not self.gone:
            await asyncio.sleep(60)


async def test_a_body_that_does_not_come_is_not_waited_for(hub):
    facade = facade_of(hub, body_s=0.1)
    system = await (await System.join(facade, "RA9")).signed_in()
    said = {"Content-Type": JSON, "X-Request-Id": str(uuid.uuid4())}
    answer = await system.call("POST", "/$process-message", headers=said, content=Slow())
    assert (answer.status_code, issue(answer)[1]) == (408, "timeout")
    token = await system.http.post("/oauth2/token", content=Slow())
    assert (token.status_code, token.json()["error"]) == (408, "invalid_request")
    assert (await hub.rows(t.message), faults(hub)) == ([], [])


@pytest.mark.parametrize("path", ["/fhir/$process-message", "/oauth2/token"])
async def test_a_sender_that_goes_is_no_fault(hub, facade, at_torbay, path):
    heard, told = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}], []
    headers = {"content-type": JSON, "authorization": f"Bearer {at_torbay.token}", "host": "hub.example"}
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "https",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()], "server": ("hub.example", 443),
        "http_version": "1.1", "root_path": "", "client": ("127.0.0.1", 1),
    }  # fmt: skip

    async def receive():
        return heard.pop(0)

    async def tell(message):
        told.append(message)

    await make_app(facade)(scope, receive, tell)
    assert told[0]["status"] == 400
    assert (await hub.rows(t.message), faults(hub)) == ([], [])


# -- what is written into addresses ------------------------------------------------------------------------------


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [each["resource"]["id"] for each in answer.json().get("entry", ())]


@pytest.mark.parametrize("kind", ["Task", "AuditEvent"])
async def test_the_links_of_a_form_hold_nothing_of_what_was_asked(hub, torbay, at_torbay, kind):
    """They can be followed by anybody who may ask, and by any process of the hub; what they hold, only the hub can read."""
    for number, specialty in (("TR-1", "320"), ("TR-2", "150"), ("TR-3", "300")):
        await asked(hub, torbay, at_torbay, number=number, stay=f"V-{number}", specialty=specialty)
        hub.clock.later(minutes=1)
    await asked(hub, torbay, at_torbay, patient=FENNIMOSS, number="TR-9", stay="V-9")
    form = f"patient:identifier={NHS_NUMBER}|{MARSHWIGGLE.nhs_number}&_sort=_lastUpdated&_count="
    must = ids(await at_torbay.get(f"/{kind}?{form}200"))
    assert len(must) >= 3
    answer, found = await at_torbay.call("POST", f"/{kind}/_search", headers=FORM, content=form + "1"), []
    # Asking the audit is written into it, so that there is always more.
    while len(found) < len(must):
        links = {each["relation"]: each["url"] for each in answer.json()["link"]}
        for each in links.values():
            assert MARSHWIGGLE.nhs_number not in each
            assert set(parse_qs(urlsplit(each).query)) == {"_page"}
        assert ids(await at_torbay.get(links["self"].partition("/fhir")[2])) == must[:1]
        found += ids(answer)
        if len(found) < len(must):
            answer = await at_torbay.get(links["next"].partition("/fhir")[2] + "&_format=json")
    assert found == must
    others = "AuditEvent" if kind == "Task" else "Task"
    sealed = links["self"].partition("?")[2]
    for wrong in (
        f"/{others}?{sealed}",
        f"/{kind}?{sealed}x",
        f"/{kind}?_page=a.b.c.d.e",
        f"/{kind}?{sealed}&{sealed}",
    ):
        refused = await at_torbay.get(wrong)
        assert (refused.status_code, issue(refused)[0]) == (400, "SEND_BAD_REQUEST"), wrong
    strange = await at_torbay.get(f"/{kind}?_page={facade_of(hub).office.sealed('x')}")
    assert strange.status_code == 400
    assert faults(hub) == []


async def test_a_head_is_a_get_without_its_body(hub, torbay, at_torbay):
    transfer = await asked(hub, torbay, at_torbay)
    got = await at_torbay.get(f"/Task/{transfer}")
    head = await at_torbay.call("HEAD", f"/Task/{transfer}")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", got.headers["etag"])
    assert head.headers["content-length"] == got.headers["content-length"]
    assert (await at_torbay.call("HEAD", "/Task/unknown")).status_code == 404
    assert (await at_torbay.call("HEAD", "/$process-message")).status_code == 405
    assert (await at_torbay.http.request("HEAD", "/fhir/metadata")).status_code == 200
    assert (await at_torbay.http.request("HEAD", "/fhir/Task")).status_code == 401
    assert len(await hub.audit(code="record-read")) == 2
