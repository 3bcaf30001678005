"""What is asked in a way that the facade does not serve, or asks too much, is refused before anything is made of it."""

import time

import orjson
import pytest

from hub.demo.people import FENNIMOSS, MARSHWIGGLE
from hub.domain.trust import Directory
from hub.fhir.systems import NHS_NUMBER
from hub.store import tables as t
from tests.stories.rest import System, facade_of, issue
from tests.stories.test_facade import asked, request

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def facade(hub):
    return facade_of(hub)


@pytest.fixture
async def at_torbay(facade):
    return await (await System.join(facade, "RA9")).signed_in()


@pytest.fixture
async def at_exeter(facade):
    return await (await System.join(facade, "RH8")).signed_in()


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
    assert time.perf_counter() - began < 1
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
