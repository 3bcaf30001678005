"""FHIR clients that others wrote, as an integrator would use them."""

import uuid

import orjson
import pytest
from fhirclient.client import FHIRClient
from fhirclient.models.organization import Organization
from fhirclient.models.task import Task
from fhirpy import AsyncFHIRClient
from fhirpy.base.exceptions import OperationOutcome, ResourceNotFound

from hub.demo.people import MARSHWIGGLE, OAKENSHADE
from hub.fhir.systems import NHS_NUMBER


def at(server, ods, **headers):
    """fhirpy, signed in."""
    return AsyncFHIRClient(
        f"{server.url}/fhir", authorization=f"Bearer {server.token(ods)}", extra_headers=headers
    )


async def test_fhirpy_asks_finds_decides_and_reads_the_history(server):
    message = server.request(MARSHWIGGLE, "fhirpy")
    receipt = await at(server, "RA9", **message.headers).execute(
        "$process-message", method="post", data=orjson.loads(message.body)
    )
    assert receipt["entry"][0]["resource"]["response"]["code"] == "ok"

    exeter = at(server, "RH8", **{"X-Request-Id": str(uuid.uuid4())})
    wanted = {"patient:identifier": f"{NHS_NUMBER}|{MARSHWIGGLE.nhs_number}"}
    [task] = await exeter.resources("Task").search(**wanted).fetch_all()
    assert task["status"] == "requested"
    task["status"] = "accepted"
    await task.save()
    read = await at(server, "RA9").reference("Task", task["id"]).to_resource()
    assert (read["status"], read["meta"]["versionId"]) == ("accepted", "2")
    assert await at(server, "RA9").resources("Task").search(**wanted).count() == 1
    history = await at(server, "RA9").execute(f"Task/{task['id']}/_history", method="get")
    assert [each["resource"]["status"] for each in history["entry"]] == ["accepted", "requested"]


async def test_fhirpy_tells_what_is_wrong(server):
    with pytest.raises(OperationOutcome, match="X-Request-Id"):
        await at(server, "RA9").execute("$process-message", method="post", data={"resourceType": "Bundle"})
    with pytest.raises(ResourceNotFound, match="your trust is no party to it"):
        await at(server, "RK9").reference("Task", str(uuid.uuid4())).to_resource()


async def test_fhirpy_follows_pages(server):
    for number in range(4):
        message = server.request(OAKENSHADE, f"page-{number}")
        await at(server, "RA9", **message.headers).execute(
            "$process-message", method="post", data=orjson.loads(message.body)
        )
    wanted = {"patient:identifier": f"{NHS_NUMBER}|{OAKENSHADE.nhs_number}"}
    found = await at(server, "RH8").resources("Task").search(**wanted).limit(2).fetch_all()
    assert len({each["id"] for each in found}) == 4


def test_fhirclient_reads_tasks_and_organisations(server):
    """SMART's own client; it is given the token as its authorisation would."""
    client = FHIRClient(settings={"app_id": "hub", "api_base": f"{server.url}/fhir/"})
    client.server.session.headers["Authorization"] = f"Bearer {server.token('RA9')}"
    assert client.server.capabilityStatement.fhirVersion == "4.0.1"
    organisation = Organization.read("RH8", client.server)
    assert organisation.identifier[0].value == "RH8"
    tasks = list(Task.where(struct={"status": "requested,accepted"}).perform_resources_iter(client.server))
    assert {each.requester.identifier.value for each in tasks} <= {"RA9"}
